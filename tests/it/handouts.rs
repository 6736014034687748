//! I1, I4, I5: every handout is on record, and no expired or invalidated token is handed out.

use std::iter::repeat_n;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::Executor;
use token_vendor::db::schema;
use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions};

use crate::support::{World, cluster, issue_at_once};

#[tokio::test(flavor = "multi_thread")]
async fn every_handout_is_on_record_before_its_response() {
    let world = World::new().await;
    let replica = world.replica().await;
    for n in 1..=20 {
        replica.issue(json!({"userId": "u-1"})).await;
        let events = world
            .count(
                "SELECT count(*) FROM audit_events WHERE kind IN ('token.minted', 'token.reused')",
            )
            .await;
        assert_eq!(events, n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_audit_log_a_warm_cache_answers_503() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    let token = replica.issue(body.clone()).await;

    world
        .db
        .execute("ALTER TABLE audit_events RENAME TO elsewhere")
        .await
        .unwrap();
    let answer = replica.issue(body.clone()).await;
    answer.assert_problem(503, "database-unavailable");
    assert!(answer.retry_after().is_some());
    // A token whose mint event cannot be written is not handed out either.
    let answer = replica.issue(json!({"userId": "u-2"})).await;
    answer.assert_problem(503, "database-unavailable");

    world
        .db
        .execute("ALTER TABLE elsewhere RENAME TO audit_events")
        .await
        .unwrap();
    let answer = replica.issue(body).await;
    assert_eq!((answer.status, answer.token()), (200, token.token()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_partition_is_503_for_every_handout() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    replica.issue(body.clone()).await;
    world
        .db
        .execute(
            "DO $$ DECLARE p text; BEGIN
                 FOR p IN SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_events'::regclass
                 LOOP EXECUTE 'ALTER TABLE audit_events DETACH PARTITION ' || p; END LOOP;
             END $$",
        )
        .await
        .unwrap();
    let answers = issue_at_once(&[&replica], repeat_n(body.clone(), 10)).await;
    for answer in answers {
        answer.assert_problem(503, "database-unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_postgres_is_503_with_a_warm_cache_until_it_runs_again() {
    let folder = cluster::own_folder();
    let options = || LocalPostgresOptions {
        data_dir: folder.clone(),
        ..LocalPostgresOptions::default()
    };
    let postgres = LocalPostgres::start(options()).await.unwrap();
    let url = postgres.url("postgres");
    let connect = schema::connect_options(&url.clone().into()).unwrap();
    schema::migrate(&connect).await.unwrap();
    let world = World::on(url).await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    let token = replica.issue(body.clone()).await;
    assert_eq!(token.status, 201);

    postgres.stop().await.unwrap();
    let answers = issue_at_once(&[&replica], repeat_n(body.clone(), 20)).await;
    for answer in answers {
        answer.assert_problem(503, "database-unavailable");
        assert!(answer.retry_after().is_some());
    }
    let ready = replica.get("/health/ready").await;
    assert_eq!(
        (ready.status, &ready.body["checks"]["database"]),
        (503, &json!("unavailable"))
    );

    let postgres = LocalPostgres::start(LocalPostgresOptions {
        is_temporary: true,
        ..options()
    })
    .await
    .unwrap();
    let mut answer = replica.issue(body.clone()).await;
    for _ in 0..100 {
        if answer.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = replica.issue(body.clone()).await;
    }
    assert_eq!((answer.status, answer.token()), (200, token.token()));
    replica.service.stop().await;
    drop(world);
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_replica_hands_out_a_token_invalidated_in_the_database() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let body = json!({"userId": "u-1"});
    let invalidated = one.issue(body.clone()).await;
    assert_eq!(two.issue(body.clone()).await.token(), invalidated.token());

    world
        .db
        .execute("UPDATE tokens SET is_valid = false")
        .await
        .unwrap();

    let answers = issue_at_once(&[&one, &two], repeat_n(body.clone(), 20)).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.status < 300 && answer.token() != invalidated.token())
    );
    assert_eq!(world.sandbox.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_invalidated_token_is_handed_out_under_concurrent_requests() {
    let world = World::new().await;
    let replicas = join_all((0..3).map(|_| world.replica())).await;
    let body = json!({"userId": "u-1"});
    for _ in 0..15 {
        let warm = join_all(replicas.iter().map(|replica| replica.issue(body.clone()))).await;
        let requests = (0..30).map(|n| replicas[n % 3].issue(body.clone()));
        let invalidation = world
            .db
            .execute("UPDATE tokens SET is_valid = false WHERE is_valid");
        let (_, invalidated) = tokio::join!(join_all(requests), invalidation);
        invalidated.unwrap();
        let after = join_all(replicas.iter().map(|replica| replica.issue(body.clone()))).await;
        assert!(
            after.iter().all(|answer| answer.token() != warm[0].token()),
            "{after:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_not_handed_out() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let body = json!({"userId": "u-1", "lifetime": 1});
    let first = one.issue(body.clone()).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    for replica in [&one, &two] {
        assert_ne!(replica.issue(body.clone()).await.token(), first.token());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_on_a_lost_connection_is_replayed_once() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    let token = replica.issue(body.clone()).await;
    replica.issue(body.clone()).await;

    for _ in 0..5 {
        let lock = world.lock_table("audit_events IN SHARE MODE").await;
        let waiting = tokio::spawn(join_all((0..10).map(|_| {
            let (api, body) = (replica.api.clone(), body.clone());
            async move { api.issue(body).await }
        })));
        world.terminate_waiting("INSERT INTO audit_events").await;
        lock.rollback().await.unwrap();
        for answer in waiting.await.unwrap() {
            assert_eq!(
                (answer.status, answer.token()),
                (200, token.token()),
                "{answer:?}"
            );
        }
    }
    let duplicates = world
        .count("SELECT count(*) FROM (SELECT request_id FROM audit_events GROUP BY request_id HAVING count(*) > 1) x")
        .await;
    assert_eq!(duplicates, 0);
    assert_eq!(world.kinds().await.len(), 52);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_replaces_a_connection_that_hangs() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});
    let token = replica.issue(body.clone()).await;
    replica.issue(body.clone()).await;

    let writer = "starts_with(query, 'INSERT INTO audit_events')";
    world.signal_backends(writer, Signal::SIGSTOP).await;
    let answers = [replica.issue(body.clone()).await, replica.issue(body).await];
    world.signal_backends(writer, Signal::SIGCONT).await;
    let [hung, next] = answers;
    if hung.status != 200 {
        hung.assert_problem(503, "database-unavailable");
    }
    assert_eq!((next.status, next.token()), (200, token.token()));
}
