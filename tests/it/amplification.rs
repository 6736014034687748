//! A small request causes no large response and no large work.

use reqwest::Method;

use crate::support::{World, send};

#[tokio::test(flavor = "multi_thread")]
async fn a_response_lists_at_most_20_field_errors_and_says_that_there_are_more() {
    let world = World::new().await;
    let replica = world.replica().await;
    let answer = async |query: &str| {
        let path = format!("/health/live?{query}");
        send(replica.anonymous(Method::GET, &path)).await
    };
    let all = answer(&"&a".repeat(20)).await;
    all.assert_problem(400, "validation");
    assert_eq!(all.pointers(), ["a"; 20]);
    assert!(!all.text("detail").contains("more"), "{all:?}");

    let many = answer(&"&a".repeat(30_000)).await;
    many.assert_problem(400, "validation");
    assert_eq!(many.pointers(), ["a"; 20]);
    assert!(many.text("detail").contains("29980 more"), "{many:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_name_is_cut_in_the_response() {
    let world = World::new().await;
    let replica = world.replica().await;
    for name in [
        "a".repeat(60_000),
        "%01".repeat(20_000),
        "%C5%BE".repeat(10_000),
    ] {
        let path = format!("/health/live?{name}");
        let answer = send(replica.anonymous(Method::GET, &path)).await;
        answer.assert_problem(400, "validation");
        let named = answer.pointers()[0].to_owned();
        assert!(
            named.ends_with('…') && named.chars().count() <= 129,
            "{named}"
        );
        assert!(answer.body.to_string().len() < 2_000);
    }
    let body = format!(r#"{{"userId": "u", "{}": 1}}"#, "\u{17e}".repeat(7_000));
    let answer = send(replica.post_body("/bank/tokens/", body)).await;
    assert!(answer.body.to_string().len() < 2_000, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_the_audit_log_reads_no_events_and_is_no_read() {
    let world = World::new().await;
    let replica = world.replica().await;
    // Any read of the events would wait for the lock until it fails.
    let lock = world
        .lock_table("audit_events IN ACCESS EXCLUSIVE MODE")
        .await;
    for (path, media_type) in [
        ("/audit/events", "application/json"),
        ("/audit/events/export", "application/x-ndjson"),
        ("/audit/events/export?format=csv", "text/csv; charset=utf-8"),
    ] {
        let answer = send(replica.request(Method::HEAD, path)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), media_type);
        assert!(!answer.headers.contains_key("content-length"), "{answer:?}");
    }
    let invalid = send(replica.request(Method::HEAD, "/audit/events?limit=0")).await;
    assert_eq!(invalid.status, 400);
    let denied = send(replica.anonymous(Method::HEAD, "/audit/events/export")).await;
    assert_eq!(denied.status, 401);
    lock.rollback().await.unwrap();
    let read = "SELECT count(*) FROM audit_events WHERE kind = 'audit.read'";
    assert_eq!(world.count(read).await, 0);
}
