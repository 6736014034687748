//! The body and the headers of responses.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::dev::sandbox;
use uuid::Uuid;

use crate::support::{World, send};

fn members(body: &Value) -> Vec<&str> {
    let mut names: Vec<_> = body
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names
}

fn time(body: &Value, member: &str) -> DateTime<Utc> {
    let text = body[member].as_str().unwrap();
    assert!(text.ends_with('Z'), "{text}");
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_response_has_exactly_the_documented_members() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "lifetime": 600, "country": "LT", "bank": "Swedbank", "access": {"accounts": true}});
    let minted = replica.issue(body.clone()).await;
    let reused = replica.issue(body).await;
    minted.assert_minted("fwd=uri-miss; stored");
    reused.assert_reused(&minted);
    let expected = json!({"userId": "u-1", "isValid": true, "country": "LT", "bank": "Swedbank", "lifetime": 600,
        "access": {"accounts": true, "balances": false, "transactions": false}});
    for answer in [&minted, &reused] {
        let body = &answer.body;
        assert_eq!(
            members(body),
            [
                "access",
                "bank",
                "country",
                "expiration",
                "expiresIn",
                "fingerprint",
                "id",
                "isValid",
                "issuedAt",
                "lifetime",
                "outcome",
                "tokenString",
                "userId",
                "verificationUrl"
            ]
        );
        for (member, value) in expected.as_object().unwrap() {
            assert_eq!(body[member], *value);
        }
        assert_eq!(
            Uuid::parse_str(answer.text("id"))
                .unwrap()
                .get_version_num(),
            7
        );
        assert!(
            (500..=600).contains(&body["expiresIn"].as_u64().unwrap()),
            "{body}"
        );
        let life = time(body, "expiration") - time(body, "issuedAt");
        assert!(
            (TimeDelta::seconds(590)..=TimeDelta::seconds(600)).contains(&life),
            "{body}"
        );
        assert_eq!(answer.text("fingerprint").len(), 64);
        assert!(!answer.text("fingerprint").contains(answer.token()));
        assert_eq!(
            answer.text("verificationUrl"),
            format!(
                "https://bank-verification.ui.idenfy.com/?token={}",
                answer.token()
            )
        );
        assert_eq!(answer.header("content-type"), "application/json");
    }
    for member in ["expiration", "issuedAt", "fingerprint"] {
        assert_eq!(minted.body[member], reused.body[member], "{member}");
    }
    assert_eq!(
        minted.header("location"),
        format!("/bank/tokens/{}", minted.text("id"))
    );
    assert_eq!(reused.header("location"), "");
    assert_eq!(
        replica.get(minted.header("location")).await.text("id"),
        minted.text("id")
    );
    assert_eq!(
        world.sandbox.ledger()[0].token_string.as_deref(),
        Some(minted.token())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_in_the_verification_url_is_percent_encoded() {
    let world = World::new().await;
    let token = "a+b/c=ž &?#%~-._";
    world
        .sandbox
        .script([sandbox::Answer::with("tokenString", token)]);
    let replica = world
        .replica_with(&[("VERIFICATION_BASE_URL", "https://verify.example/go?t=")])
        .await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(minted.token(), token);
    assert_eq!(
        minted.text("verificationUrl"),
        "https://verify.example/go?t=a%2Bb%2Fc%3D%C5%BE%20%26%3F%23%25~-._"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printable_request_id_is_echoed_and_any_other_is_replaced() {
    let world = World::new().await;
    let replica = world.replica().await;
    let longest = "x".repeat(128);
    let send_id = async |id: &[u8]| {
        let request = replica.request(Method::GET, "/health/live");
        send(request.header("x-request-id", id))
            .await
            .header("x-request-id")
            .to_owned()
    };
    for valid in ["r-1", "a b~!\"{}", &longest] {
        assert_eq!(send_id(valid.as_bytes()).await, valid);
    }
    for invalid in [
        &b""[..],
        b"a\tb",
        "ž".as_bytes(),
        "x".repeat(129).as_bytes(),
    ] {
        assert_eq!(
            Uuid::parse_str(&send_id(invalid).await)
                .unwrap()
                .get_variant(),
            uuid::Variant::RFC4122
        );
    }
    assert_ne!(send_id(b"").await, send_id(b"").await);
    let twice = replica.request(Method::GET, "/health/live");
    let twice = twice
        .header("x-request-id", "a")
        .header("x-request-id", "b");
    assert_eq!(send(twice).await.header("x-request-id").len(), 36);

    let request = replica.post("/bank/tokens/", &json!({"userId": "u"}));
    let issued = send(request.header("x-request-id", "own-7")).await;
    assert_eq!(issued.header("x-request-id"), "own-7");
    let events = world
        .count("SELECT count(*) FROM audit_events WHERE request_id = 'own-7'")
        .await;
    assert_eq!(events, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_the_common_headers() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    let id = minted.text("id").to_owned();
    let answers = [
        minted,
        replica.issue(json!({"userId": "u"})).await,
        replica.issue(json!({})).await,
        replica.get("/bank/tokens/").await,
        replica.get(&format!("/bank/tokens/{id}")).await,
        replica.get("/health/live").await,
        replica.get("/health/ready").await,
        replica.get("/nothing").await,
        replica.get("/metrics").await,
        replica.get("/openapi.json").await,
        replica.get("/docs/").await,
        replica.get("/console/").await,
        replica.get("/console/nothing").await,
        replica.get("/audit/events/export").await,
        send(replica.request(Method::DELETE, "/bank/tokens/")).await,
        send(replica.anonymous(Method::GET, "/bank/tokens/")).await,
    ];
    for answer in answers {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(
            answer.header("x-content-type-options"),
            "nosniff",
            "{answer:?}"
        );
        assert!(!answer.header("x-request-id").is_empty(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_works_with_and_without_a_trailing_slash() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = send(replica.post("/bank/tokens", &json!({"userId": "u"}))).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    send(replica.post("/bank/tokens/", &json!({"userId": "u"})))
        .await
        .assert_reused(&minted);
    let one = format!("/bank/tokens/{}", minted.text("id"));
    for path in [
        "/bank/tokens",
        one.as_str(),
        "/health/live",
        "/health/ready",
    ] {
        let without = replica.get(path).await;
        let with = replica.get(&format!("{path}/")).await;
        assert_eq!((without.status, with.status), (200, 200), "{path}");
        assert_eq!(without.body, with.body, "{path}");
    }
    assert_eq!(replica.get("/bank/tokens?limit=1").await.status, 200);
    assert_eq!(replica.get("/bank/tokens/?limit=1").await.status, 200);
}
