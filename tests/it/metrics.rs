//! The metrics of `GET /metrics`.

use std::collections::HashMap;

use reqwest::Method;
use serde_json::json;
use sqlx::Executor;
use token_vendor::dev::sandbox;

use crate::support::{Api, Process, World, eventually, send, send_raw};

/// Scrapes the metrics. The key of a sample is its name without `token_vendor_`, with its labels.
pub async fn scrape(api: &Api) -> HashMap<String, f64> {
    let request = api.anonymous(Method::GET, "/metrics");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let content_type = response.headers()["content-type"].to_str().unwrap();
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let own = name.strip_prefix("token_vendor_");
            assert!(own.is_some() || name.starts_with("process_"), "{line}");
            (own.unwrap_or(name).to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Returns the names and labels of all samples, one sample per line.
fn names_and_labels(samples: &HashMap<String, f64>) -> String {
    let names: Vec<_> = samples.keys().map(String::as_str).collect();
    names.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_handouts_mints_and_the_cache_are_counted() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("UPSTREAM_HOURLY_BUDGET", "10")])
        .await;
    let body = json!({"userId": "u-1", "country": "LT", "bank": "Swedbank"});
    let minted = replica.issue(body.clone()).await;
    for _ in 0..3 {
        assert_eq!(replica.issue(body.clone()).await.status, 200);
    }
    world.sandbox.script([sandbox::Answer::status(422)]);
    assert_eq!(replica.issue(json!({"userId": "u-2"})).await.status, 422);
    replica
        .issue(json!({"userId": ""}))
        .await
        .assert_problem(400, "validation");
    // Only registered clients are counted, so callers cannot add labels.
    let stranger = replica.request_by(("nobody", "secret"), Method::GET, "/audit/events");
    assert_eq!(send(stranger).await.status, 401);

    let samples = scrape(&replica).await;
    for (name, value) in [
        (r#"handouts_total{outcome="minted"}"#, 1.0),
        (r#"handouts_total{outcome="reused"}"#, 3.0),
        (r#"handouts_total{outcome="upstream-rejected"}"#, 1.0),
        (r#"mints_total{outcome="minted"}"#, 1.0),
        (r#"mints_total{outcome="failed"}"#, 1.0),
        (
            r#"client_mints_total{client="admin",outcome="minted"}"#,
            1.0,
        ),
        (
            r#"client_mints_total{client="admin",outcome="failed"}"#,
            1.0,
        ),
        (r#"client_requests_total{client="admin"}"#, 6.0),
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
            names_and_labels(&samples)
        );
    }
    assert!(samples["audit_partitions_ahead_months"] >= 3.0);
    // moka updates its count later, so the value is not known here.
    assert!(samples.contains_key("cache_entries"));

    // All replicas share the budget. A budget of 0 means no limit.
    let another = world
        .replica_with(&[("UPSTREAM_HOURLY_BUDGET", "100")])
        .await;
    assert_eq!(scrape(&another).await["upstream_budget_remaining"], 98.0);
    let unlimited = world.replica_with(&[("UPSTREAM_HOURLY_BUDGET", "0")]).await;
    assert_eq!(
        scrape(&unlimited).await["upstream_budget_remaining"],
        f64::INFINITY
    );

    let text = names_and_labels(&samples);
    for private in [
        "u-1",
        "Swedbank",
        minted.token(),
        minted.text("id"),
        minted.text("fingerprint"),
        "nobody",
    ] {
        assert!(!text.contains(private), "{private} in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_scrape_contains_every_metric() {
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
async fn unknown_paths_methods_and_hosts_are_not_labels() {
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
    let text = names_and_labels(&samples);
    assert!(!text.to_lowercase().contains("made-up"), "{text}");
    let unmatched = r#"http_requests_total{method="GET",route="unmatched",status="404"}"#;
    assert_eq!(samples[unmatched], 2.0, "{text}");
    let other = r#"http_requests_total{method="other",route="/metrics",status="405"}"#;
    assert_eq!(samples[other], 1.0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_without_the_database_has_the_other_metrics() {
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

/// Compares with the values that `ps` and `/proc` show of a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_measured() {
    let world = World::new().await;
    let process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    let samples = scrape(&api).await;
    let path = |name: &str| format!("/proc/{}/{name}", process.pid());
    let fds = std::fs::read_dir(path("fd")).unwrap().count() as f64;
    let status = std::fs::read_to_string(path("status")).unwrap();
    let status = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap().trim_start_matches(':').trim();
        value.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let limits = std::fs::read_to_string(path("limits")).unwrap();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit: f64 = limit
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    let now = chrono::Utc::now().timestamp() as f64;
    for (name, expected, tolerance) in [
        ("process_open_fds", fds, 10.0),
        ("process_max_fds", limit, 0.0),
        ("process_threads", status("Threads"), 20.0),
        (
            "process_resident_memory_bytes",
            status("VmRSS") * 1024.0,
            3e7,
        ),
        (
            "process_virtual_memory_bytes",
            status("VmSize") * 1024.0,
            3e9,
        ),
        ("process_start_time_seconds", now, 120.0),
    ] {
        let value = samples[name];
        assert!(
            (value - expected).abs() <= tolerance,
            "{name}: {value}, not {expected}"
        );
    }
    let cpu = samples["process_cpu_seconds_total"];
    assert!(cpu > 0.0, "{cpu}");
    let later = async || scrape(&api).await["process_cpu_seconds_total"] > cpu;
    eventually("requests take CPU time", later).await;
}
