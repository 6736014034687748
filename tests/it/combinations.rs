//! Two combinations never share a token.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::support::World;

/// The four parts as a caller may write them: absent, null, or a value, alike or nearly so.
fn orders() -> impl Strategy<Value = Value> {
    let user = prop::sample::select(vec![
        "u", "u ", " u", "U", "u1", "ü", "u\u{301}", "1u", "u'--", "u%00",
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
        let mut order = json!({ "userId": user });
        if let Some(country) = country {
            order["country"] = json!(country);
        }
        if let Some(bank) = bank {
            order["bank"] = json!(bank);
        }
        if let Some(access) = access {
            order["access"] = json!({});
            for (name, value) in ["accounts", "balances", "transactions"].iter().zip(access) {
                if let Some(value) = value {
                    order["access"][name] = json!(value);
                }
            }
        }
        order
    })
}

/// What makes two orders the same: absent is null, an absent permission is false.
fn key(order: &Value) -> (String, Value, Value, [bool; 3]) {
    let allowed = |name| order["access"][name].as_bool().unwrap_or(false);
    (
        order["userId"].as_str().unwrap().to_owned(),
        order["country"].clone(),
        order["bank"].clone(),
        [
            allowed("accounts"),
            allowed("balances"),
            allowed("transactions"),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn two_combinations_never_share_a_token_and_one_never_has_two() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let mut runner = TestRunner::default();
    let mut model: HashMap<_, String> = HashMap::new();
    let mut owners: HashMap<String, _> = HashMap::new();
    for n in 0..600 {
        let order = orders().new_tree(&mut runner).unwrap().current();
        let replica = if n % 2 == 0 { &one } else { &two };
        let answer = replica.issue(order.clone()).await;
        let expected = if model.contains_key(&key(&order)) {
            200
        } else {
            201
        };
        assert_eq!(answer.status, expected, "{order}: {answer:?}");
        let token = answer.token().to_owned();
        assert_eq!(
            model.entry(key(&order)).or_insert_with(|| token.clone()),
            &token,
            "{order}"
        );
        assert_eq!(
            owners.entry(token).or_insert_with(|| key(&order)),
            &key(&order)
        );
        for member in ["userId", "country", "bank"] {
            assert_eq!(answer.body[member], order[member], "{order}");
        }
    }
    assert!(
        model.len() > 100,
        "only {} combinations were tried",
        model.len()
    );
}
