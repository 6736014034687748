//! Replicas that are killed at random times and started again.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};

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
        attack.sleep_below(800).await;
        let index = attack.rng.usize(0..replicas.len());
        replicas[index].signal(Signal::SIGKILL);
        replicas[index].child.wait().await.unwrap();
        kills += 1;
        let replica = attack.start_replica(&[]).await;
        attack.targets.lock().unwrap()[index] = replica.base.clone();
        replicas[index] = replica;
    }
    assert!(kills >= 4, "only {kills} kills");
    let promises = [
        Promise::I1Recorded,
        Promise::I2MintRecorded,
        Promise::I3OneMint,
        Promise::I6NoGuess,
        Promise::Consistent,
    ];
    let faults = format!("{kills} kills");
    attack.finish(clients, replicas, faults, &promises).await;
}
