//! The source address in audit events.

use serde_json::json;

use crate::support::{Replica, World, send};

/// Returns the source addresses of all events of the user, oldest first.
async fn sources(world: &World, user: &str) -> Vec<Option<String>> {
    sqlx::query_scalar(
        "SELECT source_ip FROM audit_events WHERE user_id = $1 ORDER BY occurred_at, id",
    )
    .bind(user)
    .fetch_all(&world.db)
    .await
    .unwrap()
}

async fn issue_forwarded(replica: &Replica, user: &str, forwarded_for: &[&str]) {
    let mut request = replica.post("/bank/tokens/", &json!({"userId": user}));
    for line in forwarded_for {
        request = request.header("x-forwarded-for", *line);
    }
    assert!(matches!(send(request).await.status, 200 | 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_addresses_are_accepted_only_from_trusted_proxies() {
    let world = World::new().await;
    let behind_proxy = world
        .replica_with(&[("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")])
        .await;
    issue_forwarded(&behind_proxy, "proxied", &["203.0.113.7"]).await;
    issue_forwarded(
        &behind_proxy,
        "proxied",
        &["6.6.6.6, 203.0.113.8, 10.1.2.3"],
    )
    .await;
    issue_forwarded(&behind_proxy, "proxied", &["6.6.6.6", "[2001:db8::1]:443"]).await;
    issue_forwarded(&behind_proxy, "proxied", &["'; DROP TABLE tokens; --"]).await;
    issue_forwarded(&behind_proxy, "proxied", &[]).await;
    let expected = [
        "203.0.113.7",
        "203.0.113.8",
        "2001:db8::1",
        "127.0.0.1",
        "127.0.0.1",
    ];
    assert_eq!(
        sources(&world, "proxied").await,
        expected.map(|ip| Some(ip.to_owned()))
    );

    for trusted in [vec![], vec![("TRUSTED_PROXIES", "10.0.0.0/8")]] {
        let direct = world.replica_with(&trusted).await;
        issue_forwarded(&direct, "direct", &["203.0.113.7"]).await;
    }
    assert_eq!(
        sources(&world, "direct").await,
        ["127.0.0.1", "127.0.0.1"].map(|ip| Some(ip.to_owned()))
    );
}
