//! Statements that are cancelled and connections that are terminated at random times.

use std::time::Duration;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_are_terminated_and_cancelled_break_no_promise() {
    stop_backends(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn backends_that_are_terminated_and_cancelled_for_a_minute_break_no_promise() {
    stop_backends(LONG).await;
}

async fn stop_backends(duration: Duration) {
    let mut attack = Attack::new("backends stopped", duration).await;
    let replicas = attack.start_replicas(2, &[]).await;
    let clients = attack.start_clients(&Load::default());
    let (mut terminated, mut cancelled) = (0, 0);
    while attack.needs(20, terminated + cancelled) {
        attack.sleep_below(60).await;
        if attack.rng.u32(0..3) == 0 {
            terminated += stop_backend(&attack, "pg_terminate_backend").await;
        } else {
            cancelled += stop_backend(&attack, "pg_cancel_backend").await;
        }
    }
    assert!(
        terminated > 0 && cancelled > 0,
        "{terminated} + {cancelled}"
    );
    let promises = [Promise::I1Recorded, Promise::Consistent];
    let faults = format!("{terminated} terminated, {cancelled} cancelled");
    attack.finish(clients, replicas, faults, &promises).await;
}

/// Calls the function for a server process of a replica that works on a statement. Returns the number of processes.
async fn stop_backend(attack: &Attack, function: &str) -> usize {
    let statement = format!(
        "SELECT count({function}(pid)) FROM (
             SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND application_name LIKE 'token-vendor%' AND state = 'active'
             ORDER BY random() LIMIT 1) active"
    );
    let stopped: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .fetch_one(&attack.world.db)
        .await
        .unwrap();
    usize::try_from(stopped).unwrap()
}
