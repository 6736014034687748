//! Compares the document with the provider's: request and response differ only where intended.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::document::document;

const PROVIDER_DOCUMENT: &str = include_str!("fixtures/bank-tokens.openapi.yaml");

/// Lists the rules of `POST /bank/tokens/`, such as `request bank maxLength 32`.
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
    add_rules("request", body, document, &mut rules);
    for (status, response) in call["responses"].as_object().unwrap() {
        if status.starts_with('2') {
            let body = &response["content"]["application/json"]["schema"];
            rules.insert(format!("status {status}"));
            add_rules("response", body, document, &mut rules);
        }
    }
    rules
}

/// Adds the rules of a schema. Equivalent schemas give the same rules, however they are written.
fn add_rules(prefix: &str, schema: &Value, document: &Value, rules: &mut BTreeSet<String>) {
    for (keyword, value) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$ref" => {
                let target = document.pointer(&value.as_str().unwrap()[1..]).unwrap();
                add_rules(prefix, target, document, rules);
            }
            "allOf" | "anyOf" => {
                let parts = value.as_array().unwrap();
                parts
                    .iter()
                    .for_each(|part| add_rules(prefix, part, document, rules));
            }
            "properties" => {
                for (name, member) in value.as_object().unwrap() {
                    rules.insert(format!("{prefix} {name}"));
                    add_rules(&format!("{prefix} {name}"), member, document, rules);
                }
            }
            "required" => {
                let names = value.as_array().unwrap().iter();
                rules.extend(
                    names.map(|name| format!("{prefix} {} required", name.as_str().unwrap())),
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
                        .map(|kind| format!("{prefix} {}", kind.as_str().unwrap())),
                );
            }
            // The provider's document uses this OpenAPI 3.0 keyword in 3.1.
            "nullable" => {
                rules.insert(format!("{prefix} null"));
            }
            // Documentation, and keywords that only say where a member is used.
            "description" | "examples" | "readOnly" | "writeOnly" => {}
            _ => {
                rules.insert(format!("{prefix} {keyword} {value}"));
            }
        }
    }
}

/// Lists the rules that only `rules` has. A member that only `rules` has is listed once, without its own rules.
fn added_rules<'a>(rules: &'a BTreeSet<String>, other: &'a BTreeSet<String>) -> Vec<&'a str> {
    let added: Vec<_> = rules.difference(other).map(String::as_str).collect();
    let is_of_added_member = |rule: &str| {
        added.iter().any(|member| {
            rule.strip_prefix(*member)
                .is_some_and(|keyword| keyword.starts_with(' '))
        })
    };
    added
        .iter()
        .copied()
        .filter(|rule| !is_of_added_member(rule))
        .collect()
}

#[test]
fn issue_token_differs_from_the_provider_only_as_intended() {
    let ours = rules(&document());
    let provider = rules(&yaml_serde::from_str(PROVIDER_DOCUMENT).unwrap());
    assert!(
        provider.contains("request lifetime maximum 2592000"),
        "{provider:#?}"
    );
    let pattern = r#""^[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$""#;
    let (bank, response_bank) = (
        format!("request bank pattern {pattern}"),
        format!("response bank pattern {pattern}"),
    );
    let mut intended = [
        // The user of the token.
        "request userId",
        // A token on record is reused.
        "status 200",
        // Unknown members are rejected.
        "request additionalProperties false",
        "request access additionalProperties false",
        // No control characters, and no white space at either end.
        "request bank minLength 1",
        &bank,
        // Additional members of the response.
        "response expiresIn",
        "response fingerprint",
        "response id",
        "response issuedAt",
        "response lifetime",
        "response outcome",
        "response userId",
        "response verificationUrl",
        // Members that every response contains.
        "response access required",
        "response access accounts required",
        "response access balances required",
        "response access transactions required",
        "response bank required",
        "response country required",
        // Limits of the response's members.
        "response bank minLength 1",
        &response_bank,
        "response tokenString maxLength 512",
        "response tokenString minLength 1",
    ];
    intended.sort_unstable();
    assert_eq!(added_rules(&ours, &provider), intended);
    // Required members need no default, and the defaults of requests are in the descriptions.
    let omitted = [
        "request access accounts default false",
        "request access balances default false",
        "request access transactions default false",
        "request lifetime default 3600",
        "response access accounts default false",
        "response access balances default false",
        "response access transactions default false",
    ];
    assert_eq!(added_rules(&provider, &ours), omitted);
}
