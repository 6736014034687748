//! What the sandbox does as the provider does it.

mod scripted;

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap};
use reqwest::{Client, Method, RequestBuilder, Response, redirect};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::*;

async fn start(options: SandboxOptions) -> Sandbox {
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = SandboxOptions { listen, ..options };
    Sandbox::start(options).await.unwrap()
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none());
    builder.timeout(Duration::from_secs(10)).build().unwrap()
}

fn call(client: &Client, sandbox: &Sandbox, method: Method, path: &str) -> RequestBuilder {
    client
        .request(method, sandbox.base_url() + path)
        .basic_auth("sandbox-key", Some("sandbox-secret"))
        .header(CONTENT_TYPE, "application/json")
}

fn post(client: &Client, sandbox: &Sandbox, body: impl ToString) -> RequestBuilder {
    call(client, sandbox, Method::POST, "/bank/tokens/").body(body.to_string())
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

async fn status_and_identifier(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body = json_of(response).await;
    assert_eq!(body["severity"], "NOT_SEVERE");
    (status, body["identifier"].as_str().unwrap().to_owned())
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

fn date(headers: &HeaderMap) -> DateTime<Utc> {
    let text = headers[DATE].to_str().unwrap();
    DateTime::parse_from_rfc2822(text).unwrap().into()
}

async fn eventually(condition: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds");
}

#[tokio::test]
async fn mints_what_was_asked_and_records_it() {
    let sandbox = start(SandboxOptions::default()).await;
    let asked = json!({"lifetime": 60.0, "country": "LT", "bank": " Šiaulių ", "x": 1,
        "access": {"balances": true}});
    let request = post(&client(), &sandbox, &asked).header("traceparent", "00-1");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 201);
    let sent = date(response.headers());
    let body = json_of(response).await;

    let token = body["tokenString"].as_str().unwrap();
    assert!(token.len() == 40 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let expiration = body["expiration"].as_str().unwrap();
    assert_eq!(expiration.len(), "2026-11-22T10:39:08.092153Z".len());
    let life = time(&body["expiration"]) - sent;
    assert!((59..=61).contains(&life.num_seconds()), "{life}");
    assert_eq!(
        body,
        json!({"tokenString": token, "expiration": expiration, "isValid": true, "country": "LT",
            "bank": "Šiaulių",
            "access": {"accounts": false, "balances": true, "transactions": false}})
    );

    let [entry] = sandbox.ledger().try_into().unwrap();
    assert_eq!(entry.status, Some(201));
    assert_eq!(entry.token_string.as_deref(), Some(token));
    assert_eq!(entry.header("traceparent"), Some("00-1"));
    assert_eq!(entry.header("cookie"), None);
    assert_eq!(entry.body, asked.to_string());
    let request = entry.request.unwrap();
    assert_eq!(
        (request.lifetime, request.bank.as_deref()),
        (60, Some("Šiaulių"))
    );
    assert_eq!((sandbox.requests(), sandbox.minted()), (1, 1));
    sandbox.reset();
    assert_eq!((sandbox.requests(), sandbox.minted()), (0, 0));
    assert!(sandbox.ledger().is_empty());
    sandbox.stop().await;
}

#[tokio::test]
async fn refuses_as_the_provider_does() {
    let sandbox = start(SandboxOptions::default()).await;
    let client = client();
    let tokens = "/bank/tokens/";
    for (method, path, auth, expected) in [
        (Method::POST, "/bank/tokens", true, (404, "BAD_VALUE")),
        (Method::POST, "/", true, (404, "BAD_VALUE")),
        (Method::GET, tokens, true, (405, "METHOD_NOT_ALLOWED")),
        (Method::DELETE, tokens, true, (405, "METHOD_NOT_ALLOWED")),
        (Method::POST, tokens, false, (401, "UNAUTHORIZED")),
        (Method::GET, "/sandbox/ledger", false, (401, "UNAUTHORIZED")),
    ] {
        let url = sandbox.base_url() + path;
        let request = client.request(method, url);
        let secret = if auth { "sandbox-secret" } else { "wrong" };
        let request = request.basic_auth("sandbox-key", Some(secret));
        let (status, identifier) = status_and_identifier(request).await;
        assert_eq!((status, identifier.as_str()), expected, "{path}");
    }
    let nobody = client.post(sandbox.base_url() + tokens);
    assert_eq!(status_and_identifier(nobody).await.0, 401);
    let huge = post(&client, &sandbox, " ".repeat(1 << 21));
    assert_eq!(status_and_identifier(huge).await.0, 400);
    let broken = post(&client, &sandbox, "{");
    assert_eq!(status_and_identifier(broken).await.1, "JSON_ERROR");
    assert_eq!((sandbox.requests(), sandbox.minted()), (8, 0));
}

#[tokio::test]
async fn limits_and_fails_as_told() {
    let limited = start(SandboxOptions {
        hourly_limit: 2,
        ..Default::default()
    })
    .await;
    let client = client();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let response = post(&client, &limited, "{}").send().await.unwrap();
        assert!(!response.headers().contains_key("retry-after"));
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [201, 201, 429, 429]);
    limited.reset();
    let again = post(&client, &limited, "{}").send().await.unwrap();
    assert_eq!(again.status(), 201);

    let mut window = service::Changing::default();
    let now = Instant::now();
    let mut admit = |minute: u64| window.admit(2, now + Duration::from_secs(60 * minute));
    let admitted = [
        admit(0),
        admit(30),
        admit(59),
        admit(61),
        admit(118),
        admit(122),
    ];
    assert_eq!(admitted, [true, true, false, false, false, true]);

    let failing = start(SandboxOptions {
        fail_rate: 1.0,
        ..Default::default()
    })
    .await;
    let answer = status_and_identifier(post(&client, &failing, "{}")).await;
    assert_eq!(answer, (500, "INTERNAL_ERROR".into()));
    assert_eq!(failing.minted(), 0);
}

#[tokio::test]
async fn callers_who_hang_up_have_minted() {
    let sandbox = start(SandboxOptions {
        latency: Duration::from_secs(30),
        ..Default::default()
    })
    .await;
    let caller = tokio::spawn(post(&client(), &sandbox, "{}").send());
    eventually(async || sandbox.minted() == 1).await;
    caller.abort();
    let stopping = Instant::now();
    sandbox.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn dropping_it_stops_it() {
    let sandbox = start(SandboxOptions::default()).await;
    let addr = sandbox.addr();
    let taken = SandboxOptions {
        listen: addr,
        ..Default::default()
    };
    let error = Sandbox::start(taken).await.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(sandbox);
    eventually(async || TcpStream::connect(addr).await.is_err()).await;
}

#[tokio::test]
#[ignore = "takes 10,000 file descriptors and more"]
async fn copes_with_five_thousand_at_once() {
    let sandbox = start(SandboxOptions {
        latency: Duration::from_millis(100),
        ..Default::default()
    })
    .await;
    let client = client();
    for _ in 0..2 {
        let started = Instant::now();
        let calls = (0..5000).map(|_| post(&client, &sandbox, "{}").send());
        for response in join_all(calls).await {
            assert_eq!(response.unwrap().status(), 201);
        }
        println!("{:?}", started.elapsed());
    }
    assert_eq!(sandbox.minted(), 10_000);
}
