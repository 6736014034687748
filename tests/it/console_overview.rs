//! The console's overview: figures of all replicas, counted from the audit log.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::json;
use token_vendor::db::overview::{find_figures, roll_up_minutes};
use token_vendor::dev::sandbox;
use token_vendor::model::Scope;

use crate::audit::{event, insert};
use crate::support::page::get_page;
use crate::support::{World, eventually, send};

/// Inserts handouts and mints at random times of the last 3 hours. Returns the number in each minute.
async fn seed(world: &World, now: DateTime<Utc>) -> Vec<(DateTime<Utc>, i64)> {
    let mut random = fastrand::Rng::with_seed(5);
    let kinds = [
        "token.reused",
        "token.reused",
        "token.minted",
        "token.mint_failed",
        "token.mint_unknown",
        "audit.read",
    ];
    let events: Vec<_> = (0..900)
        .map(|n| {
            let at = now - TimeDelta::milliseconds(random.i64(0..10_800_000));
            event(n, at, random.choice(&kinds).unwrap())
        })
        .collect();
    insert(&world.db, &events).await;
    let counted = events.iter().filter(|event| event.kind != "audit.read");
    let mut minutes = std::collections::BTreeMap::new();
    for event in counted {
        *minutes.entry(minute(event.occurred_at)).or_insert(0) += 1;
    }
    minutes.into_iter().collect()
}

