//! Replicas that are killed at random times and started again.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};

/// The lock that makes every statement with an event wait.
const LOCK: &str = "audit_events IN EXCLUSIVE MODE";

/// Ends the connections that wait for a lock. Postgres would otherwise run their statements after the kill.
const TERMINATE_WAITING: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                                 WHERE datname = current_database() AND wait_event_type = 'Lock'";

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_killed_break_no_promise() {
    kill_replicas(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn replicas_that_are_killed_for_a_minute_break_no_promise() {
    kill_replicas(LONG).await;
}

async fn kill_replicas(duration: Duration) {
    let mut attack = Attack::new("replicas killed", duration).await;
    let mut replicas = attack.start_replicas(3, &[]).await;
    let clients = attack.start_clients(&Load::default());
    let mut kills = 0;
    while attack.needs(4, kills) {
        attack.sleep_below(600).await;
        let index = attack.rng.usize(0..replicas.len());
        // Every second kill meets statements that wait for a lock and never commit.
        let lock = match kills % 2 {
            0 => None,
            _ => Some(attack.world.lock_table(LOCK).await),
        };
        attack.sleep_below(200).await;
        replicas[index].signal(Signal::SIGKILL);
        replicas[index].child.wait().await.unwrap();
        kills += 1;
        if let Some(lock) = lock {
            attack.world.count(TERMINATE_WAITING).await;
            lock.rollback().await.unwrap();
        }
        let replica = attack.start_replica(&[]).await;
        attack.targets.lock().unwrap()[index] = replica.base.clone();
        replicas[index] = replica;
    }
    assert!(kills >= 4, "only {kills} kills");
    let promises = [
        Promise::I1Recorded,
        Promise::I2MintRecorded,
        Promise::I3OneMint,
        Promise::I4NotExpired,
    ];
    let faults = format!("{kills} kills");
    attack.finish(clients, replicas, faults, &promises).await;
}
