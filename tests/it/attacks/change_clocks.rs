//! A clock of the database or of a replica that steps and drifts, while cleanups run.
//!
//! Only one of the clocks is ever wrong. Two wrong clocks can prolong the life of a token: docs/reliability.md.

use std::time::Duration;

use chrono::TimeDelta;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};
use crate::cleanup::count_recorded;
use crate::support::faketime::{FakeClock, FakeTimeServer};
use crate::support::{World, program};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_clock_that_steps_and_drifts_breaks_no_promise() {
    change_database_clock(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn a_database_clock_that_steps_and_drifts_for_a_minute_breaks_no_promise() {
    change_database_clock(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_clock_that_steps_and_drifts_breaks_no_promise() {
    change_system_clock(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn a_system_clock_that_steps_and_drifts_for_a_minute_breaks_no_promise() {
    change_system_clock(LONG).await;
}

/// The seconds that the clock is ahead.
const OFFSETS: [i64; 9] = [
    -500 * DAY,
    -3 * DAY,
    -23 * HOUR,
    -HOUR,
    -3,
    3,
    HOUR,
    23 * HOUR,
    3 * DAY,
];
/// The seconds that the clock is ahead in the end. The cleanup deletes records that are 400 days old.
const LAST_OFFSET: i64 = 500 * DAY;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

async fn change_database_clock(duration: Duration) {
    let Some(clock) = FakeClock::new() else {
        eprintln!("skipped: faketime is not installed");
        return;
    };
    let server = FakeTimeServer::start(&clock).await;
    let world = World::on(server.url.clone()).await;
    let mut attack = Attack::on("database clock", duration, world).await;
    // A step forward ends every lease.
    attack.rules.min_takeover = Duration::ZERO;
    change(attack, &clock, &[]).await;
    server.stop().await;
}

async fn change_system_clock(duration: Duration) {
    let Some(clock) = FakeClock::new() else {
        eprintln!("skipped: faketime is not installed");
        return;
    };
    let attack = Attack::new("system clock", duration).await;
    change(attack, &clock, &clock.variables()).await;
}

/// Changes the clock while two replicas serve. The second one and the cleanups have these additional variables.
async fn change(mut attack: Attack, clock: &FakeClock, variables: &[(&str, &str)]) {
    let mut replicas = attack.start_replicas(1, &[]).await;
    replicas.extend(attack.start_replicas(1, variables).await);
    let clients = attack.start_clients(&Load::default());
    let (mut steps, mut restarts) = (0, 0);
    while attack.needs(3, steps) {
        let offset = *attack.rng.choice(&OFFSETS).expect("an offset");
        step(&mut attack, clock, variables, offset).await;
        steps += 1;
        if attack.rng.u8(0..3) > 0 {
            clock.set(TimeDelta::zero());
        }
        if attack.rng.u8(0..3) == 0 {
            // The new replica has seen no earlier time.
            let index = attack.rng.usize(0..replicas.len());
            replicas[index].signal(Signal::SIGKILL);
            replicas[index].child.wait().await.unwrap();
            let variables = if index == 1 { variables } else { &[] };
            let replica = attack.start_replica(variables).await;
            attack.targets.lock().unwrap()[index] = replica.base.clone();
            replicas[index] = replica;
            restarts += 1;
        }
        attack.sleep_below(600).await;
    }
    assert!(steps > 2, "only {steps} steps");
    step(&mut attack, clock, variables, LAST_OFFSET).await;
    clock.set(TimeDelta::zero());
    attack.sleep_below(600).await;
    // No record is old enough to be removed.
    for member in [
        "purgedTokens",
        "purgedMints",
        "purgedCombinations",
        "partitionsDropped",
    ] {
        let removed = count_recorded(&attack.world, member).await;
        attack.findings.check(Promise::I14Kept, removed == 0, || {
            format!("{removed} {member}")
        });
    }
    let promises = [&Promise::OF_REQUESTS[..], &[Promise::I14Kept]].concat();
    let faults = format!("{} steps and slews, {restarts} restarts", steps + 1);
    attack.finish(clients, replicas, faults, &promises).await;
}

/// Sets the clock and runs a cleanup, while the clock drifts by 5 %.
async fn step(attack: &mut Attack, clock: &FakeClock, variables: &[(&str, &str)], offset: i64) {
    let offset = TimeDelta::seconds(offset);
    clock.set(offset);
    attack.sleep_below(600).await;
    let mut cleanup = program(&["cleanup"], &attack.variables(variables));
    let tick = TimeDelta::milliseconds(if attack.rng.bool() { 1 } else { -1 });
    let slew = async {
        for n in 0..20 {
            clock.set(offset + tick * n);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (cleaned, ()) = tokio::join!(cleanup.output(), slew);
    cleaned.unwrap();
}
