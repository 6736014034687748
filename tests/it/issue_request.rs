//! Validation of the members of a token request.

use serde_json::{Value, json};

use crate::support::{Answer, World, send};

const PATH: &str = "/bank/tokens/";

/// Sends each body. Expects 400 `validation` with exactly these pointers, and no upstream call.
async fn assert_invalid(cases: &[(&str, &[&str])]) {
    let world = World::new().await;
    let replica = world.replica().await;
    for (body, pointers) in cases {
        let answer = send(replica.post_body(PATH, body.to_string())).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), *pointers, "{body}");
    }
    assert_eq!(world.sandbox.requests(), 0);
    assert_eq!(world.count("SELECT count(*) FROM mints").await, 0);
}

/// Sends each body and expects a new token. Returns the responses.
async fn issue_each(bodies: impl IntoIterator<Item = String>) -> Vec<Answer> {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut answers = Vec::new();
    for body in bodies {
        let answer = send(replica.post_body(PATH, body.clone())).await;
        assert_eq!(answer.status, 201, "{body}: {answer:?}");
        answers.push(answer);
    }
    assert_eq!(world.sandbox.requests(), answers.len() as u64);
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn user_ids_have_1_to_128_characters_and_no_control_characters() {
    let longest = "ž".repeat(128);
    let good = ["u", "u 1", "a@b", "a/b?c#d%", "用户", &longest];
    for (id, answer) in good
        .iter()
        .zip(issue_each(good.map(|id| json!({"userId": id}).to_string())).await)
    {
        assert_eq!(answer.text("userId"), *id);
    }

    let over = json!({"userId": "u".repeat(129)}).to_string();
    let over_in_bytes_too = json!({"userId": "ž".repeat(129)}).to_string();
    let bad = [
        "{}",
        r#"{"userId": null}"#,
        r#"{"userId": 7}"#,
        r#"{"userId": true}"#,
        r#"{"userId": ["u"]}"#,
        r#"{"userId": {}}"#,
        r#"{"userId": ""}"#,
        r#"{"userId": "\u0000"}"#,
        r#"{"userId": "a\u0000b"}"#,
        r#"{"userId": "a\nb"}"#,
        r#"{"userId": "\u007f"}"#,
        r#"{"userId": "\u0085"}"#,
        r#"{"userId": "jonas@example.com"}"#,
        &over,
        &over_in_bytes_too,
    ];
    assert_invalid(&bad.map(|body| (body, &["#/userId"][..]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lifetimes_are_integers_from_0_to_30_days() {
    let good = [
        ("0", 0),
        ("-0", 0),
        ("0.0", 0),
        ("60", 60),
        ("3600", 3600),
        ("3600.0", 3600),
        ("1e3", 1000),
        ("1.5e1", 15),
        ("36000E-1", 3600),
        ("2592000", 2_592_000),
    ];
    let bodies =
        good.map(|(text, _)| format!(r#"{{"userId": "life {text}", "lifetime": {text}}}"#));
    for ((text, seconds), answer) in good.iter().zip(issue_each(bodies).await) {
        assert_eq!(answer.body["lifetime"], *seconds, "{text}");
    }
    let answers = issue_each([r#"{"userId": "u"}"#.into()]).await;
    assert_eq!(answers[0].body["lifetime"], 3600);

    let bad = [
        r#""3600""#,
        "3600.5",
        "-1",
        "-0.5",
        "2592001",
        "2592000.5",
        "1e300",
        "null",
        "true",
        "[]",
        "{}",
    ];
    let bodies = bad.map(|text| format!(r#"{{"userId": "u", "lifetime": {text}}}"#));
    assert_invalid(
        &bodies
            .each_ref()
            .map(|body| (body.as_str(), &["#/lifetime"][..])),
    )
    .await;
    // The parser cannot represent this number, so the error has no pointer to the member.
    assert_invalid(&[(r#"{"userId": "u", "lifetime": 1e400}"#, &["#"])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn countries_are_null_or_one_of_the_28_of_the_provider() {
    let codes = [
        "AT", "BE", "BG", "HR", "CY", "DK", "EE", "FI", "FR", "DE", "GR", "HU", "IS", "IE", "IT",
        "LV", "LT", "LU", "MT", "NL", "NO", "PL", "PT", "RO", "SK", "SI", "ES", "SE",
    ];
    let bodies = codes.map(|code| json!({"userId": "u", "country": code}).to_string());
    for (code, answer) in codes.iter().zip(issue_each(bodies).await) {
        assert_eq!(answer.text("country"), *code);
    }
    let answers = issue_each([json!({"userId": "u", "country": null}).to_string()]).await;
    assert_eq!(answers[0].body["country"], Value::Null);

    let bad = [
        r#""lt""#,
        r#""Lt""#,
        r#""LT ""#,
        r#""""#,
        r#""US""#,
        r#""GB""#,
        r#""LTU""#,
        r#""\u0000""#,
        r#""L\u0000""#,
        "1",
        "true",
        "[]",
        r#"["LT"]"#,
        "{}",
    ];
    let bodies = bad.map(|text| format!(r#"{{"userId": "u", "country": {text}}}"#));
    assert_invalid(
        &bodies
            .each_ref()
            .map(|body| (body.as_str(), &["#/country"][..])),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn banks_have_1_to_32_code_points_and_no_surrounding_white_space() {
    let longest = [
        "ž".repeat(32),
        "🏦".repeat(32),
        "e\u{301}".repeat(16),
        "b".repeat(32),
    ];
    let mut good: Vec<&str> = vec!["B", "Šiaulių bankas", "A  B", "\u{200b}"];
    good.extend(longest.iter().map(String::as_str));
    let bodies = good
        .iter()
        .map(|bank| json!({"userId": "u", "bank": bank}).to_string());
    for (bank, answer) in good.iter().zip(issue_each(bodies).await) {
        assert_eq!(answer.text("bank"), *bank);
    }
    let answers = issue_each([json!({"userId": "u", "bank": null}).to_string()]).await;
    assert_eq!(answers[0].body["bank"], Value::Null);

    let bad = [
        json!("ž".repeat(33)),
        json!("🏦".repeat(33)),
        json!("b".repeat(33)),
        json!(""),
        json!(" "),
        json!(" B"),
        json!("B "),
        json!("B\u{a0}"),
        json!("\u{3000}B"),
        json!("B\n"),
        json!("A\tB"),
        json!("\0"),
        json!("A\0B"),
        json!("A\u{80}B"),
        json!(7),
        json!(false),
        json!(["B"]),
        json!({}),
    ];
    let bodies = bad.map(|bank| json!({"userId": "u", "bank": bank}).to_string());
    assert_invalid(
        &bodies
            .each_ref()
            .map(|body| (body.as_str(), &["#/bank"][..])),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn access_is_an_object_of_booleans_that_default_to_false() {
    let none = json!({"accounts": false, "balances": false, "transactions": false});
    let answers = issue_each([
        r#"{"userId": "absent"}"#.into(),
        r#"{"userId": "empty", "access": {}}"#.into(),
        r#"{"userId": "u", "access": {"balances": true}}"#.into(),
        r#"{"userId": "u", "access": {"accounts": true, "balances": true, "transactions": true}}"#
            .into(),
    ])
    .await;
    assert_eq!(answers[0].body["access"], none);
    assert_eq!(answers[1].body["access"], none);
    assert_eq!(
        answers[2].body["access"],
        json!({"accounts": false, "balances": true, "transactions": false})
    );

    assert_invalid(&[
        (r#"{"userId": "u", "access": null}"#, &["#/access"]),
        (r#"{"userId": "u", "access": true}"#, &["#/access"]),
        (r#"{"userId": "u", "access": []}"#, &["#/access"]),
        (r#"{"userId": "u", "access": [true, true, true]}"#, &["#/access"]),
        (r#"{"userId": "u", "access": "accounts"}"#, &["#/access"]),
        (r#"{"userId": "u", "access": {"accounts": 1}}"#, &["#/access/accounts"]),
        (r#"{"userId": "u", "access": {"accounts": null}}"#, &["#/access/accounts"]),
        (r#"{"userId": "u", "access": {"accounts": "true"}}"#, &["#/access/accounts"]),
        (r#"{"userId": "u", "access": {"Accounts": true}}"#, &["#/access/Accounts"]),
        (
            r#"{"userId": "u", "access": {"accounts": 0, "balances": "", "transactions": {}, "x": 1}}"#,
            &["#/access/x", "#/access/accounts", "#/access/balances", "#/access/transactions"],
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_duplicate_members_are_named() {
    assert_invalid(&[
        (r#"{"userId": "u", "userID": "u"}"#, &["#/userID"]),
        (r#"{"userId": "u", "a/b~c ž": 1}"#, &["#/a~1b~0c%20%C5%BE"]),
        (r#"{"userId": "u", "\u0000": 1}"#, &["#/%00"]),
        (r#"{"userId": "u", "tokenString": "t"}"#, &["#/tokenString"]),
        (r#"{"userId": "u", "userId": "u"}"#, &["#/userId"]),
        (r#"{"userId": "u", "user\u0049d": "u"}"#, &["#/userId"]),
        (
            r#"{"userId": "u", "country": null, "country": "LT"}"#,
            &["#/country"],
        ),
        (r#"{"userId": "u", "bank": "A", "bank": "A"}"#, &["#/bank"]),
        (
            r#"{"userId": "u", "lifetime": 1, "lifetime": 1}"#,
            &["#/lifetime"],
        ),
        (
            r#"{"userId": "u", "access": {}, "access": {}}"#,
            &["#/access"],
        ),
        (
            r#"{"userId": "u", "access": {"accounts": true, "accounts": true}}"#,
            &["#/access/accounts"],
        ),
        ("null", &["#"]),
        ("[]", &["#"]),
        (r#""userId""#, &["#"]),
        ("7", &["#"]),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_response_names_all_invalid_fields() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "", "lifetime": -1, "country": "lt", "bank": " ", "access": {"accounts": 1}, "x": 1});
    let request = replica.post("/bank/tokens/?y=1&min-fresh=2", &body);
    let answer = send(request.header("cache-control", "min-fresh=abc")).await;
    answer.assert_problem(400, "validation");
    let mut named = answer.pointers();
    named.sort_unstable();
    assert_eq!(
        named,
        [
            "#/access/accounts",
            "#/bank",
            "#/country",
            "#/lifetime",
            "#/userId",
            "#/x",
            "Cache-Control",
            "min-fresh",
            "y"
        ]
    );
    for error in answer.body["errors"].as_array().unwrap() {
        assert!(!error["detail"].as_str().unwrap().is_empty());
        assert_eq!(error.as_object().unwrap().len(), 2, "{error}");
    }
    assert_eq!(world.sandbox.requests(), 0);
}
