//! I2, I3, I6: mint records precede upstream calls, one replica holds the lease, and a crash leaves an event.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::Executor;
use token_vendor::db::mints::{Claim, claim_mint};
use token_vendor::dev::sandbox::Answer as Upstream;
use token_vendor::model::{Access, Caller, Combination};
use uuid::Uuid;

use crate::support::{Answer, Api, Process, World};

#[tokio::test(flavor = "multi_thread")]
async fn the_mint_record_is_committed_before_the_upstream_call() {
    let world = World::new().await;
    world.sandbox.script([Upstream::Hang]);
    let replica = world.replica_with(&[("UPSTREAM_TIMEOUT", "1s")]).await;
    let api = replica.api.clone();
    let waiting = tokio::spawn(async move { api.issue(json!({"userId": "u-1"})).await });
    world.upstream_is_called(1).await;
    assert_eq!(
        world
            .count("SELECT count(*) FROM mints WHERE outcome = 'open'")
            .await,
        1
    );

    waiting
        .await
        .unwrap()
        .assert_problem(504, "upstream-timeout");
    assert_eq!(
        world
            .count("SELECT count(*) FROM mints WHERE outcome = 'unknown'")
            .await,
        1
    );
    assert_eq!(world.kinds().await, ["token.mint_unknown"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over_the_lease_of_a_killed_one() {
    let world = World::new().await;
    world.sandbox.script([Upstream::Hang]);
    let variables = world.variables(&[("UPSTREAM_TIMEOUT", "1s")]);
    let killed = Process::serve(&variables).await;
    let api = Api::at(killed.base.clone());
    let body = json!({"userId": "u-1", "bank": "Swedbank"});
    let waiting = tokio::spawn(Answer::of(api.post("/bank/tokens/", &body)));
    world.upstream_is_called(1).await;
    killed.signal(Signal::SIGKILL);
    assert!(waiting.await.unwrap().is_none());

    let other = world.replica().await;
    // The other replica calls the upstream only after the lease of the killed one ends.
    let answer = other.issue(body.clone()).await;
    assert_eq!(answer.status, 201);
    assert_eq!(world.sandbox.requests(), 2);
    assert_eq!(world.kinds().await, ["token.mint_unknown", "token.minted"]);
    let event = "SELECT count(*) FROM audit_events e JOIN mints m ON m.id = e.token_id
                 WHERE e.kind = 'token.mint_unknown' AND e.bank = 'Swedbank' AND e.client = 'admin'
                   AND m.outcome = 'unknown' AND e.occurred_at > m.started_at + interval '5 s'";
    assert_eq!(world.count(event).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_that_lost_its_lease_records_a_surplus_token() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(600));
    let replica = world.replica().await;
    let api = replica.api.clone();
    let body = json!({"userId": "u-1"});
    let late = {
        let body = body.clone();
        tokio::spawn(async move { api.issue(body).await })
    };
    world.upstream_is_called(1).await;
    world
        .db
        .execute("UPDATE slots SET lease_until = '-infinity'")
        .await
        .unwrap();
    world.sandbox.set_latency(Duration::ZERO);
    let other = world.replica().await;
    let winner = other.issue(body.clone()).await;
    assert_eq!(winner.status, 201);

    // The surplus token is on record, so its own caller gets it. Other callers do not.
    let late = late.await.unwrap();
    assert_eq!(late.status, 201);
    assert_ne!(late.token(), winner.token());
    let surplus = "SELECT count(*) FROM tokens WHERE superseded_at IS NOT NULL AND is_valid";
    assert_eq!(world.count(surplus).await, 1);
    assert_eq!(other.issue(body.clone()).await.token(), winner.token());
    assert_eq!(replica.issue(body.clone()).await.token(), winner.token());

    // Once the current token is invalid, the surplus token is used instead of another mint.
    let invalidate = format!(
        "UPDATE tokens SET is_valid = false WHERE id = '{}'",
        winner.text("id")
    );
    world
        .db
        .execute(sqlx::AssertSqlSafe(invalidate))
        .await
        .unwrap();
    for replica in [&other, &replica] {
        assert_eq!(replica.issue(body.clone()).await.token(), late.token());
    }
    assert_eq!(world.sandbox.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_under_way_during_an_invalidation_is_recorded_as_invalidated() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(400));
    let replica = world.replica().await;
    let api = replica.api.clone();
    let waiting = tokio::spawn(async move { api.issue(json!({"userId": "u-1"})).await });
    world.upstream_is_called(1).await;
    let void = "UPDATE slots SET void_epoch = lease_epoch, void_reason = 'compromised', usable_until = '-infinity'";
    world.db.execute(void).await.unwrap();

    // The caller gets a token that was minted after the invalidation.
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 201);
    assert_eq!(world.sandbox.requests(), 2);
    let invalidated =
        "SELECT count(*) FROM tokens WHERE NOT is_valid AND invalidation_reason = 'compromised'
                 AND invalidated_at IS NOT NULL AND ciphertext = ''";
    assert_eq!(world.count(invalidated).await, 1);
    assert_eq!(
        world
            .count("SELECT count(*) FROM tokens WHERE is_valid")
            .await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_finish_records_the_mint_once() {
    let world = World::new().await;
    let replica = world.replica().await;
    for user in ["u-1", "u-2", "u-3"] {
        let lock = world.lock_table("tokens IN SHARE MODE").await;
        let api = replica.api.clone();
        let waiting = tokio::spawn(async move { api.issue(json!({ "userId": user })).await });
        world.terminate_waiting("WITH slot AS").await;
        lock.rollback().await.unwrap();
        assert_eq!(waiting.await.unwrap().status, 201);
    }
    assert_eq!(world.sandbox.requests(), 3);
    assert_eq!(world.kinds().await, ["token.minted"; 3]);
    assert_eq!(world.count("SELECT count(*) FROM tokens").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_token_that_cannot_be_recorded_in_time_is_503_and_reused_later() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    let lock = world.lock_table("tokens IN SHARE MODE").await;
    replica
        .issue(body.clone())
        .await
        .assert_problem(503, "database-unavailable");
    lock.rollback().await.unwrap();

    let answer = replica.issue(body).await;
    assert_eq!((answer.status, answer.text("outcome")), (200, "reused"));
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_forty_simultaneous_claims_wins() {
    let world = World::unchecked().await;
    for n in 0..20 {
        let now = Utc::now();
        let claims: Vec<Claim> = (0..40)
            .map(|_| Claim {
                mint_id: Uuid::now_v7(),
                combination: Combination {
                    user_id: format!("u-{}", n / 2).into(),
                    country: None,
                    bank: None,
                    access: Access::default(),
                },
                lifetime: 3600,
                replica: Uuid::now_v7(),
                caller: Caller {
                    client: "test".into(),
                    request_id: "test".into(),
                    source_ip: None,
                },
                now,
                lease_until: now + TimeDelta::seconds(10),
                fresh_until: now,
                renew_since: (n % 2 == 1).then_some(0),
            })
            .collect();
        let claim = async |claim| claim_mint(&mut world.db.acquire().await.unwrap(), claim).await;
        let leases = join_all(claims.iter().map(claim)).await;
        let won = leases
            .into_iter()
            .filter(|lease| lease.as_ref().unwrap().is_some());
        assert_eq!(won.count(), 1);
        // In every second round, the slot exists and its lease has ended.
        world
            .db
            .execute("UPDATE slots SET lease_until = '-infinity'")
            .await
            .unwrap();
    }
}
