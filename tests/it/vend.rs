//! The main job: a token is minted once, then handed out again.

use serde_json::json;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_mints_and_the_second_reuses() {
    let world = World::new().await;
    let replica = world.replica().await;
    let order =
        json!({"userId": "u-1", "country": "LT", "bank": "Swedbank", "access": {"accounts": true}});

    let minted = replica.issue(order.clone()).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    assert_eq!(minted.text("outcome"), "minted");
    assert_eq!(
        minted.header("cache-status"),
        "token-vendor; fwd=uri-miss; stored"
    );
    let id = minted.text("id");
    assert_eq!(minted.header("location"), format!("/bank/tokens/{id}"));

    let reused = replica.issue(order).await;
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
