//! Counts of denied requests in the audit log.

use std::time::Instant;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::model::Scope;

use crate::support::{ADMIN, Api, Process, World, send};

/// Returns client, source address and detail of all `access.denied` events. The detail lacks `since`, which varies.
async fn denials(world: &World) -> Vec<(Option<String>, Option<String>, Value)> {
    sqlx::query_as(
        "SELECT client, source_ip, detail - 'since' FROM audit_events
         WHERE kind = 'access.denied' AND (detail->>'since')::timestamptz <= occurred_at
         ORDER BY client, detail->>'route', detail->>'status', detail->>'attemptedKey' NULLS FIRST",
    )
    .fetch_all(&world.db)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_requests_are_counted_by_client_and_route_and_recorded_at_shutdown() {
    let world = World::new().await;
    let reader = ("reader", "secret");
    world.add_client(reader, &[Scope::TokensRead]).await;
    let replica = world.replica().await;
    let (tokens, events) = ("/bank/tokens/", "/audit/events");
    for _ in 0..7 {
        let refused = send(replica.request_by(reader, Method::GET, events)).await;
        refused.assert_problem(403, "forbidden");
    }
    // A trailing slash does not change the route.
    send(replica.request_by(reader, Method::GET, "/audit/events/?x=1"))
        .await
        .assert_problem(403, "forbidden");
    send(replica.request_by(reader, Method::POST, tokens))
        .await
        .assert_problem(403, "forbidden");
    for _ in 0..3 {
        let wrong = replica.request_by(("reader", "wrong"), Method::GET, tokens);
        send(wrong).await.assert_problem(401, "unauthenticated");
        let unknown = replica.request_by(("nobody", "x"), Method::GET, tokens);
        send(unknown).await.assert_problem(401, "unauthenticated");
        send(replica.anonymous(Method::GET, tokens))
            .await
            .assert_problem(401, "unauthenticated");
    }
    // These errors are not denials.
    send(replica.anonymous(Method::GET, "/nothing"))
        .await
        .assert_problem(404, "not-found");
    send(replica.request_by(reader, Method::GET, "/bank/tokens/?x=1"))
        .await
        .assert_problem(400, "validation");
    replica.service.stop().await;

    let mut found = denials(&world).await;
    let has_extra_flush = found.len() > 4;
    if has_extra_flush {
        // A new minute began during the test, so only the sum is known.
        let total: i64 = found
            .iter()
            .map(|(_, _, detail)| detail["count"].as_i64().unwrap())
            .sum();
        assert_eq!(total, 18, "{found:?}");
        return;
    }
    let of_reader = |route: &str, count: u32| {
        (
            Some("reader".to_owned()),
            None,
            json!({"route": route, "status": 403, "count": count}),
        )
    };
    let unknown = (
        None,
        Some("127.0.0.1".to_owned()),
        json!({"route": tokens, "status": 401, "count": 6}),
    );
    let wrong_secret = (
        None,
        Some("127.0.0.1".to_owned()),
        json!({"route": tokens, "status": 401, "count": 3, "attemptedKey": "reader"}),
    );
    assert_eq!(found.pop(), Some(wrong_secret));
    assert_eq!(found.pop(), Some(unknown));
    assert_eq!(found, [of_reader(events, 8), of_reader(tokens, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_from_one_address_are_limited_and_valid_ones_work() {
    let world = World::new().await;
    let replica = world.replica().await;
    let path = "/bank/tokens/";
    let attempt =
        async |key: &str| send(replica.request_by((key, "wrong"), Method::GET, path)).await;
    let mut refused = Vec::new();
    for n in 0..20 {
        let key = if n % 2 == 0 { ADMIN.0 } else { "nobody" };
        let answer = attempt(key).await;
        answer.assert_problem(401, "unauthenticated");
        refused.push(answer.text("detail").to_owned());
    }
    refused.dedup();
    assert_eq!(refused.len(), 1, "an unknown key and a wrong secret differ");
    for key in [ADMIN.0, "nobody"] {
        let answer = attempt(key).await;
        answer.assert_problem(429, "rate-limited");
        let wait: u32 = answer.header("retry-after").parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        assert!(answer.text("detail").contains("valid ones still work"));
    }
    assert_eq!(replica.get(path).await.status, 200);
    let missing = send(replica.anonymous(Method::GET, path)).await;
    missing.assert_problem(401, "unauthenticated");
    assert_ne!(missing.text("detail"), refused[0]);

    replica.service.stop().await;
    let counts = denials(&world).await;
    let is_limited = |detail: &Value| detail["status"] == 429;
    let limited = counts.iter().filter(|(_, _, detail)| is_limited(detail));
    assert_eq!(limited.count(), 2, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_count_for_the_address_that_a_trusted_proxy_forwards() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("TRUSTED_PROXIES", "127.0.0.1")])
        .await;
    let attempt = async |source: &str| {
        let request = replica.request_by(("nobody", "wrong"), Method::GET, "/bank/tokens/");
        send(request.header("x-forwarded-for", source)).await.status
    };
    for _ in 0..20 {
        assert_eq!(attempt("192.0.2.1").await, 401);
    }
    assert_eq!(attempt("192.0.2.1").await, 429);
    assert_eq!(attempt("192.0.2.2").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_denied_requests_makes_few_events() {
    let world = World::new().await;
    let replica = world.replica().await;
    let started = Instant::now();
    let mut denied = 0;
    while denied < 2_000 {
        let requests = (0..50).map(|_| send(replica.anonymous(Method::GET, "/audit/events")));
        for answer in futures_util::future::join_all(requests).await {
            assert_eq!(answer.status, 401);
            denied += 1;
        }
    }
    let minutes = 2 + started.elapsed().as_secs() / 60;
    replica.service.stop().await;
    let found = denials(&world).await;
    let total: i64 = found
        .iter()
        .map(|(_, _, detail)| detail["count"].as_i64().unwrap())
        .sum();
    assert_eq!(total, 2_000);
    assert!(found.len() as u64 <= minutes, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_cannot_be_written_are_kept_for_the_next_minute() {
    let world = World::new().await;
    let mut process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    let send_denied = async || send(api.anonymous(Method::GET, "/bank/tokens/")).await;
    let execute = async |statement| sqlx::query(statement).execute(&world.db).await.unwrap();
    execute("ALTER TABLE audit_events RENAME TO elsewhere").await;
    send_denied().await.assert_problem(401, "unauthenticated");
    // The service logs this at the start of the next minute.
    process
        .logs_with("denied requests could not be recorded")
        .await;
    execute("ALTER TABLE elsewhere RENAME TO audit_events").await;
    send_denied().await.assert_problem(401, "unauthenticated");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.child.wait().await.unwrap().code(), Some(0));
    let found = denials(&world).await;
    assert_eq!(
        (found.len(), &found[0].2["count"]),
        (1, &json!(2)),
        "{found:?}"
    );
}
