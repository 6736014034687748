//! The horizon of the audit log: no event before it can still appear.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use token_vendor::db::handouts::{HandoutRow, insert_handouts};
use token_vendor::db::horizon::{advance_horizon, find_horizon};
use token_vendor::model::Caller;
use uuid::Uuid;

use crate::metrics::scrape;
use crate::sealing::{FAST, seed, wait_for_size};
use crate::support::{Api, World, eventually, program, run, send};

const INSERT: &str = "INSERT INTO audit_events (id, kind) VALUES (gen_random_uuid(), 'audit.read')
                      RETURNING occurred_at";

async fn insert_event(connection: &mut PgConnection) -> DateTime<Utc> {
    let inserted = sqlx::query_scalar(INSERT).fetch_one(connection);
    inserted.await.unwrap()
}

async fn execute(world: &World, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&world.db).await.unwrap();
}

/// Moves the horizon as a replica whose clock is right. Returns the horizon.
async fn advance(world: &World) -> DateTime<Utc> {
    // A shift of the clock takes effect in new connections.
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    advance_horizon(&mut connection, Utc::now()).await.unwrap();
    find_horizon(&mut connection).await.unwrap()
}

/// Moves the horizon until it is after the time. Transactions of other tests on the server may delay it.
async fn advance_beyond(world: &World, time: DateTime<Utc>) {
    let is_beyond = async || advance(world).await > time;
    eventually("the horizon moves", is_beyond).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_horizon_waits_for_a_transaction_that_wrote_an_event() {
    let world = World::unchecked().await;
    world.shift_clock("0").await;
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let occurred_at = insert_event(&mut transaction).await;
    for shift in ["0", "1 minute", "1 hour", "2 hours"] {
        world.shift_clock(shift).await;
        assert!(advance(&world).await < occurred_at, "{shift}");
    }
    transaction.commit().await.unwrap();
    advance_beyond(&world, occurred_at).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_horizon_moves_on_after_a_restore_into_another_server() {
    let world = World::unchecked().await;
    execute(
        &world,
        "UPDATE audit_horizon SET next_xid = '1000000000000'",
    )
    .await;
    let past = Utc::now() - TimeDelta::minutes(1);
    advance_beyond(&world, past).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_clock_that_is_ahead_does_not_move_the_horizon_beyond_the_time_of_the_service() {
    let world = World::unchecked().await;
    world.shift_clock("1 hour").await;
    let replica = world.replica().await;
    let advanced = async || complete_until(&replica, "").await > Utc::now() - TimeDelta::minutes(1);
    eventually("the horizon moves", advanced).await;
    assert!(complete_until(&replica, "").await < Utc::now());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_dated_after_the_horizon_unless_the_horizon_is_wrong() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    // As after a step back of the clock.
    execute(
        &world,
        "UPDATE audit_horizon SET noted_at = now() + interval '1 hour', next_xid = '0'",
    )
    .await;
    let replica = world.replica().await;
    replica
        .issue(json!({"userId": "u-1"}))
        .await
        .assert_minted("fwd=uri-miss; stored");
    let minted_before = "SELECT count(*) FROM audit_events, audit_horizon
                         WHERE kind = 'token.minted' AND occurred_at < complete_until";
    assert_eq!(world.count(minted_before).await, 0);
    let latest = "SELECT greatest(complete_until, noted_at) FROM audit_horizon";
    let latest: DateTime<Utc> = sqlx::query_scalar(latest)
        .fetch_one(&world.db)
        .await
        .unwrap();
    assert!(latest > Utc::now() + TimeDelta::minutes(59));
    assert!(insert_event(&mut connection).await >= latest);

    // Both clocks were 500 days ahead once.
    execute(
        &world,
        "UPDATE audit_horizon SET complete_until = now() + interval '500 days'",
    )
    .await;
    let tomorrow = Utc::now() + TimeDelta::days(1);
    eventually("the horizon is corrected", async || {
        advance(&world).await < tomorrow
    })
    .await;
    assert!(insert_event(&mut connection).await < tomorrow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_clock_that_is_far_behind_dates_no_event_before_the_horizon() {
    let world = World::unchecked().await;
    world.shift_clock("0").await;
    let replica = world.replica_with(&[FAST]).await;
    seed(&world, &replica, 3).await;
    let all = world.count("SELECT count(*) FROM audit_events").await;
    wait_for_size(&replica, all as u64).await;
    let horizon = advance(&world).await;
    let months = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass";
    let created = world.count(months).await;
    world.shift_clock("-500 days").await;
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    for _ in 0..3 {
        assert!(advance(&world).await >= horizon);
        assert!(insert_event(&mut connection).await >= horizon);
    }
    // A replica that has not seen the earlier time.
    let another = world.replica_with(&[FAST]).await;
    another.issue(json!({"userId": "later"})).await;
    // No month of the wrong time is created, which the next cleanup would drop.
    assert_eq!(scrape(&another).await["audit_partitions_ahead_months"], 3.0);
    let cleaned = run(&["cleanup"], &world.variables(&[])).await;
    assert_eq!(world.count(months).await, created, "{cleaned:?}");
    world.shift_clock("0").await;
    let events = world.count("SELECT count(*) FROM audit_events").await;
    let third = world.replica_with(&[FAST]).await;
    wait_for_size(&third, events as u64).await;
    let verified = run(&["audit", "verify"], &world.variables(&[])).await;
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handout_that_is_too_old_is_not_recorded() {
    let world = World::new().await;
    let replica = world.replica().await;
    let token = replica.issue(json!({"userId": "u-1"})).await;
    let caller = Caller {
        client: "a".into(),
        request_id: "r".into(),
        source_ip: None,
    };
    let mut connection = world.db.acquire().await.unwrap();
    for (age, batch, recorded) in [(5, 1, 0), (5, 2, 0), (2, 1, 1), (2, 2, 2)] {
        let occurred_at = Utc::now() - TimeDelta::seconds(age);
        let rows: Vec<_> = std::iter::repeat_with(|| HandoutRow {
            event_id: Uuid::now_v7(),
            occurred_at,
            user_id: "u-1",
            token_id: token.text("id").parse().unwrap(),
            caller: &caller,
            min_life: std::time::Duration::ZERO,
        })
        .take(batch)
        .collect();
        let ids = insert_handouts(&mut connection, &rows, occurred_at).await;
        assert_eq!(ids.unwrap().len(), recorded, "{age} s");
    }
}

/// Returns `completeUntil` of a page of events.
async fn complete_until(api: &Api, query: &str) -> DateTime<Utc> {
    let page = api.get(&format!("/audit/events?{query}")).await;
    assert_eq!(page.status, 200, "{page:?}");
    page.text("completeUntil").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_moves_the_horizon_that_pages_return() {
    let world = World::new().await;
    let replica = world.replica().await;
    let recent =
        async || complete_until(&replica, "limit=1").await > Utc::now() - TimeDelta::minutes(1);
    eventually("the horizon moves", recent).await;
    let page = send(replica.request(Method::GET, "/console/audit")).await;
    assert_eq!(page.status, 200);
}

async fn export(api: &Api, query: &str) -> Response {
    let request = api.request(Method::GET, &format!("/audit/events/export?{query}"));
    request.send().await.unwrap()
}

fn complete_until_header(export: &Response) -> DateTime<Utc> {
    let header = &export.headers()["complete-until"];
    header.to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_from_a_standby_that_lags_is_refused() {
    let (world, standby) = (World::new().await, World::new().await);
    let replica = world
        .replica_with(&[("READ_DATABASE_URL", &standby.url)])
        .await;
    execute(
        &world,
        "UPDATE audit_horizon SET complete_until = now() - interval '2 minutes'",
    )
    .await;
    execute(
        &standby,
        "UPDATE audit_horizon SET complete_until = now() - interval '1 hour'",
    )
    .await;
    let refused = send(replica.request(Method::GET, "/audit/events/export")).await;
    refused.assert_problem(503, "database-unavailable");
    // The standby has all events of that time.
    let to = (Utc::now() - TimeDelta::hours(2)).format("%FT%TZ");
    let complete = export(&replica, &format!("to={to}")).await;
    assert_eq!(complete.status(), 200);
    // A page says how far it is complete.
    let until = complete_until(&replica, "").await;
    assert!(until < Utc::now() - TimeDelta::minutes(59), "{until}");

    execute(
        &standby,
        "UPDATE audit_horizon SET complete_until = now() - interval '1 second'",
    )
    .await;
    let complete = export(&replica, "").await;
    assert_eq!(complete.status(), 200);
    let until = complete_until_header(&complete);
    assert!(until > Utc::now() - TimeDelta::minutes(3), "{until}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_says_up_to_which_time_it_is_complete() {
    let world = World::new().await;
    let replica = world.replica().await;
    let horizon = "UPDATE audit_horizon SET complete_until = '2026-11-01T00:00:00.123456Z'";
    execute(&world, horizon).await;
    let export = export(&replica, "format=csv").await;
    let header = complete_until_header(&export);
    assert!(
        header
            >= "2026-11-01T00:00:00.123456Z"
                .parse::<DateTime<Utc>>()
                .unwrap()
    );
    assert!(header < Utc::now() - TimeDelta::seconds(4), "{header}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_export_command_waits_for_events_that_are_not_committed() {
    let world = World::new().await;
    let mut transaction = world.db.begin().await.unwrap();
    let occurred_at = insert_event(&mut transaction).await;
    let to = (occurred_at + TimeDelta::microseconds(1)).format("%FT%T%.6fZ");
    let arguments = ["audit", "export", "--to", &to.to_string()];
    let command = program(&arguments, &world.variables(&[])).spawn().unwrap();
    let polls = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE '%FROM audit_horizon%' AND pid <> pg_backend_pid()";
    eventually("the command waits", async || world.count(polls).await > 0).await;
    transaction.commit().await.unwrap();
    execute(&world, "UPDATE audit_horizon SET complete_until = now()").await;
    let output = command.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let exported: DateTime<Utc> = last["occurredAt"].as_str().unwrap().parse().unwrap();
    assert_eq!(exported, occurred_at);
}
