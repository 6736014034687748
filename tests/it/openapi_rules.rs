//! The service accepts a token request if and only if the OpenAPI document allows it.

use serde_json::json;

use crate::support::World;
use crate::support::document::{document, mistakes};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_request_is_accepted_if_and_only_if_the_document_allows_it() {
    let document = document();
    let world = World::new().await;
    let replica = world.replica().await;
    let schema = &document["components"]["schemas"]["IssueToken"];
    let text = |length: usize| json!("ž".repeat(length));
    let values = [
        (
            "userId",
            vec![
                json!(null),
                json!(1),
                json!(""),
                text(128),
                text(129),
                json!("a\u{7f}"),
                json!("a\u{9f}b"),
                json!("a@b.lt"),
                json!("a@b"),
            ],
        ),
        (
            "lifetime",
            vec![
                json!(null),
                json!(-1),
                json!(0),
                json!(2_592_000),
                json!(2_592_001),
                json!(1.5),
                json!(60.0),
                json!("60"),
            ],
        ),
        (
            "country",
            vec![
                json!(null),
                json!("LT"),
                json!("lt"),
                json!("US"),
                json!(""),
            ],
        ),
        (
            "bank",
            vec![
                json!(null),
                json!(""),
                json!("a"),
                text(32),
                text(33),
                json!(" a"),
                json!("a "),
                json!("a b"),
                json!("\u{a0}a"),
                json!("a\nb"),
                json!("\u{85}"),
            ],
        ),
        (
            "access",
            vec![
                json!(null),
                json!({}),
                json!({"accounts": true}),
                json!({"accounts": null}),
                json!({"all": true}),
                json!([]),
            ],
        ),
        ("other", vec![json!(1)]),
    ];
    for (member, values) in values {
        for value in values {
            let mut body = json!({"userId": "u", "country": "LT"});
            body[member] = value;
            let violations = mistakes(&document, schema, &body);
            let response = replica.issue(body.clone()).await;
            assert_eq!(
                response.status != 400,
                violations.is_none(),
                "{body}: {response:?} {violations:?}"
            );
        }
    }
    let without_user = replica.issue(json!({"country": "LT"})).await;
    assert_eq!(
        (
            without_user.status,
            mistakes(&document, schema, &json!({})).is_some()
        ),
        (400, true)
    );
}

#[test]
fn no_request_schema_has_a_default() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let requests = schemas
        .iter()
        .filter(|(_, schema)| schema["additionalProperties"] == false);
    let mut names = Vec::new();
    for (name, schema) in requests {
        names.push(name.as_str());
        for (member, property) in schema["properties"].as_object().unwrap() {
            assert!(property.get("default").is_none(), "{name}.{member}");
        }
    }
    assert!(names.contains(&"IssueToken") && names.contains(&"RunCleanup"));
}
