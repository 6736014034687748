//! Replicas that stand still for longer than the lease of a mint, and then go on.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG};
use crate::support::eventually;

/// The lease of a mint with an `UPSTREAM_TIMEOUT` of 300 ms.
const LEASE: Duration = Duration::from_millis(6_300);

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_stand_still_past_the_lease_break_no_promise() {
    freeze_replicas(LEASE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn replicas_that_stand_still_past_the_lease_for_a_minute_break_no_promise() {
    freeze_replicas(LONG).await;
}

async fn freeze_replicas(duration: Duration) {
    let mut attack = Attack::new("replicas frozen", duration).await;
    // A replica that goes on may make the call that it had decided on.
    attack.rules.min_takeover = Duration::ZERO;
    attack.ledger.set_latency(50..200);
    let settings = [("UPSTREAM_TIMEOUT", "300ms")];
    let replicas = attack.start_replicas(2, &settings).await;
    let load = Load {
        callers: 48,
        lifetimes: &[1, 1, 3600],
        invalidations: 0.2,
        timeout: Duration::from_secs(1),
        ..Load::default()
    };
    let clients = attack.start_clients(&load);
    let mut freezes = 0;
    while attack.is_running() {
        attack.sleep_below(500).await;
        eventually("mints are under way", async || attack.ledger.running() > 4).await;
        let frozen = &replicas[freezes % 2];
        frozen.signal(Signal::SIGSTOP);
        // At the end of the freeze, many calls of the mints that took over are under way.
        sleep(LEASE).await;
        attack.sleep_below(600).await;
        frozen.signal(Signal::SIGCONT);
        freezes += 1;
    }
    let taken_over =
        "SELECT count(*) FROM audit_events WHERE kind = 'token.mint_unknown' OR detail ? 'surplus'";
    let taken_over = attack.world.count(taken_over).await;
    assert!(taken_over > 0, "no freeze met a mint");
    let promises = [Promise::I3OneMint, Promise::I5NotInvalidated];
    let faults = format!("{freezes} freezes, {taken_over} mints taken over");
    attack.finish(clients, replicas, faults, &promises).await;
}
