//! I7: a 201 of the provider is accepted only if it matches the request and the provider's documentation.

use std::time::Duration;

use serde_json::{Value, json};
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::{Answer, World};
use crate::upstream_faults::{FAILED, assert_outcome, final_response, token_request};

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_upstream_response_gives_no_token() {
    let world = World::new().await;
    let replica = world.replica().await;
    let raw = |body: String| Upstream::Raw {
        status: 201,
        content_type: "application/json".into(),
        body,
    };
    let good = r#"{"tokenString":"t","expiration":"2099-01-01T00:00:00Z","isValid":true"#;
    let errors = [
        Upstream::Flood,
        raw("".into()),
        raw("<html>Created</html>".into()),
        raw("[]".into()),
        raw("null".into()),
        raw(good.into()),
        raw(format!("{good},\"isValid\":true}}")),
        raw(format!("{good},\"deep\":{}", "[".repeat(5000))),
        Upstream::without("tokenString"),
        Upstream::without("expiration"),
        Upstream::without("isValid"),
        Upstream::Expires { after_ms: -1_500 },
        Upstream::Expires {
            after_ms: -1_000_000_000,
        },
    ];
    let members = [
        ("padding", json!("x".repeat(64 * 1024))),
        ("country", json!("LV")),
        ("country", json!("lt")),
        ("country", Value::Null),
        ("bank", json!("SEB")),
        ("bank", json!("swedbank")),
        ("bank", Value::Null),
        ("access", json!({"balances": false})),
        ("access", json!({"accounts": true})),
        ("access", json!({"transactions": true})),
        ("access", json!("all")),
        ("isValid", json!(false)),
        ("isValid", json!("true")),
        ("isValid", json!(1)),
        ("tokenString", json!("")),
        ("tokenString", json!("t".repeat(513))),
        ("tokenString", json!(12345)),
        ("tokenString", Value::Null),
        ("expiration", json!("tomorrow")),
        ("expiration", json!("")),
        ("expiration", json!(1_900_000_000)),
        ("expiration", json!("2099-01-01")),
        ("expiration", json!("2099-01-01T00:00:00")),
        ("expiration", json!("2099-02-30T00:00:00Z")),
        ("expiration", json!("9999-12-31T23:59:59-14:00")),
        ("expiration", json!("9999-12-31T23:59:60Z")),
        ("expiration", json!("0000-01-01T00:00:00+14:00")),
        ("expiration", Value::Null),
    ];
    let members = members.map(|(member, value)| Upstream::with(member, value));
    for fault in errors.into_iter().chain(members) {
        let expected = final_response(FAILED, 1, 201);
        assert_outcome(&world, &replica, Duration::from_secs(8), fault, expected).await;
    }
    let tokens = world.count("SELECT count(*) FROM tokens").await;
    assert_eq!(tokens, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_additional_members_of_an_upstream_response_are_accepted() {
    let world = World::new().await;
    let replica = world.replica().await;
    let answers = [
        Upstream::without("country"),
        Upstream::without("bank"),
        Upstream::without("access"),
        Upstream::with("access", json!({"balances": true, "cards": true})),
        Upstream::with("access", Value::Null),
        Upstream::with("padding", "x".repeat(64_000)),
        Upstream::with("tokenString", "t".repeat(512)),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let context = format!("{answer:?}").chars().take(80).collect::<String>();
        world.sandbox.script([answer]);
        let answer: Answer = replica.issue(token_request(&number.to_string())).await;
        assert_eq!(answer.status, 201, "{context}: {:?}", answer.body["detail"]);
        assert_eq!(answer.body["access"]["balances"], true, "{context}");
    }
}
