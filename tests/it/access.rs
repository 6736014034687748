//! Authentication, scopes, rate limits, and the order of these checks.

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use token_vendor::model::Scope;

use crate::support::{ADMIN, World, eventually, send, send_raw};

const PATH: &str = "/bank/tokens/";
const UNKNOWN: (&str, &str) = ("unknown", "x");

/// Adds a body that is too large and has the wrong media type.
fn with_invalid_body(request: RequestBuilder) -> RequestBuilder {
    request
        .header("content-type", "text/plain")
        .body("x".repeat(1 << 20))
}

async fn disable(world: &World, key: &str) {
    sqlx::query("UPDATE clients SET is_enabled = false, disabled_at = now() WHERE api_key = $1")
        .bind(key)
        .execute(&world.db)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failed_authentication_gets_the_same_response() {
    let world = World::new().await;
    world.add_client(("disabled", "secret"), Scope::ALL).await;
    disable(&world, "disabled").await;
    let replica = world.replica().await;
    let get = || replica.anonymous(Method::GET, PATH);
    let by = |key: &str, secret: &str| get().basic_auth(key, Some(secret));
    let long = "k".repeat(3000);
    let requests = [
        get(),
        by("unknown", "secret"),
        by(ADMIN.0, "wrong"),
        by(ADMIN.0, ""),
        by("ADMIN", ADMIN.1),
        by("disabled", "secret"),
        by("", ""),
        by("ad\0min", ADMIN.1),
        by("ž", "secret"),
        by(&long, "secret"),
        by("admin ", ADMIN.1),
        get().header("authorization", ""),
        get().header("authorization", "Basic"),
        get().header("authorization", "Basic !!!!"),
        get().header("authorization", "Basic YWRtaW4"),
        get().header("authorization", "Bearer YWRtaW46YWRtaW4tc2VjcmV0"),
        get().header("authorization", &b"Basic \xff"[..]),
        by(ADMIN.0, ADMIN.1).header("authorization", "Basic YWRtaW46YWRtaW4tc2VjcmV0"),
    ];
    let mut answers = join_all(requests.map(send)).await;
    for answer in &mut answers {
        answer.assert_problem(401, "unauthenticated");
        assert_eq!(
            answer.header("www-authenticate"),
            r#"Basic realm="token-vendor", charset="UTF-8""#
        );
        answer.body["requestId"] = Value::Null;
        answer.headers.remove("x-request-id");
        answer.headers.remove("date");
    }
    let [missing, wrong @ ..] = &answers[..] else {
        unreachable!();
    };
    assert!(missing.text("detail").starts_with("send HTTP Basic"));
    for answer in wrong {
        assert_eq!(
            (&answer.body, &answer.headers),
            (&wrong[0].body, &wrong[0].headers)
        );
    }
    assert_eq!(replica.get(PATH).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_requires_its_scope() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    let one = format!("{PATH}{}", minted.text("id"));
    for scope in Scope::ALL {
        let client = (&*scope.name().replace(':', "-"), "secret");
        world.add_client(client, &[*scope]).await;
        let with_body = |request: RequestBuilder| {
            request
                .header("content-type", "application/json")
                .body(r#"{"userId": "u"}"#)
        };
        for (needed, request) in [
            (
                Scope::TokensIssue,
                with_body(replica.request_by(client, Method::POST, PATH)),
            ),
            (
                Scope::TokensRead,
                replica.request_by(client, Method::GET, PATH),
            ),
            (
                Scope::TokensRead,
                replica.request_by(client, Method::GET, &one),
            ),
        ] {
            let answer = send(request).await;
            if *scope == needed {
                assert_eq!(answer.status, 200, "{scope}: {answer:?}");
            } else {
                answer.assert_problem(403, "forbidden");
                assert!(!answer.body.to_string().contains(minted.token()));
            }
        }
    }
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_rejected_before_authentication() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (method, path) in [
        (Method::GET, "/index.html"),
        (Method::DELETE, "/bank"),
        (Method::POST, "/bank/tokens//"),
        (Method::GET, "/bank/tokens/../tokens/x"),
        (Method::DELETE, "/bank/tokens/no-uuid?x=1"),
        (Method::GET, "/BANK/TOKENS/"),
        (Method::GET, "/health/live/x"),
        (Method::GET, "/health"),
        (Method::POST, "/%ff%00"),
    ] {
        send(with_invalid_body(replica.anonymous(method, path)))
            .await
            .assert_problem(404, "not-found");
    }
    let one = format!("{PATH}{}", uuid::Uuid::nil());
    let other = Method::from_bytes(b"BREW").unwrap();
    for (method, path, allow) in [
        (Method::DELETE, PATH, "GET, HEAD, POST"),
        (Method::PUT, "/bank/tokens?x=1", "GET, HEAD, POST"),
        (Method::OPTIONS, PATH, "GET, HEAD, POST"),
        (other, PATH, "GET, HEAD, POST"),
        (Method::POST, &one, "GET, HEAD"),
        (Method::POST, "/health/live", "GET, HEAD"),
        (Method::DELETE, "/health/ready/", "GET, HEAD"),
    ] {
        let answer = send(with_invalid_body(replica.anonymous(method, path))).await;
        answer.assert_problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), allow, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_run_in_the_documented_order() {
    let world = World::new().await;
    let reader = ("reader", "secret");
    world.add_client(reader, &[Scope::TokensRead]).await;
    let replica = world.replica().await;
    let path = "/bank/tokens/?x=1";
    let post = |client| replica.request_by(client, Method::POST, path);
    let json = ("content-type", "application/json");
    let large = || "x".repeat(1 << 20);

    send(with_invalid_body(
        replica.anonymous(Method::POST, "/nothing?x=1"),
    ))
    .await
    .assert_problem(404, "not-found");
    send(with_invalid_body(replica.anonymous(Method::PUT, path)))
        .await
        .assert_problem(405, "method-not-allowed");
    send(with_invalid_body(replica.anonymous(Method::POST, path)))
        .await
        .assert_problem(401, "unauthenticated");
    send(with_invalid_body(post(UNKNOWN)))
        .await
        .assert_problem(401, "unauthenticated");
    send(with_invalid_body(post(reader)))
        .await
        .assert_problem(403, "forbidden");
    send(with_invalid_body(post(ADMIN)))
        .await
        .assert_problem(415, "unsupported-media-type");
    send(post(ADMIN).header(json.0, json.1).body(large()))
        .await
        .assert_problem(413, "body-too-large");
    send(post(ADMIN).header(json.0, json.1).body("x"))
        .await
        .assert_problem(400, "malformed");
    send(post(ADMIN).header(json.0, json.1).body("{}"))
        .await
        .assert_problem(400, "validation");
    let invalid_list = replica.anonymous(Method::GET, "/bank/tokens/?limit=0");
    send(invalid_list)
        .await
        .assert_problem(401, "unauthenticated");
    assert_eq!(world.sandbox.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_limit_is_checked_after_the_scope_and_before_the_media_type() {
    let world = World::new().await;
    let (issuer, reader) = (("issuer", "secret"), ("reader", "secret"));
    world.add_client(issuer, &[Scope::TokensIssue]).await;
    world.add_client(reader, &[Scope::TokensRead]).await;
    let replica = world.replica_with(&[("CLIENT_RATE_LIMIT", "2")]).await;
    let send_30_requests = async |client| {
        let requests = (0..30).map(|_| {
            send(with_invalid_body(replica.request_by(
                client,
                Method::POST,
                PATH,
            )))
        });
        join_all(requests).await
    };
    for answer in send_30_requests(reader).await {
        answer.assert_problem(403, "forbidden");
    }
    let (limited, accepted): (Vec<_>, Vec<_>) = send_30_requests(issuer)
        .await
        .into_iter()
        .partition(|answer| answer.status == 429);
    assert!(
        !limited.is_empty() && accepted.len() >= 2,
        "{}",
        limited.len()
    );
    for answer in accepted {
        answer.assert_problem(415, "unsupported-media-type");
    }
    for answer in limited {
        answer.assert_problem(429, "rate-limited");
        assert!(answer.retry_after().unwrap() >= 1);
    }
    // Each client has its own limit. Health endpoints have none.
    assert_eq!(replica.get(PATH).await.status, 200);
    assert!(
        join_all((0..30).map(|_| replica.get("/health/live")))
            .await
            .iter()
            .all(|answer| answer.status == 200)
    );
    eventually("the client is below its limit again", async || {
        send(with_invalid_body(replica.request_by(
            issuer,
            Method::POST,
            PATH,
        )))
        .await
        .status
            == 415
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_replica_notices_added_and_disabled_clients() {
    let world = World::new().await;
    let replica = world.replica().await;
    let added = ("added", "secret");
    let status = async || {
        send(replica.request_by(added, Method::GET, PATH))
            .await
            .status
    };
    assert_eq!(status().await, 401);
    world.add_client(added, Scope::ALL).await;
    eventually("the client is accepted", async || status().await == 200).await;
    disable(&world, added.0).await;
    eventually("the client is rejected", async || status().await == 401).await;
    assert_eq!(replica.get(PATH).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_http_never_causes_a_5xx() {
    let world = World::new().await;
    let replica = world.replica().await;
    let head = "host: x\r\nauthorization: Basic YWRtaW46YWRtaW4tc2VjcmV0\r\nconnection: close\r\n";
    for line in [
        &b"GET /bank/tokens/?userId=\xff HTTP/1.1"[..],
        b"GET /bank/tokens/\xff HTTP/1.1",
        b"GET /bank/tokens/?userId=a#b HTTP/1.1",
        b"GET bank/tokens/ HTTP/1.1",
        b"GET * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT x:1 HTTP/1.1",
        b"GET http://x/bank/tokens/?limit=0 HTTP/1.1",
        b"GET /bank/tokens/?limit=0 HTTP/1.0",
        b"GET /bank/tokens/ HTTP/9.9",
        b"\0",
    ] {
        let request = [line, b"\r\n", head.as_bytes(), b"\r\n"].concat();
        let (status, answer) = send_raw(&replica.base, &request).await;
        assert!(status < 500, "{line:?}: {answer}");
    }
    let chunks = "transfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n";
    let request = format!("POST /bank/tokens/ HTTP/1.1\r\n{head}{chunks}");
    assert_eq!(send_raw(&replica.base, request.as_bytes()).await.0, 400);
    assert_eq!(replica.get(PATH).await.status, 200);
}
