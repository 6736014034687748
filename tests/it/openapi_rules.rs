//! What the OpenAPI document says of a request is what the service takes.

use serde_json::json;

use crate::support::World;
use crate::support::document::{document, mistakes};

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_of_a_request_for_a_token_are_those_of_the_document() {
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
            let by_document = mistakes(&document, schema, &body);
            let answer = replica.issue(body.clone()).await;
            assert_eq!(
                answer.status != 400,
                by_document.is_none(),
                "{body}: {answer:?} {by_document:?}"
            );
        }
    }
    let nobody = replica.issue(json!({"country": "LT"})).await;
    assert_eq!(
        (
            nobody.status,
            mistakes(&document, schema, &json!({})).is_some()
        ),
        (400, true)
    );
}
