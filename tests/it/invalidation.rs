//! Invalidation of tokens and lookup by token string: `/bank/tokens/…/invalidate`, `/bank/tokens/lookup`.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Executor;
use token_vendor::dev::sandbox::Answer as Upstream;
use token_vendor::model::Scope;

use crate::support::{Answer, Api, World, send};

async fn post(api: &Api, path: &str, body: Value) -> Answer {
    send(api.post(path, &body)).await
}

async fn invalidate(api: &Api, id: &str, reason: &str) -> Answer {
    let path = format!("/bank/tokens/{id}/invalidate");
    post(api, &path, json!({ "reason": reason })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_token_is_not_handed_out_and_its_record_has_the_reason() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let body = json!({"userId": "u-1", "bank": "Swedbank"});
    let token = one.issue(body.clone()).await;
    two.issue(body.clone()).await;

    let record = invalidate(&one, token.text("id"), "used").await;
    assert_eq!(record.status, 200, "{record:?}");
    assert_eq!(record.body["isValid"], false);
    assert_eq!(record.text("invalidationReason"), "used");
    assert!(!record.text("invalidatedAt").is_empty());
    assert!(record.body.get("tokenString").is_none());
    for replica in [&one, &two] {
        assert_ne!(replica.issue(body.clone()).await.token(), token.token());
    }
    let emptied = "SELECT count(*) FROM tokens WHERE NOT is_valid AND ciphertext = ''";
    assert_eq!(world.count(emptied).await, 1);

    // A second call keeps the first reason and records no event.
    let again = invalidate(&two, token.text("id"), "compromised").await;
    assert_eq!(
        (again.status, again.text("invalidationReason")),
        (200, "used")
    );
    assert_eq!(again.body["invalidatedAt"], record.body["invalidatedAt"]);
    let event = "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated' AND user_id = 'u-1'
                 AND bank = 'Swedbank' AND client = 'admin' AND fingerprint <> '' AND detail->>'reason' = 'used'";
    assert_eq!(world.count(event).await, 1);
    let events = "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated'";
    assert_eq!(world.count(events).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_can_be_invalidated_until_it_is_marked() {
    let world = World::new().await;
    let replica = world.replica_with(&[("CLEANUP_INTERVAL", "off")]).await;
    let expired = replica.issue(json!({"userId": "u-0", "lifetime": 0})).await;
    let by_string = json!({"reason": "used", "tokenString": expired.token()});
    for count in [1, 0] {
        let answer = post(&replica, "/bank/tokens/invalidate", by_string.clone()).await;
        assert_eq!(answer.body, json!({"invalidated": count}));
    }

    let token = replica.issue(json!({"userId": "u-1", "lifetime": 0})).await;
    let run = post(&replica, "/maintenance/cleanup", json!({})).await;
    assert_eq!(run.body["expired"], 1, "{run:?}");
    let record = invalidate(&replica, token.text("id"), "used").await;
    assert_eq!(
        (record.status, &record.body["isValid"]),
        (200, &json!(false))
    );
    assert_eq!(record.body["invalidationReason"], Value::Null);
    let by_string = json!({"reason": "used", "tokenString": token.token()});
    let answer = post(&replica, "/bank/tokens/invalidate", by_string).await;
    assert_eq!(answer.body, json!({"invalidated": 0}));
    let kinds = world.kinds().await;
    let expected = [
        "token.minted",
        "token.invalidated",
        "token.minted",
        "token.expired",
    ];
    assert_eq!(kinds, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_string_finds_and_invalidates_its_record() {
    let world = World::new().await;
    let replica = world.replica().await;
    let token = replica.issue(json!({"userId": "u-1"})).await;
    let token_string = token.token().to_owned();

    let found = post(
        &replica,
        "/bank/tokens/lookup",
        json!({"tokenString": token_string}),
    )
    .await;
    assert_eq!((found.status, &found.body["id"]), (200, &token.body["id"]));
    assert!(!found.body.to_string().contains(&token_string));
    let other = post(
        &replica,
        "/bank/tokens/lookup",
        json!({"tokenString": "another"}),
    )
    .await;
    other.assert_problem(404, "not-found");

    let by_string = json!({"reason": "compromised", "tokenString": token_string});
    for expected in [1, 0] {
        let answer = post(&replica, "/bank/tokens/invalidate", by_string.clone()).await;
        assert_eq!(
            (answer.status, &answer.body["invalidated"]),
            (200, &json!(expected))
        );
    }
    let found = post(
        &replica,
        "/bank/tokens/lookup",
        json!({"tokenString": token_string}),
    )
    .await;
    assert_eq!(found.text("invalidationReason"), "compromised");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidating_a_user_includes_the_mints_under_way() {
    let world = World::new().await;
    let replica = world.replica().await;
    for bank in ["a", "b", "c"] {
        replica.issue(json!({"userId": "u-1", "bank": bank})).await;
    }
    let other = replica.issue(json!({"userId": "u-2"})).await;
    world.sandbox.set_latency(Duration::from_millis(500));
    let api = replica.api.clone();
    let under_way = tokio::spawn(async move { api.issue(json!({"userId": "u-1"})).await });
    world.upstream_is_called(5).await;

    let of_user = json!({"reason": "requested", "userId": "u-1"});
    let answer = post(&replica, "/bank/tokens/invalidate", of_user.clone()).await;
    assert_eq!(answer.body, json!({"invalidated": 3}));
    // The waiting caller gets a token that was minted after the invalidation.
    let waiting = under_way.await.unwrap();
    assert_eq!(waiting.status, 201);
    assert_eq!(world.sandbox.requests(), 6);
    let invalidated =
        "SELECT count(*) FROM tokens WHERE user_id = 'u-1' AND invalidation_reason = 'requested'";
    assert_eq!(world.count(invalidated).await, 4);
    assert_eq!(
        replica.issue(json!({"userId": "u-2"})).await.token(),
        other.token()
    );

    let unknown = json!({"reason": "used", "userId": "unknown"});
    let answer = post(&replica, "/bank/tokens/invalidate", unknown).await;
    assert_eq!(answer.body, json!({"invalidated": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_never_gets_a_token_invalidated_before_it_started() {
    let world = World::new().await;
    let replicas = join_all((0..3).map(|_| world.replica())).await;
    let body = json!({"userId": "u-1"});
    let until = Instant::now() + Duration::from_secs(5);

    let requests = join_all((0..9).map(|n| {
        let (api, body) = (replicas[n % 3].api.clone(), body.clone());
        async move {
            let mut seen = Vec::new();
            while Instant::now() < until {
                let started = Instant::now();
                let answer = api.issue(body.clone()).await;
                assert!(answer.status < 300, "{answer:?}");
                seen.push((started, answer.text("id").to_owned()));
            }
            seen
        }
    }));
    let invalidations = async {
        let mut invalidated = Vec::new();
        while Instant::now() < until {
            let token = replicas[0].issue(body.clone()).await;
            let id = token.text("id").to_owned();
            let selector = match invalidated.len() % 3 {
                0 => json!({"reason": "used", "userId": "u-1"}),
                1 => json!({"reason": "used", "tokenString": token.token()}),
                _ => Value::Null,
            };
            let api = &replicas[invalidated.len() % 3];
            let answer = match selector {
                Value::Null => invalidate(api, &id, "used").await,
                selector => post(api, "/bank/tokens/invalidate", selector).await,
            };
            assert_eq!(answer.status, 200, "{answer:?}");
            invalidated.push((Instant::now(), id));
        }
        invalidated
    };
    let (seen, invalidated) = tokio::join!(requests, invalidations);
    let count = invalidated.len();
    assert!(count > 20, "only {count} invalidations");
    for (acknowledged, id) in &invalidated {
        let later = seen
            .iter()
            .flatten()
            .find(|(started, seen)| started > acknowledged && seen == id);
        assert!(
            later.is_none(),
            "{id} was handed out after its invalidation"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_are_served_while_ten_thousand_tokens_of_one_user_are_invalidated() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    world
        .db
        .execute(
            "INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                                 is_valid, ciphertext, key_id, fingerprint)
             SELECT 'many', gen_random_uuid(), '', 'bank-' || n, 0, 3600, now(), now() + '1 hour', now() + '1 hour',
                    true, 'x', 'k1', 'f' || n FROM generate_series(1, 10000) n;
             INSERT INTO slots (user_id, country, bank, access, token_id, usable_until)
             SELECT user_id, country, bank, access, id, ends_at FROM tokens",
        )
        .await
        .unwrap();
    let body = json!({"userId": "u-1"});
    replica.issue(body.clone()).await;
    let invalidation = post(
        &replica,
        "/bank/tokens/invalidate",
        json!({"reason": "requested", "userId": "many"}),
    );
    let (answer, served) = tokio::join!(
        invalidation,
        join_all((0..50).map(|_| replica.issue(body.clone())))
    );
    assert_eq!(answer.body, json!({"invalidated": 10_000}));
    assert!(served.iter().all(|answer| answer.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_members_are_named_and_scopes_are_checked() {
    let world = World::new().await;
    world
        .add_client(("reader", "x"), &[Scope::TokensRead])
        .await;
    world
        .add_client(("invalidator", "x"), &[Scope::TokensInvalidate])
        .await;
    let replica = world.replica().await;
    let id = replica
        .issue(json!({"userId": "u-1"}))
        .await
        .text("id")
        .to_owned();
    let one = format!("/bank/tokens/{id}/invalidate");
    let many = "/bank/tokens/invalidate";
    let lookup = "/bank/tokens/lookup";
    let long = "t".repeat(513);
    for (path, body, pointers) in [
        (one.as_str(), json!({}), vec!["#/reason"]),
        (
            &one,
            json!({"reason": "lost", "x": 1}),
            vec!["#/x", "#/reason"],
        ),
        (&one, json!({"reason": null}), vec!["#/reason"]),
        (&one, json!([]), vec!["#"]),
        (many, json!({"reason": "used"}), vec!["#"]),
        (
            many,
            json!({"reason": "used", "userId": "u", "tokenString": "t"}),
            vec!["#"],
        ),
        (
            many,
            json!({"reason": 1, "userId": ""}),
            vec!["#/reason", "#/userId"],
        ),
        (
            many,
            json!({"reason": "used", "userId": "u\u{0}"}),
            vec!["#/userId"],
        ),
        (
            many,
            json!({"reason": "used", "tokenString": long}),
            vec!["#/tokenString"],
        ),
        (lookup, json!({"tokenString": long}), vec!["#/tokenString"]),
        (lookup, json!({"tokenString": ""}), vec!["#/tokenString"]),
        (
            lookup,
            json!({"token": "t"}),
            vec!["#/token", "#/tokenString"],
        ),
    ] {
        let answer = post(&replica, path, body.clone()).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), pointers, "{path} {body}");
    }
    let control_characters = "\0".repeat(3);
    let body = json!({"tokenString": control_characters});
    post(&replica, lookup, body)
        .await
        .assert_problem(404, "not-found");
    let unknown = "/bank/tokens/0198b7a4-0000-7000-8000-000000000000/invalidate";
    post(&replica, unknown, json!({"reason": "used"}))
        .await
        .assert_problem(404, "not-found");
    let not_a_uuid = "/bank/tokens/1/invalidate";
    post(&replica, not_a_uuid, json!({"reason": "used"}))
        .await
        .assert_problem(404, "not-found");

    for (client, path, status) in [
        ("reader", one.as_str(), 403),
        ("reader", many, 403),
        ("reader", lookup, 400),
        ("invalidator", &one, 400),
        ("invalidator", many, 400),
        ("invalidator", lookup, 403),
    ] {
        let request = replica
            .request_by((client, "x"), Method::POST, path)
            .header("content-type", "application/json")
            .body("{}");
        let answer = send(request).await;
        assert_eq!(answer.status, status, "{client} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_of_a_token_string_is_invalidated() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    let same_token = Upstream::with("tokenString", "the-same-for-both");
    world.sandbox.script([same_token.clone(), same_token]);
    for user in ["u-1", "u-2"] {
        assert_eq!(
            replica.issue(json!({"userId": user})).await.token(),
            "the-same-for-both"
        );
    }
    let body = json!({"reason": "compromised", "tokenString": "the-same-for-both"});
    let answer = post(&replica, "/bank/tokens/invalidate", body).await;
    assert_eq!(answer.body, json!({"invalidated": 2}));
    assert_eq!(
        world
            .count("SELECT count(*) FROM tokens WHERE is_valid")
            .await,
        0
    );
}
