//! I1, I4, I5: no handout without a record, of an expired token, or of one that was ended.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use token_vendor::db::schema;
use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions};

use crate::support::{Answer, World, cluster};

#[tokio::test(flavor = "multi_thread")]
async fn every_handout_is_on_record_before_it_is_answered() {
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
async fn without_the_audit_a_warm_cache_answers_503_and_recovers() {
    let world = World::new().await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1"});
    let token = replica.issue(order.clone()).await;

    world
        .db
        .execute("ALTER TABLE audit_events RENAME TO elsewhere")
        .await
        .unwrap();
    let answer = replica.issue(order.clone()).await;
    answer.is_problem(503, "database-unavailable");
    assert!(answer.retry_after().is_some());
    // A token that is minted while its event cannot be written does not leave either.
    let answer = replica.issue(json!({"userId": "u-2"})).await;
    answer.is_problem(503, "database-unavailable");

    world
        .db
        .execute("ALTER TABLE elsewhere RENAME TO audit_events")
        .await
        .unwrap();
    let answer = replica.issue(order).await;
    assert_eq!((answer.status, answer.token()), (200, token.token()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_without_a_partition_is_503_and_not_the_rows_fault() {
    let world = World::new().await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1"});
    replica.issue(order.clone()).await;
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
    let answers = join_all((0..10).map(|_| replica.issue(order.clone()))).await;
    for answer in answers {
        answer.is_problem(503, "database-unavailable");
    }
    world
        .db
        .execute("DROP TABLE audit_events CASCADE; CREATE TABLE audit_events (user_id text, token_id uuid, kind text)")
        .await
        .unwrap();
    let mut world = world;
    world.is_checked = false;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_postgres_is_503_with_a_warm_cache_and_recovery_is_by_itself() {
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
    let order = json!({"userId": "u-1"});
    let token = replica.issue(order.clone()).await;
    assert_eq!(token.status, 201);

    postgres.stop().await.unwrap();
    let answers = join_all((0..20).map(|_| replica.issue(order.clone()))).await;
    for answer in answers {
        answer.is_problem(503, "database-unavailable");
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
    let mut answer = replica.issue(order.clone()).await;
    for _ in 0..100 {
        if answer.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = replica.issue(order.clone()).await;
    }
    assert_eq!((answer.status, answer.token()), (200, token.token()));
    replica.service.stop().await;
    drop(world);
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_ended_in_the_database_is_handed_out_by_no_replica() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let order = json!({"userId": "u-1"});
    let ended = one.issue(order.clone()).await;
    assert_eq!(two.issue(order.clone()).await.token(), ended.token());

    world
        .db
        .execute("UPDATE tokens SET is_valid = false")
        .await
        .unwrap();

    let asked = (0..20).map(|n| if n % 2 == 0 { &one } else { &two });
    let answers = join_all(asked.map(|replica| replica.issue(order.clone()))).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.status < 300 && answer.token() != ended.token())
    );
    assert_eq!(world.sandbox.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_and_vended_by_many_at_once_no_ended_token_is_handed_out() {
    let world = World::new().await;
    let replicas = join_all((0..3).map(|_| world.replica())).await;
    let order = json!({"userId": "u-1"});
    for _ in 0..15 {
        let warm = join_all(replicas.iter().map(|replica| replica.issue(order.clone()))).await;
        let vending = (0..30).map(|n| replicas[n % 3].issue(order.clone()));
        let ending = world
            .db
            .execute("UPDATE tokens SET is_valid = false WHERE is_valid");
        let (_, ended) = tokio::join!(join_all(vending), ending);
        ended.unwrap();
        let after = join_all(replicas.iter().map(|replica| replica.issue(order.clone()))).await;
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
    let order = json!({"userId": "u-1", "lifetime": 1});
    let first = one.issue(order.clone()).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    for replica in [&one, &two] {
        assert_ne!(replica.issue(order.clone()).await.token(), first.token());
    }
}

/// Puts our own clock in front of Postgres's.
async fn shift_clock(world: &World, by: &str) {
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    for statement in [
        "CREATE TABLE IF NOT EXISTS clock_shift (by interval NOT NULL)".to_owned(),
        "DELETE FROM clock_shift".to_owned(),
        format!("INSERT INTO clock_shift VALUES ('{by}')"),
        "CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
         'SELECT pg_catalog.clock_timestamp() + (SELECT by FROM public.clock_shift)'"
            .to_owned(),
        format!(
            "ALTER DATABASE {} SET search_path = public, pg_catalog",
            connection_database(&world.url)
        ),
    ] {
        connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }
}

fn connection_database(url: &str) -> String {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    options.get_database().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_clock_that_steps_back_revives_nothing() {
    let world = World::new().await;
    shift_clock(&world, "0").await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1", "lifetime": 600});
    let token = replica.issue(order.clone()).await;
    assert_eq!(token.status, 201);

    // Its time passes …
    shift_clock(&world, "1 hour").await;
    let newer = replica.issue(order.clone()).await;
    assert_eq!(newer.status, 201);
    assert_ne!(newer.token(), token.token());

    // … and does not come again, here or on a replica that starts now.
    world
        .db
        .execute("UPDATE tokens SET is_valid = false WHERE ends_at > clock_timestamp() + '1 hour'")
        .await
        .unwrap();
    world
        .db
        .execute("UPDATE tokens SET superseded_at = NULL WHERE is_valid")
        .await
        .unwrap();
    shift_clock(&world, "0").await;
    let other = world.replica().await;
    for replica in [&replica, &other] {
        let answer = replica.issue(order.clone()).await;
        answer.is_problem(503, "database-unavailable");
    }
    let mut world = world;
    world.is_checked = false;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_the_database_once_showed_counts_for_cached_tokens_too() {
    let world = World::new().await;
    shift_clock(&world, "0").await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1", "lifetime": 600});
    assert_eq!(replica.issue(order.clone()).await.status, 201);
    assert_eq!(replica.issue(order.clone()).await.status, 200);

    // A client that is not known yet is what makes the replica look at the database.
    shift_clock(&world, "1 hour").await;
    let look = replica.anonymous(Method::GET, "/bank/tokens/");
    Answer::of(look.basic_auth("nobody", Some("x")))
        .await
        .unwrap();
    shift_clock(&world, "0").await;

    replica
        .issue(order)
        .await
        .is_problem(503, "database-unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_whose_connection_dies_is_replayed_once() {
    let world = World::new().await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1"});
    let token = replica.issue(order.clone()).await;
    replica.issue(order.clone()).await;

    for _ in 0..5 {
        let mut lock = world.db.begin().await.unwrap();
        lock.execute("LOCK TABLE audit_events IN SHARE MODE")
            .await
            .unwrap();
        let waiting = tokio::spawn(join_all((0..10).map(|_| {
            let (api, order) = (replica.api.clone(), order.clone());
            async move { api.issue(order).await }
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
    let twice = world
        .count("SELECT count(*) FROM (SELECT request_id FROM audit_events GROUP BY request_id HAVING count(*) > 1) x")
        .await;
    assert_eq!(twice, 0);
    assert_eq!(world.kinds().await.len(), 52);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_hangs_is_given_up() {
    let world = World::new().await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1"});
    let token = replica.issue(order.clone()).await;
    replica.issue(order.clone()).await;

    let writer = "starts_with(query, 'INSERT INTO audit_events')";
    world.signal_backends(writer, Signal::SIGSTOP).await;
    let answers = [
        replica.issue(order.clone()).await,
        replica.issue(order).await,
    ];
    world.signal_backends(writer, Signal::SIGCONT).await;
    let [hung, next] = answers;
    if hung.status != 200 {
        hung.is_problem(503, "database-unavailable");
    }
    assert_eq!((next.status, next.token()), (200, token.token()));
}
