//! Property test: different combinations never share a token.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::support::World;

/// Generates bodies of token requests. Members are absent, null, or one of several similar values.
fn token_requests() -> impl Strategy<Value = Value> {
    let user = prop::sample::select(vec![
        "u", "u  1", "u 1", "U", "u1", "ü", "u\u{301}", "1u", "u'--", "u%00",
    ]);
    let country = prop::option::of(prop::option::of(prop::sample::select(vec![
        "LT", "LV", "EE",
    ])));
    let bank = prop::option::of(prop::option::of(prop::sample::select(vec![
        "LT",
        "u",
        "any",
        "null",
        "Swedbank",
        "swedbank",
        "Swed bank",
        "é",
        "e\u{301}",
    ])));
    let access = prop::option::of(prop::array::uniform3(prop::option::of(any::<bool>())));
    (user, country, bank, access).prop_map(|(user, country, bank, access)| {
        let mut body = json!({ "userId": user });
        if let Some(country) = country {
            body["country"] = json!(country);
        }
        if let Some(bank) = bank {
            body["bank"] = json!(bank);
        }
        if let Some(access) = access {
            body["access"] = json!({});
            for (name, value) in ["accounts", "balances", "transactions"].iter().zip(access) {
                if let Some(value) = value {
                    body["access"][name] = json!(value);
                }
            }
        }
        body
    })
}

/// Returns the combination of a body. An absent member equals null, and an absent permission is false.
fn combination(body: &Value) -> (String, Value, Value, [bool; 3]) {
    let allowed = |name| body["access"][name].as_bool().unwrap_or(false);
    (
        body["userId"].as_str().unwrap().to_owned(),
        body["country"].clone(),
        body["bank"].clone(),
        [
            allowed("accounts"),
            allowed("balances"),
            allowed("transactions"),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_combination_has_exactly_one_token_of_its_own() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let mut runner = TestRunner::default();
    let mut tokens: HashMap<_, String> = HashMap::new();
    let mut owners: HashMap<String, _> = HashMap::new();
    for n in 0..600 {
        let body = token_requests().new_tree(&mut runner).unwrap().current();
        let replica = if n % 2 == 0 { &one } else { &two };
        let answer = replica.issue(body.clone()).await;
        let expected = if tokens.contains_key(&combination(&body)) {
            200
        } else {
            201
        };
        assert_eq!(answer.status, expected, "{body}: {answer:?}");
        let token = answer.token().to_owned();
        assert_eq!(
            tokens
                .entry(combination(&body))
                .or_insert_with(|| token.clone()),
            &token,
            "{body}"
        );
        assert_eq!(
            owners.entry(token).or_insert_with(|| combination(&body)),
            &combination(&body)
        );
        for member in ["userId", "country", "bank"] {
            assert_eq!(answer.body[member], body[member], "{body}");
        }
    }
    assert!(
        tokens.len() > 100,
        "only {} combinations were tried",
        tokens.len()
    );
}
