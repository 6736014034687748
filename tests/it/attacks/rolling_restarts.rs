//! Replicas that are replaced one after the other by SIGTERM, as in an upgrade.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_break_no_promise() {
    restart_replicas(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn rolling_restarts_for_a_minute_break_no_promise() {
    restart_replicas(LONG).await;
}

async fn restart_replicas(duration: Duration) {
    let mut attack = Attack::new("rolling restarts", duration).await;
    attack.rules.loses_nothing = true;
    attack.rules.statuses = &[200, 201, 503];
    // A busy machine must not cause a 504.
    let settings = [("UPSTREAM_TIMEOUT", "10s"), ("SHUTDOWN_DELAY", "300ms")];
    // Some requests last longer than `SHUTDOWN_DELAY`.
    attack.ledger.set_latency(50..1_000);
    let mut replicas = attack.start_replicas(2, &settings).await;
    let clients = attack.start_clients(&Load {
        // A mint takes up to a second, and a token must outlive its mint.
        lifetimes: &[5, 3600],
        ..Load::default()
    });
    let mut restarts = 0;
    while attack.needs(3, restarts) {
        let next = attack.start_replica(&settings).await;
        let mut old = std::mem::replace(&mut replicas[restarts % 2], next);
        old.signal(Signal::SIGTERM);
        // A load balancer sends requests until it notices that the replica is not ready.
        sleep(Duration::from_millis(100)).await;
        attack.targets.lock().unwrap()[restarts % 2] = replicas[restarts % 2].base.clone();
        let stopped = timeout(Duration::from_secs(30), old.child.wait()).await;
        let status = stopped.expect("the replica stops").unwrap();
        assert!(status.success(), "{status}");
        restarts += 1;
    }
    assert!(restarts >= 3, "only {restarts} restarts");
    let promises = [Promise::I12NoLoss];
    let faults = format!("{restarts} restarts");
    attack.finish(clients, replicas, faults, &promises).await;
}
