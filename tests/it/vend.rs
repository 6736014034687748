//! The basic case: a token is minted once and then reused.

use std::time::Duration;

use serde_json::json;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_mints_and_the_second_reuses() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body =
        json!({"userId": "u-1", "country": "LT", "bank": "Swedbank", "access": {"accounts": true}});

    let minted = replica.issue(body.clone()).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    assert_eq!(minted.text("outcome"), "minted");
    assert_eq!(
        minted.header("cache-status"),
        "token-vendor; fwd=uri-miss; stored"
    );
    let id = minted.text("id");
    assert_eq!(minted.header("location"), format!("/bank/tokens/{id}"));

    let reused = replica.issue(body).await;
    assert_eq!(reused.status, 200, "{reused:?}");
    assert_eq!(reused.text("outcome"), "reused");
    assert_eq!(reused.token(), minted.token());
    assert!(
        reused
            .header("cache-status")
            .starts_with("token-vendor; hit; ttl=35")
    );

    assert_eq!(world.sandbox.minted(), 1);
    assert_eq!(world.kinds().await, ["token.minted", "token.reused"]);
    replica.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_that_were_closed_are_replaced_without_errors() {
    let world = World::new().await;
    let replica = world.replica().await;
    let token_request = |user: &str| json!({"userId": user});
    assert_eq!(replica.issue(token_request("u-1")).await.status, 201);

    // A proxy or a failover closes idle connections in the same way.
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'token-vendor'";
    assert!(world.count(terminate).await > 0);
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    assert_eq!(replica.issue(token_request("u-2")).await.status, 201);
    assert_eq!(replica.issue(token_request("u-1")).await.status, 200);
    replica.service.stop().await;
}
