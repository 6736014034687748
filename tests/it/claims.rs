//! Claims of mints that end without a call to the provider: the combination is free again, and no mint is recorded as
//! unknown.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::Executor;
use token_vendor::db::schema;
use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions};
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::{Answer, Api, Process, World, cluster, eventually, send};

const OPEN: &str = "SELECT count(*) FROM mints WHERE outcome = 'open'";

/// Counts the mints that are on record as failed without a call, each with its event.
const NOT_CALLED: &str = "SELECT count(*) FROM mints m JOIN audit_events e ON e.user_id = m.user_id AND e.token_id = m.id
                          WHERE m.outcome = 'failed' AND m.attempts = 0 AND e.kind = 'token.mint_failed'
                            AND e.detail->>'attempts' = '0' AND e.detail->>'possiblyMinted' = '0'";

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_its_caller_abandoned_is_released() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    // Readers of the slot pass, and the claim waits.
    let lock = world.lock_table("slots IN SHARE MODE").await;
    replica
        .issue(body.clone())
        .await
        .assert_problem(503, "database-unavailable");
    lock.rollback().await.unwrap();

    let answer = replica.issue(body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(world.sandbox.requests(), 1);
    eventually("no mint is open", async || world.count(OPEN).await == 0).await;
    let mints = world.count("SELECT count(*) FROM mints").await;
    assert_eq!(world.count(NOT_CALLED).await, mints - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_lost_is_released() {
    let folder = cluster::own_folder();
    let postgres = LocalPostgres::start(LocalPostgresOptions {
        data_dir: folder,
        is_temporary: true,
        ..LocalPostgresOptions::default()
    })
    .await
    .unwrap();
    let url = postgres.url("postgres");
    let connect = schema::connect_options(&url.clone().into()).unwrap();
    schema::migrate(&connect).await.unwrap();
    let world = World::on(url).await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});

    // The claim commits locally and waits for a standby. The end of its connection loses the answer, not the commit.
    for statement in [
        "ALTER SYSTEM SET synchronous_standby_names = 'missing'",
        "SELECT pg_reload_conf()",
    ] {
        world.db.execute(statement).await.unwrap();
    }
    let api = replica.api.clone();
    let waiting = {
        let body = body.clone();
        tokio::spawn(async move { api.issue(body).await })
    };
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE wait_event = 'SyncRep' AND query LIKE 'WITH claim%'";
    eventually("the claim waits for a standby", async || {
        world.count(terminate).await > 0
    })
    .await;
    for statement in [
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    ] {
        world.db.execute(statement).await.unwrap();
    }
    waiting
        .await
        .unwrap()
        .assert_problem(503, "database-unavailable");

    let answer = replica.issue(body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(world.count(NOT_CALLED).await, 1);
    assert_eq!(world.kinds().await, ["token.mint_failed", "token.minted"]);
    replica.service.stop().await;
    drop(world);
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_between_claim_and_call_leaves_no_unknown_mint() {
    let world = World::new().await;
    let variables = world.variables(&[("UPSTREAM_TIMEOUT", "1s")]);
    let killed = Process::serve(&variables).await;
    // The claim commits, and the statement before the call waits.
    let lock = world.lock_table("upstream_budget IN SHARE MODE").await;
    let waiting = ["taken-over", "cleaned-up"].map(|user| {
        let api = Api::at(killed.base.clone());
        let body = json!({ "userId": user });
        tokio::spawn(async move { Answer::of(api.post("/bank/tokens/", &body)).await })
    });
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock' AND strpos(query, 'upstream_budget') > 0";
    eventually("both mints wait for the budget", async || {
        world.count(blocked).await == 2
    })
    .await;
    assert_eq!(world.count(OPEN).await, 2);
    killed.signal(Signal::SIGKILL);
    for waiting in waiting {
        assert!(waiting.await.unwrap().is_none());
    }
    // The server does not notice the end of a client while its statement waits for a lock.
    world.terminate_waiting("upstream_budget").await;
    lock.rollback().await.unwrap();

    let other = world.replica().await;
    let answer = other.issue(json!({"userId": "taken-over"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(world.count(NOT_CALLED).await, 1);
    world
        .db
        .execute(
            "UPDATE mints SET started_at = started_at - interval '10 min' WHERE outcome = 'open'",
        )
        .await
        .unwrap();
    let cleanup = other.post("/maintenance/cleanup", &json!({}));
    assert_eq!(send(cleanup).await.body["abandonedMints"], 1);
    assert_eq!(world.count(NOT_CALLED).await, 2);
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_cannot_be_read_leaves_no_unknown_mint() {
    let world = World::new().await;
    let replica = world.replica_with(&[("MINT_COOLDOWN", "0s")]).await;
    let body = json!({"userId": "u-1"});
    let lock = world.lock_table("upstream_budget IN SHARE MODE").await;
    let api = replica.api.clone();
    let waiting = {
        let body = body.clone();
        tokio::spawn(async move { api.issue(body).await })
    };
    world.terminate_waiting("upstream_budget").await;
    lock.rollback().await.unwrap();
    waiting
        .await
        .unwrap()
        .assert_problem(503, "database-unavailable");
    assert_eq!(replica.issue(body).await.status, 201);
    assert_eq!(world.count(NOT_CALLED).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_recorded_although_its_first_statement_is_lost() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(300));
    world.sandbox.script([Upstream::status(400)]);
    let replica = world.replica_with(&[("MINT_COOLDOWN", "0s")]).await;
    let body = json!({"userId": "u-1"});
    let api = replica.api.clone();
    let waiting = {
        let body = body.clone();
        tokio::spawn(async move { api.issue(body).await })
    };
    world.upstream_is_called(1).await;
    let lock = world.lock_table("slots IN SHARE MODE").await;
    world.terminate_waiting("WITH slot AS").await;
    lock.rollback().await.unwrap();
    waiting
        .await
        .unwrap()
        .assert_problem(422, "upstream-rejected");

    let answer = replica.issue(body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(world.kinds().await, ["token.mint_failed", "token.minted"]);
}
