//! The choice between reuse of a token and a new mint.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::dev::sandbox;
use token_vendor::model::Scope;
use tokio::time::sleep;

use crate::metrics::scrape;
use crate::support::{World, eventually, send};

#[tokio::test(flavor = "multi_thread")]
async fn absent_and_null_are_the_same_combination_and_other_values_are_not() {
    let world = World::new().await;
    let replica = world.replica().await;
    let unrestricted = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(
        (&unrestricted.body["country"], &unrestricted.body["bank"]),
        (&Value::Null, &Value::Null)
    );
    let none = json!({"accounts": false, "balances": false, "transactions": false});
    for same in [
        json!({"userId": "u", "country": null}),
        json!({"userId": "u", "bank": null, "access": {}}),
        json!({"userId": "u", "country": null, "bank": null, "access": none, "lifetime": 60}),
    ] {
        replica.issue(same).await.assert_reused(&unrestricted);
    }
    for other in [
        json!({"userId": "U"}),
        json!({"userId": "u 1"}),
        json!({"userId": "u", "country": "LT"}),
        json!({"userId": "u", "bank": "null"}),
        json!({"userId": "u", "bank": "b"}),
        json!({"userId": "u", "bank": "B"}),
        json!({"userId": "u", "bank": "\u{e9}"}),
        json!({"userId": "u", "bank": "e\u{301}"}),
        json!({"userId": "u", "access": {"balances": true}}),
    ] {
        replica
            .issue(other)
            .await
            .assert_minted("fwd=uri-miss; stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_lifetime_0_is_handed_out_only_once() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u", "lifetime": 0});
    let first = replica.issue(body.clone()).await;
    assert_eq!(
        (first.status, &first.body["expiresIn"]),
        (201, &json!(0)),
        "{first:?}"
    );
    let second = replica.issue(body).await;
    assert_eq!(second.status, 201, "{second:?}");
    assert_ne!(second.token(), first.token());
    let longer = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(longer.status, 201, "{longer:?}");
    assert_eq!(world.sandbox.minted(), 3);
    assert_eq!(world.kinds().await, ["token.minted"; 3]);
    let record = replica
        .get(&format!("/bank/tokens/{}", first.text("id")))
        .await;
    assert_eq!(record.body["isValid"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_requests_with_lifetime_0_share_no_token() {
    let world = World::new().await;
    let replica = world.replica().await;
    let issue = || replica.issue(json!({"userId": "u", "lifetime": 0}));
    let (a, b, c) = tokio::join!(issue(), issue(), issue());
    assert_eq!([a.status, b.status, c.status], [201; 3]);
    assert!(a.token() != b.token() && b.token() != c.token() && a.token() != c.token());
}

#[tokio::test(flavor = "multi_thread")]
async fn min_fresh_requires_remaining_life_and_a_new_token_satisfies_it() {
    let world = World::new().await;
    let replica = world.replica().await;
    let first = replica
        .issue_with(json!({"userId": "u", "lifetime": 600}), "min-fresh=600")
        .await;
    first.assert_minted("fwd=uri-miss; stored");
    replica
        .issue_with(json!({"userId": "u"}), "min-fresh=300")
        .await
        .assert_reused(&first);
    let second = replica
        .issue_with(json!({"userId": "u"}), "min-fresh=601")
        .await;
    second.assert_minted("fwd=stale; stored");
    replica
        .issue(json!({"userId": "u"}))
        .await
        .assert_reused(&second);
    replica
        .issue_with(json!({"userId": "u"}), "min-fresh=0")
        .await
        .assert_reused(&second);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_a_mint_share_it_regardless_of_min_fresh() {
    let world = World::new().await;
    let (a, b) = (world.replica().await, world.replica().await);
    world.sandbox.set_latency(Duration::from_millis(1500));
    let body = || json!({"userId": "u", "lifetime": 600});
    let answers = tokio::join!(
        a.issue_with(body(), "min-fresh=600"),
        a.issue_with(body(), "min-fresh=600"),
        b.issue_with(body(), "min-fresh=600"),
        b.issue(body()),
    );
    let mut answers = [answers.0, answers.1, answers.2, answers.3];
    answers.sort_by_key(|answer| std::cmp::Reverse(answer.status));
    answers[0].assert_minted("fwd=uri-miss; stored");
    for answer in &answers[1..] {
        assert_eq!(
            (answer.status, answer.text("outcome")),
            (200, "reused"),
            "{answer:?}"
        );
        assert_eq!(answer.token(), answers[0].token());
        assert_eq!(
            answer.header("cache-status"),
            "token-vendor; fwd=uri-miss; stored; collapsed"
        );
    }
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cache_mints_a_new_token_and_requires_its_scope() {
    let world = World::new().await;
    let replica = world.replica().await;
    let issuer = ("issuer", "secret");
    world.add_client(issuer, &[Scope::TokensIssue]).await;
    let first = replica.issue_with(json!({"userId": "u"}), "no-cache").await;
    first.assert_minted("fwd=uri-miss; stored");

    let without_scope = replica
        .request_by(issuer, Method::POST, "/bank/tokens/")
        .header("content-type", "application/json")
        .header("cache-control", "no-cache")
        .header("pragma", "no-cache")
        .body(r#"{"userId": "u"}"#);
    send(without_scope).await.assert_reused(&first);

    let second = replica
        .issue_with(json!({"userId": "u"}), "max-age=0, No-Cache")
        .await;
    second.assert_minted("fwd=request; stored");
    replica
        .issue(json!({"userId": "u"}))
        .await
        .assert_reused(&second);
    let superseded = replica
        .get(&format!("/bank/tokens/{}", first.text("id")))
        .await;
    assert_eq!(superseded.body["isValid"], true);
    assert_eq!(superseded.body["invalidatedAt"], Value::Null);
    let other = world.replica().await;
    other
        .issue(json!({"userId": "u"}))
        .await
        .assert_reused(&second);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_no_cache_requests_share_one_mint() {
    let world = World::new().await;
    let replica = world.replica().await;
    let old = replica.issue(json!({"userId": "u"})).await;
    world.sandbox.set_latency(Duration::from_millis(1500));
    let renew = || replica.issue_with(json!({"userId": "u"}), "no-cache");
    let (a, b, c) = tokio::join!(renew(), renew(), renew());
    assert_eq!(world.sandbox.minted(), 2);
    let mut statuses = [a.status, b.status, c.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 201]);
    for answer in [&a, &b, &c] {
        assert_ne!(answer.token(), old.token());
        let collapsed = if answer.status == 200 {
            "; collapsed"
        } else {
            ""
        };
        assert_eq!(
            answer.header("cache-status"),
            format!("token-vendor; fwd=request; stored{collapsed}")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_token_that_outlives_its_successor_is_reused() {
    let world = World::new().await;
    let replica = world.replica().await;
    let long = replica
        .issue(json!({"userId": "u", "lifetime": 3600}))
        .await;
    let brief = replica
        .issue_with(json!({"userId": "u", "lifetime": 100}), "no-cache")
        .await;
    brief.assert_minted("fwd=request; stored");
    replica
        .issue(json!({"userId": "u", "lifetime": 100}))
        .await
        .assert_reused(&brief);
    let again = replica
        .issue_with(json!({"userId": "u"}), "min-fresh=200")
        .await;
    again.assert_reused(&long);
    replica
        .issue(json!({"userId": "u", "lifetime": 100}))
        .await
        .assert_reused(&long);
    assert_eq!(world.sandbox.minted(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_too_little_life_left_is_not_handed_out_again() {
    let world = World::new().await;
    let replica = world.replica_with(&[("MIN_REMAINING", "100s")]).await;
    world
        .sandbox
        .script([sandbox::Answer::Expires { after_ms: 90_000 }]);
    let short = replica.issue(json!({"userId": "u"})).await;
    short.assert_minted("fwd=uri-miss; stored");
    assert!(short.body["expiresIn"].as_u64().unwrap() <= 90, "{short:?}");
    // A request with a short lifetime requires only half of that lifetime.
    replica
        .issue(json!({"userId": "u", "lifetime": 60}))
        .await
        .assert_reused(&short);
    let long = replica.issue(json!({"userId": "u"})).await;
    long.assert_minted("fwd=stale; stored");
    replica
        .issue(json!({"userId": "u"}))
        .await
        .assert_reused(&long);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_replaced() {
    let world = World::new().await;
    let replica = world.replica().await;
    let first = replica.issue(json!({"userId": "u", "lifetime": 4})).await;
    let path = format!("/bank/tokens/{}", first.text("id"));
    eventually("the token expires", async || {
        replica.get(&path).await.body["isValid"] == false
    })
    .await;
    replica
        .issue(json!({"userId": "u"}))
        .await
        .assert_minted("fwd=stale; stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_evicted_from_the_cache() {
    let world = World::new().await;
    let replica = world.replica().await;
    let cached_tokens = async || {
        // moka updates its count only when the cache is used.
        replica.issue(json!({"userId": "u"})).await;
        scrape(&replica).await["cache_entries"]
    };
    replica
        .issue(json!({"userId": "short", "lifetime": 1}))
        .await
        .token();
    eventually("both tokens are cached", async || {
        cached_tokens().await == 2.0
    })
    .await;
    sleep(Duration::from_secs(15)).await;
    eventually("one token is evicted", async || {
        cached_tokens().await == 1.0
    })
    .await;
}