fn minute(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(at.timestamp() / 60 * 60, 0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_match_the_audit_log_when_counted_late() {
    let world = World::new().await;
    sqlx::query("SELECT create_audit_partition(now() - interval '1 day')")
        .execute(&world.db)
        .await
        .unwrap();
    let now = Utc::now();
    let expected = seed(&world, now).await;
    let total = async || {
        let minutes = find_figures(&mut world.db.acquire().await.unwrap())
            .await
            .unwrap()
            .minutes;
        assert!(
            minutes.is_sorted_by(|a, b| a.minute < b.minute),
            "{minutes:?}"
        );
        let sum =
            |m: &token_vendor::db::overview::Minute| m.minted + m.reused + m.failed + m.unknown;
        minutes
            .iter()
            .filter(|m| sum(m) > 0)
            .map(|m| (m.minute, sum(m)))
            .collect::<Vec<_>>()
    };
    let horizon = "UPDATE audit_horizon SET complete_until = now()";
    sqlx::query(horizon).execute(&world.db).await.unwrap();
    // Before the first count, the query counts the last hour itself.
    let last_hour: Vec<_> = expected
        .iter()
        .copied()
        .filter(|(at, _)| *at >= minute(now) - TimeDelta::minutes(58))
        .collect();
    let live = total().await;
    assert!(live.ends_with(&last_hour), "{live:?} {last_hour:?}");
    // Sets the last count to 170 minutes ago and adds a row that is past its retention of a day.
    for ago in [TimeDelta::minutes(170), TimeDelta::days(2)] {
        let insert = "INSERT INTO handout_minutes VALUES ($1, 0, 0, 0, 0)";
        sqlx::query(insert)
            .bind(minute(now - ago))
            .execute(&world.db)
            .await
            .unwrap();
    }
    let mut counted = 0;
    while let count @ 1.. = roll_up_minutes(&mut world.db.acquire().await.unwrap())
        .await
        .unwrap()
    {
        counted += count;
    }
    assert!((168..=170).contains(&counted), "{counted}");
    assert_eq!(
        world
            .count(
                "SELECT count(*) FROM handout_minutes WHERE minute < now() - interval '25 hours'"
            )
            .await,
        0
    );
    let since: Vec<_> = expected
        .iter()
        .copied()
        .filter(|(at, _)| *at > minute(now - TimeDelta::minutes(170)))
        .collect();
    assert_eq!(total().await, since);
    // A second count finds no new minute.
    assert_eq!(
        roll_up_minutes(&mut world.db.acquire().await.unwrap())
            .await
            .unwrap(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_sums_over_all_replicas() {
    let world = World::new().await;
    let replicas = [world.replica().await, world.replica().await];
    let request = json!({"userId": "u"});
    let minted = replicas[0].issue(request.clone()).await;
    for replica in [&replicas[0], &replicas[1], &replicas[1]] {
        replica.issue(request.clone()).await.assert_reused(&minted);
    }
    for replica in &replicas {
        let page = get_page(replica, "/console/").await;
        page.has(200, "<dt>Reused</dt><dd>3</dd>");
        page.has(200, "<dt>Minted</dt><dd>1</dd>");
        page.has(200, "<dt>Hit ratio</dt><dd>75.0\u{202f}%</dd>");
        page.has(200, "8\u{202f}999");
        page.has(200, "never ran");
        page.has(200, "Replicas seen in the last minute: 2");
        page.has(200, "of 1 mints");
    }
    let cleanup = replicas[0].post("/maintenance/cleanup", &json!({}));
    assert_eq!(cleanup.send().await.unwrap().status(), 200);
    let old_minute = "INSERT INTO handout_minutes SELECT date_bin('1 minute', now(), 'epoch') - interval '20 hours', 1200, 0, 0, 0";
    sqlx::query(old_minute).execute(&world.db).await.unwrap();
    let page = get_page(&replicas[1], "/console/").await;
    page.has(200, "1\u{202f}201");
    page.has(200, "are not in these figures");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_of_a_fresh_installation_has_no_empty_place() {
    let world = World::new().await;
    let replica = world.replica().await;
    let reports = async || world.count("SELECT count(*) FROM replicas").await == 1;
    eventually("the replica reports itself", reports).await;
    let page = get_page(&replica, "/console/").await;
    for text in [
        "<span class=\"good\">closed</span>",
        "none for 24 h",
        "no mints",
        "No token was requested in the last hour.",
        "No token was requested in the last 24 hours.",
        "No client got a token in the last hour.",
        "Replicas seen in the last minute: 1",
        "none yet",
    ] {
        page.has(200, text);
    }
    let (_, main) = page.html.split_once("<main").unwrap();
    assert!(!main.contains('–') && !main.contains("data-plot"), "{main}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_names_the_busiest_clients_of_the_last_hour() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    for n in 1..=6 {
        let (key, secret) = (format!("client-{n}"), format!("secret-of-client-{n}"));
        let credentials = (&*key, &*secret);
        world.add_client(credentials, &[Scope::TokensIssue]).await;
        for _ in 0..=n {
            let request = replica.request_by(credentials, Method::POST, "/bank/tokens/");
            let request = request.header("content-type", "application/json");
            let answer = send(request.body(json!({"userId": key}).to_string())).await;
            assert!([200, 201].contains(&answer.status), "{answer:?}");
        }
    }
    let busiest = async || {
        let figures = find_figures(&mut world.db.acquire().await.unwrap()).await;
        let clients = figures.unwrap().top_clients.into_iter();
        clients
            .map(|c| (c.client, c.name.is_some(), c.minted, c.reused))
            .collect::<Vec<_>>()
    };
    let expected: Vec<_> = (2..=6)
        .rev()
        .map(|n| (format!("client-{n}"), true, 1, n))
        .collect();
    assert_eq!(busiest().await, expected);
    // The same events as of two minutes ago, counted by the cleanup.
    let move_back = "ALTER TABLE audit_events DISABLE TRIGGER ALL;
                     UPDATE audit_events SET occurred_at = occurred_at - interval '2 minutes';
                     ALTER TABLE audit_events ENABLE TRIGGER ALL;
                     UPDATE audit_horizon SET complete_until = now();
                     INSERT INTO client_minutes VALUES (date_bin('1 minute', now(), 'epoch') - interval '3 hours', 'old', 1, 9)";
    sqlx::raw_sql(move_back).execute(&world.db).await.unwrap();
    while roll_up_minutes(&mut world.db.acquire().await.unwrap())
        .await
        .unwrap()
        > 0
    {}
    assert!(world.count("SELECT count(*) FROM client_minutes").await >= 6);
    let old = "SELECT count(*) FROM client_minutes WHERE client = 'old'";
    assert_eq!(world.count(old).await, 0);
    assert_eq!(busiest().await, expected);
    let page = get_page(&replica, "/console/").await;
    page.has(200, "client=client-6");
    assert!(!page.html.contains("client=client-1\""), "{}", page.html);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_shows_failing_mints_and_open_circuits() {
    let world = World::new().await;
    world
        .sandbox
        .script((0..20).map(|_| sandbox::Answer::status(503)));
    let replica = world.replica_with(&[("UPSTREAM_MAX_ATTEMPTS", "1")]).await;
    for n in 0..20 {
        let failed = replica.issue(json!({"userId": format!("u-{n}")})).await;
        failed.assert_problem(502, "upstream-failed");
    }
    let page = get_page(&replica, "/console/").await;
    page.has(200, "100.0\u{202f}% <small>of 20 mints</small>");
    page.has(200, "20 × status 503 (upstream-failed)");
    // The replica reports its circuit within 10 s.
    let is_open = async || {
        let page = get_page(&replica, "/console/").await;
        page.html.contains("on 1 of 1 replicas")
    };
    eventually("the page shows the open circuit", is_open).await;
}
