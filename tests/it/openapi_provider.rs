//! Our document beside the provider's own: the same request and answer, but for what is meant.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::document::document;

const THEIRS: &str = include_str!("fixtures/bank-tokens.openapi.yaml");

/// What the two say of the call, a rule a line: `request bank maxLength 32`.
fn rules(document: &Value) -> BTreeSet<String> {
    let call = &document["paths"]["/bank/tokens/"]["post"];
    let mut rules = BTreeSet::new();
    let scheme = call["security"][0]
        .as_object()
        .unwrap()
        .keys()
        .next()
        .unwrap();
    let scheme = &document["components"]["securitySchemes"][scheme];
    rules.insert(format!("security {} {}", scheme["type"], scheme["scheme"]));
    let body = &call["requestBody"]["content"]["application/json"]["schema"];
    tell("request", body, document, &mut rules);
    for (status, answer) in call["responses"].as_object().unwrap() {
        if status.starts_with('2') {
            let body = &answer["content"]["application/json"]["schema"];
            rules.insert(format!("status {status}"));
            tell("answer", body, document, &mut rules);
        }
    }
    rules
}

/// Adds the rules of a schema, however it is put.
fn tell(place: &str, schema: &Value, document: &Value, rules: &mut BTreeSet<String>) {
    for (keyword, value) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$ref" => {
                let target = document.pointer(&value.as_str().unwrap()[1..]).unwrap();
                tell(place, target, document, rules);
            }
            "allOf" | "anyOf" => {
                let parts = value.as_array().unwrap();
                parts
                    .iter()
                    .for_each(|part| tell(place, part, document, rules));
            }
            "properties" => {
                for (name, member) in value.as_object().unwrap() {
                    rules.insert(format!("{place} {name}"));
                    tell(&format!("{place} {name}"), member, document, rules);
                }
            }
            "required" => {
                let names = value.as_array().unwrap().iter();
                rules.extend(
                    names.map(|name| format!("{place} {} required", name.as_str().unwrap())),
                );
            }
            "type" => {
                let kinds = value
                    .as_array()
                    .cloned()
                    .unwrap_or_else(|| vec![value.clone()]);
                rules.extend(
                    kinds
                        .iter()
                        .map(|kind| format!("{place} {}", kind.as_str().unwrap())),
                );
            }
            // OpenAPI 3.0's word, which the provider uses in 3.1.
            "nullable" => {
                rules.insert(format!("{place} null"));
            }
            // Words for people, and what follows from the place.
            "description" | "examples" | "readOnly" | "writeOnly" => {}
            _ => {
                rules.insert(format!("{place} {keyword} {value}"));
            }
        }
    }
}

/// The rules that only the first has; of a member that only it has, no more than that it is there.
fn beyond<'a>(rules: &'a BTreeSet<String>, other: &'a BTreeSet<String>) -> Vec<&'a str> {
    let more: Vec<_> = rules.difference(other).map(String::as_str).collect();
    let is_of_new = |rule: &str| {
        let is_of = |member: &&str| {
            rule.strip_prefix(*member)
                .is_some_and(|rest| rest.starts_with(' '))
        };
        more.iter().any(is_of)
    };
    more.iter()
        .copied()
        .filter(|rule| !is_of_new(rule))
        .collect()
}

#[test]
fn our_call_is_the_providers_but_for_what_is_meant() {
    let ours = rules(&document());
    let theirs = rules(&yaml_serde::from_str(THEIRS).unwrap());
    assert!(
        theirs.contains("request lifetime maximum 2592000"),
        "{theirs:#?}"
    );
    let text = r#""^[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$""#;
    let (bank, answered_bank) = (
        format!("request bank pattern {text}"),
        format!("answer bank pattern {text}"),
    );
    let mut meant = [
        // Whose token it is.
        "request userId",
        // A token that is on record is handed out again.
        "status 200",
        // A member that is not known is refused.
        "request additionalProperties false",
        "request access additionalProperties false",
        // No control characters, and no white space at either end.
        "request bank minLength 1",
        &bank,
        // What an answer says besides,
        "answer expiresIn",
        "answer fingerprint",
        "answer id",
        "answer issuedAt",
        "answer lifetime",
        "answer outcome",
        "answer userId",
        "answer verificationUrl",
        // what it always says,
        "answer access required",
        "answer access accounts required",
        "answer access balances required",
        "answer access transactions required",
        "answer bank required",
        "answer country required",
        // and how.
        "answer bank minLength 1",
        &answered_bank,
        "answer tokenString maxLength 512",
        "answer tokenString minLength 1",
    ];
    meant.sort_unstable();
    assert_eq!(beyond(&ours, &theirs), meant);
    // Nothing has a default that is always there.
    let left_out = ["accounts", "balances", "transactions"]
        .map(|name| format!("answer access {name} default false"));
    assert_eq!(beyond(&theirs, &ours), left_out);
}
