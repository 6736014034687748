//! A standby for reads that does not answer. The primary answers instead.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::metrics::scrape;
use crate::support::standby::Pair;
use crate::support::{Api, World, eventually, send};

const FALLBACKS: &str = "read_fallbacks_total";

/// Returns the warnings of readiness, which must succeed.
async fn read_warnings(api: &Api) -> Value {
    let ready = send(api.anonymous(Method::GET, "/health/ready")).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    ready.body["warnings"].clone()
}

/// Reads a list, a page of events, an export and the console, as they are after one mint for the user `u`.
async fn read_all(api: &Api) {
    let tokens = api.get("/bank/tokens/?userId=u").await;
    assert_eq!(tokens.status, 200, "{tokens:?}");
    assert_eq!(tokens.body["items"].as_array().unwrap().len(), 1);
    let events = api.get("/audit/events?kind=token.minted").await;
    assert_eq!(events.status, 200, "{events:?}");
    assert_eq!(events.body["items"].as_array().unwrap().len(), 1);
    let export = api.request(Method::GET, "/audit/events/export?kind=token.minted");
    let export = export.send().await.unwrap();
    assert_eq!(export.status(), 200);
    assert_eq!(export.text().await.unwrap().lines().count(), 1);
    for page in ["/console/", "/console/audit", "/console/users?userId=u"] {
        assert_eq!(api.get(page).await.status, 200, "{page}");
    }
}

async fn assert_falls_back(address: &str) {
    let world = World::new().await;
    let url = format!("postgres://u:pass-word@{address}/x");
    let replica = world.replica_with(&[("READ_DATABASE_URL", &url)]).await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    read_all(&replica).await;
    assert!(scrape(&replica).await[FALLBACKS] >= 1.0);
    eventually("readiness warns", async || {
        let warnings = read_warnings(&replica).await.to_string();
        assert!(!warnings.contains("pass-word"), "{warnings}");
        warnings.contains("READ_DATABASE_URL")
    })
    .await;
    let reused = replica.issue(json!({"userId": "u"})).await;
    reused.assert_reused(&minted);
    let another = replica.issue(json!({"userId": "v"})).await;
    another.assert_minted("fwd=uri-miss; stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_fall_back_to_the_primary_if_the_standby_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    assert_falls_back(&address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_fall_back_to_the_primary_if_the_standby_is_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert_falls_back(&listener.local_addr().unwrap().to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_from_a_standby_that_answers_are_no_fallbacks() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("READ_DATABASE_URL", &world.url)])
        .await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    read_all(&replica).await;
    assert_eq!(scrape(&replica).await[FALLBACKS], 0.0);
    assert_eq!(read_warnings(&replica).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_in_recovery_does_the_reads() {
    let Some(pair) = Pair::start().await else {
        eprintln!("skipped: this Postgres has no pg_basebackup");
        return;
    };
    let world = World::on(pair.primary.url()).await;
    let standby = pair.standby.url();
    let replica = world.replica_with(&[("READ_DATABASE_URL", &standby)]).await;
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'token-vendor%'";
    eventually(
        "the probe of the standby keeps its connection",
        async || pair.standby.count(sessions).await > 0,
    )
    .await;
    assert_eq!(read_warnings(&replica).await, json!([]));
    replica.issue(json!({"userId": "u"})).await;
    eventually("the standby has the event", async || {
        let events = replica.get("/audit/events?kind=token.minted").await;
        events.body["items"].as_array().unwrap().len() == 1
    })
    .await;
    assert_eq!(scrape(&replica).await[FALLBACKS], 0.0);
    drop((replica, world));
    pair.stop().await;
}
