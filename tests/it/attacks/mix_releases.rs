//! The previous release beside this one on the migrated schema.
//!
//! There is no short form: the previous release must be built first, which `make chaos` does.

use nix::sys::signal::Signal;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG};
use crate::support::Process;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the previous release: run make chaos"]
async fn the_previous_release_beside_this_one_breaks_no_promise() {
    let Ok(previous) = std::env::var("PREVIOUS_RELEASE") else {
        eprintln!("skipped: PREVIOUS_RELEASE is not set");
        return;
    };
    let mut attack = Attack::new("previous release", LONG).await;
    let mut replicas = attack.start_replicas(2, &[]).await;
    for _ in 0..2 {
        let replica = Process::serve_release(&previous, &attack.variables(&[])).await;
        attack.targets.lock().unwrap().push(replica.base.clone());
        replicas.push(replica);
    }
    let clients = attack.start_clients(&Load::default());
    let (mut upgrades, mut downgrades) = (0, 0);
    while attack.needs(6, upgrades + downgrades) {
        attack.sleep_below(1000).await;
        let index = attack.rng.usize(0..replicas.len());
        let is_upgrade = attack.rng.bool();
        let replica = if is_upgrade {
            upgrades += 1;
            attack.start_replica(&[]).await
        } else {
            downgrades += 1;
            Process::serve_release(&previous, &attack.variables(&[])).await
        };
        attack.targets.lock().unwrap()[index] = replica.base.clone();
        let mut stopped = std::mem::replace(&mut replicas[index], replica);
        let signals = [Signal::SIGTERM, Signal::SIGKILL];
        stopped.signal(*attack.rng.choice(&signals).expect("a signal"));
        stopped.child.wait().await.unwrap();
    }
    assert!(
        upgrades > 2 && downgrades > 2,
        "{upgrades} and {downgrades}"
    );
    let faults = format!("{upgrades} upgrades, {downgrades} downgrades");
    attack
        .finish(clients, replicas, faults, &Promise::OF_REQUESTS)
        .await;
}
