//! The sandbox: the provider's behaviour and the scripted faults.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, DATE};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

use token_vendor::dev::sandbox::{Answer, Sandbox, SandboxOptions};

use crate::support::eventually;

async fn start(change: impl FnOnce(&mut SandboxOptions)) -> Sandbox {
    let mut options = SandboxOptions::default();
    options.listen.set_port(0);
    change(&mut options);
    Sandbox::start(options).await.unwrap()
}

fn call(sandbox: &Sandbox, method: Method, path: &str, secret: &str) -> RequestBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().build().unwrap();
    let request = client.request(method, sandbox.base_url() + path);
    request.basic_auth("sandbox-key", Some(secret))
}

fn post(sandbox: &Sandbox, body: impl ToString) -> RequestBuilder {
    call(sandbox, Method::POST, "/bank/tokens/", "sandbox-secret")
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_string())
}

/// Returns the `Date` of the response and its body.
async fn read(response: Response) -> (Option<DateTime<Utc>>, Value) {
    let date = response.headers().get(DATE);
    let date = date.map(|value| DateTime::parse_from_rfc2822(value.to_str().unwrap()).unwrap());
    let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (date.map(|date| date.to_utc()), body)
}

fn expiration(body: &Value) -> DateTime<Utc> {
    body["expiration"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn mints_the_requested_token_and_records_the_request() {
    let sandbox = start(|_| {}).await;
    let request_body = json!({"lifetime": 60.0, "country": "LT", "bank": " Šiaulių ", "x": 1,
        "access": {"balances": true}});
    let request = post(&sandbox, &request_body).header("traceparent", "00-1");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 201);
    let (date, body) = read(response).await;

    let token = body["tokenString"].as_str().unwrap();
    assert!(token.len() == 40 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let text = body["expiration"].as_str().unwrap();
    assert_eq!(text.len(), "2026-11-22T10:39:08.092153Z".len());
    let life = expiration(&body) - date.unwrap();
    assert!((59..=61).contains(&life.num_seconds()), "{life}");
    assert_eq!(
        body,
        json!({"tokenString": token, "expiration": text, "isValid": true, "country": "LT",
            "bank": "Šiaulių",
            "access": {"accounts": false, "balances": true, "transactions": false}})
    );

    let [recorded] = sandbox.ledger().try_into().unwrap();
    assert_eq!(recorded.token_string.as_deref(), Some(token));
    assert_eq!(recorded.header("traceparent"), Some("00-1"));
    assert_eq!(recorded.body, request_body.to_string());
    assert_eq!((sandbox.requests(), sandbox.minted()), (1, 1));
    sandbox.reset();
    assert_eq!((sandbox.requests(), sandbox.minted()), (0, 0));
}

#[tokio::test]
async fn errors_match_the_provider() {
    let sandbox = start(|_| {}).await;
    let failing = start(|options| options.fail_rate = 1.0).await;
    let limited = start(|options| options.hourly_limit = 1).await;
    let get = |path, secret| call(&sandbox, Method::GET, path, secret);
    for (request, status, identifier) in [
        (get("/bank/tokens", "sandbox-secret"), 404, "BAD_VALUE"),
        (get("/bank/tokens/", "wrong"), 401, "UNAUTHORIZED"),
        (
            get("/bank/tokens/", "sandbox-secret"),
            405,
            "METHOD_NOT_ALLOWED",
        ),
        (post(&sandbox, " ".repeat(1 << 21)), 400, "BAD_VALUE"),
        (post(&sandbox, "{"), 400, "JSON_ERROR"),
        (post(&failing, "{}"), 500, "INTERNAL_ERROR"),
        (post(&limited, "{"), 400, "JSON_ERROR"),
        (post(&limited, "{}"), 429, "TOO_MANY_REQUESTS"),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        let (_, body) = read(response).await;
        assert_eq!(
            (&body["identifier"], &body["severity"]),
            (&json!(identifier), &json!("NOT_SEVERE"))
        );
    }
    assert_eq!(
        (sandbox.requests(), sandbox.minted(), failing.minted()),
        (5, 0, 0)
    );
}

#[tokio::test]
async fn a_request_whose_caller_hangs_up_mints_a_token() {
    let sandbox = start(|_| {}).await;
    sandbox.script([Answer::Hang]);
    let hung = post(&sandbox, "{}").timeout(Duration::from_millis(300));
    assert!(hung.send().await.unwrap_err().is_timeout());
    assert_eq!(sandbox.minted(), 1);
}

#[tokio::test]
async fn dropping_the_sandbox_stops_it() {
    let sandbox = start(|_| {}).await;
    let request = post(&sandbox, "{}");
    drop(sandbox);
    eventually("the sandbox has stopped", async || {
        request.try_clone().unwrap().send().await.is_err()
    })
    .await;
}

/// Checks the scripted clock directly, because a test of the service would pass with a correct clock too.
#[tokio::test]
async fn the_scripted_clock_is_ahead_or_missing() {
    let sandbox = start(|_| {}).await;
    sandbox.script([Answer::Skewed { ahead_secs: 600 }, Answer::WithoutDate]);
    let send = async || read(post(&sandbox, "{}").send().await.unwrap()).await;
    let (date, skewed) = send().await;
    let date = date.unwrap();
    assert!((date - Utc::now()).num_seconds() > 590);
    let life = (expiration(&skewed) - date).num_seconds();
    assert!((3599..=3601).contains(&life), "{life}");
    assert_eq!(send().await.0, None);
}

/// Requests the verification page of a token as a browser does, or finishes the verification.
async fn open_page(sandbox: &Sandbox, method: Method, token: &str) -> (u16, String) {
    let path = format!("/verify?token={token}");
    let request = call(sandbox, method, &path, "no credentials");
    let response = request.header("accept", "text/html").send().await.unwrap();
    let policy = response.headers()["content-security-policy"]
        .to_str()
        .unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn the_verification_page_shows_the_request_and_ends_the_token() {
    let sandbox = start(|_| {}).await;
    let body = json!({"country": "LT", "bank": "<b>Šiaulių</b>", "access": {"accounts": true, "transactions": true}});
    let token = |body: &Value| body["tokenString"].as_str().unwrap().to_owned();
    let (_, minted) = read(post(&sandbox, &body).send().await.unwrap()).await;
    let first = token(&minted);
    let (_, minted) = read(post(&sandbox, "{}").send().await.unwrap()).await;
    let second = token(&minted);

    let (status, page) = open_page(&sandbox, Method::GET, &first).await;
    assert_eq!(status, 200);
    for text in [
        "<dd>LT</dd>",
        "&#60;b&#62;Šiaulių",
        "<dd>accounts, transactions</dd>",
        "Finish verification",
        "sandbox",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    let (status, page) = open_page(&sandbox, Method::POST, &first).await;
    assert!(
        status == 200 && page.contains("Verification finished"),
        "{status} {page}"
    );
    for method in [Method::GET, Method::POST] {
        let (status, page) = open_page(&sandbox, method, &first).await;
        assert_eq!(status, 400);
        assert!(
            page.contains("TOKEN_NOT_VALID") && page.contains("already used"),
            "{page}"
        );
    }
    let response = call(&sandbox, Method::GET, &format!("/verify?token={first}"), "").send();
    let (_, error) = read(response.await.unwrap()).await;
    assert_eq!(error["identifier"], "TOKEN_NOT_VALID");

    let (status, page) = open_page(&sandbox, Method::GET, &second).await;
    assert!(
        status == 200 && page.contains("<dd>any bank</dd>") && page.contains("<dd>none</dd>"),
        "{page}"
    );
    for (unknown, why) in [("", "has not minted"), ("another", "has not minted")] {
        let (status, page) = open_page(&sandbox, Method::GET, unknown).await;
        assert!(status == 400 && page.contains(why), "{status} {page}");
    }
    sandbox.script([Answer::Expires { after_ms: -1 }]);
    let (_, minted) = read(post(&sandbox, "{}").send().await.unwrap()).await;
    let (status, page) = open_page(&sandbox, Method::POST, &token(&minted)).await;
    assert!(
        status == 400 && page.contains("has expired"),
        "{status} {page}"
    );
    assert_eq!(
        (sandbox.requests(), sandbox.minted()),
        (3, 3),
        "pages do not count"
    );
}
