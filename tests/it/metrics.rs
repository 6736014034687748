//! What Prometheus scrapes, and what it must not learn.

use std::collections::HashMap;

use reqwest::Method;
use serde_json::json;
use sqlx::Executor;
use token_vendor::dev::sandbox;

use crate::support::{Api, World, send_raw};

/// Every sample of a scrape: name and labels as they stand, and the value.
pub async fn scrape(api: &Api) -> HashMap<String, f64> {
    let request = api.anonymous(Method::GET, "/metrics");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let kind = response.headers()["content-type"].to_str().unwrap();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("token_vendor_"), "{line}");
            (
                name["token_vendor_".len()..].to_owned(),
                value.parse().unwrap(),
            )
        })
        .collect()
}

/// The names and the labels' values of a scrape, without the numbers.
fn words(samples: &HashMap<String, f64>) -> String {
    let names: Vec<_> = samples.keys().map(String::as_str).collect();
    names.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_handouts_mints_and_the_cache_are_counted() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("UPSTREAM_HOURLY_BUDGET", "10")])
        .await;
    let order = json!({"userId": "u-1", "country": "LT", "bank": "Swedbank"});
    let minted = replica.issue(order.clone()).await;
    for _ in 0..3 {
        assert_eq!(replica.issue(order.clone()).await.status, 200);
    }
    world.sandbox.script([sandbox::Answer::status(422)]);
    assert_eq!(replica.issue(json!({"userId": "u-2"})).await.status, 422);
    replica
        .issue(json!({"userId": ""}))
        .await
        .is_problem(400, "validation");

    let samples = scrape(&replica).await;
    for (name, value) in [
        (r#"handouts_total{outcome="minted"}"#, 1.0),
        (r#"handouts_total{outcome="reused"}"#, 3.0),
        (r#"handouts_total{outcome="upstream-rejected"}"#, 1.0),
        (r#"mints_total{outcome="minted"}"#, 1.0),
        (r#"mints_total{outcome="failed"}"#, 1.0),
        (
            r#"http_requests_total{method="POST",route="/bank/tokens/",status="200"}"#,
            3.0,
        ),
        (
            r#"http_requests_total{method="POST",route="/bank/tokens/",status="400"}"#,
            1.0,
        ),
        (
            r#"http_request_duration_seconds_count{route="/bank/tokens/"}"#,
            6.0,
        ),
        (r#"cache_lookups_total{result="hit"}"#, 3.0),
        (r#"cache_lookups_total{result="miss"}"#, 2.0),
        ("mint_duration_seconds_count", 2.0),
        ("audit_flush_seconds_count", 3.0),
        ("audit_batch_size_sum", 3.0),
        ("audit_queue_depth", 0.0),
        ("circuit_open", 0.0),
        ("upstream_budget_remaining", 8.0),
        ("database_up", 1.0),
        ("cleanup_overdue_tokens", 0.0),
        ("tokens_unreadable_total", 0.0),
    ] {
        assert_eq!(
            samples.get(name),
            Some(&value),
            "{name} of\n{}",
            words(&samples)
        );
    }
    assert!(samples["audit_partitions_ahead_months"] >= 3.0);
    // Moka counts a moment later.
    assert!(samples.contains_key("cache_entries"));

    // The budget is one for all replicas; without one there is no end to it.
    let another = world
        .replica_with(&[("UPSTREAM_HOURLY_BUDGET", "100")])
        .await;
    assert_eq!(scrape(&another).await["upstream_budget_remaining"], 98.0);
    let unlimited = world.replica_with(&[("UPSTREAM_HOURLY_BUDGET", "0")]).await;
    assert_eq!(
        scrape(&unlimited).await["upstream_budget_remaining"],
        f64::INFINITY
    );

    let words = words(&samples);
    for private in [
        "u-1",
        "Swedbank",
        minted.token(),
        minted.text("id"),
        minted.text("fingerprint"),
        "admin",
    ] {
        assert!(!words.contains(private), "{private} in\n{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_scrape_has_every_name() {
    let world = World::new().await;
    let replica = world.replica().await;
    let samples = scrape(&replica).await;
    for name in [
        "http_requests_total",
        "handouts_total",
        "mints_total",
        "mint_duration_seconds",
        "upstream_budget_remaining",
        "circuit_open",
        "audit_queue_depth",
        "audit_flush_seconds",
        "cache_entries",
        "cleanup_overdue_tokens",
        "cleanup_last_success_timestamp_seconds",
        "build_info",
    ] {
        assert!(
            samples.keys().any(|sample| sample.starts_with(name)),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_callers_make_up_makes_no_label() {
    let world = World::new().await;
    let replica = world.replica().await;
    for path in [
        "/nothing/made-up-1",
        "/bank/tokens/made-up-2",
        "/metrics?made-up-3",
    ] {
        replica.get(path).await;
    }
    send_raw(
        &replica.base,
        b"MADE-UP-4 /metrics HTTP/1.1\r\nhost: made-up-5\r\nconnection: close\r\n\r\n",
    )
    .await;
    let samples = scrape(&replica).await;
    let words = words(&samples);
    assert!(!words.to_lowercase().contains("made-up"), "{words}");
    let unmatched = r#"http_requests_total{method="GET",route="unmatched",status="404"}"#;
    assert_eq!(samples[unmatched], 2.0, "{words}");
    let other = r#"http_requests_total{method="other",route="/metrics",status="405"}"#;
    assert_eq!(samples[other], 1.0, "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_the_rest_is_told() {
    let world = World::new().await;
    let replica = world.replica().await;
    world
        .db
        .execute("ALTER TABLE maintenance RENAME TO elsewhere")
        .await
        .unwrap();
    let samples = scrape(&replica).await;
    assert_eq!(
        (samples["database_up"], samples["circuit_open"]),
        (0.0, 0.0)
    );
    for name in [
        "cleanup_overdue_tokens",
        "cleanup_last_success_timestamp_seconds",
        "upstream_budget_remaining",
    ] {
        assert!(samples[name].is_nan(), "{name}");
    }
    world
        .db
        .execute("ALTER TABLE elsewhere RENAME TO maintenance")
        .await
        .unwrap();
}
