//! A primary behind haproxy that is lost, and its synchronous standby, which is promoted.

use std::time::Duration;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};
use crate::support::haproxy::Haproxy;
use crate::support::standby::Pair;
use crate::support::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_breaks_no_promise() {
    promote_standby(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn promotions_for_a_minute_break_no_promise() {
    promote_standby(LONG).await;
}

async fn promote_standby(duration: Duration) {
    let Some(mut pair) = Pair::start().await else {
        eprintln!("skipped: this Postgres has no pg_basebackup");
        return;
    };
    let Some(proxy) = Haproxy::start(&pair.socket_dirs()).await else {
        pair.stop().await;
        eprintln!("skipped: haproxy is not installed");
        return;
    };
    let world = World::on(proxy.url("vending")).await;
    let mut attack = Attack::on("standby promoted", duration, world).await;
    let replicas = attack.start_replicas(2, &[]).await;
    let clients = attack.start_clients(&Load::default());
    let mut promotions = 0;
    while attack.needs(1, promotions) {
        attack.sleep_below(1500).await;
        if attack.rng.bool() {
            // New sessions do not wait for the standby, unless the service asks for it.
            pair.primary.set("synchronous_commit", "local").await;
        }
        let silence = Duration::from_millis(attack.rng.u64(0..800));
        let promoted = pair.promote(silence).await;
        promotions += 1;
        promoted.primary.set("synchronous_commit", "").await;
        pair = promoted.add_standby().await;
        let handouts = "SELECT count(*) FROM audit_events WHERE kind = 'token.reused'";
        let before = attack.world.count(handouts).await;
        eventually("handouts after a promotion", async || {
            attack.world.count(handouts).await > before + 20
        })
        .await;
    }
    let faults = format!("{promotions} promotions");
    attack
        .finish(clients, replicas, faults, &Promise::OF_REQUESTS)
        .await;
    drop(proxy);
    pair.stop().await;
}
