//! Who may call what, and which refusal comes first.

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use token_vendor::model::Scope;

use crate::support::{ADMIN, World, eventually, send, send_raw};

const PATH: &str = "/bank/tokens/";
const NOBODY: (&str, &str) = ("nobody", "x");

/// A request that is wrong in every way that its sender can be blamed for.
fn all_wrong(request: RequestBuilder) -> RequestBuilder {
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
async fn whoever_cannot_be_told_gets_one_and_the_same_401() {
    let world = World::new().await;
    world.add_client(("gone", "secret"), Scope::ALL).await;
    disable(&world, "gone").await;
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
        by("gone", "secret"),
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
        answer.is_problem(401, "unauthenticated");
        assert_eq!(
            answer.header("www-authenticate"),
            r#"Basic realm="token-vendor", charset="UTF-8""#
        );
        answer.body["requestId"] = Value::Null;
        answer.headers.remove("x-request-id");
        answer.headers.remove("date");
    }
    for answer in &answers {
        assert_eq!(
            (&answer.body, &answer.headers),
            (&answers[0].body, &answers[0].headers)
        );
    }
    assert_eq!(replica.get(PATH).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_own_scope() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    let one = format!("{PATH}{}", minted.text("id"));
    for scope in Scope::ALL {
        let client = (&*scope.name().replace(':', "-"), "secret");
        world.add_client(client, &[*scope]).await;
        let order = |request: RequestBuilder| {
            request
                .header("content-type", "application/json")
                .body(r#"{"userId": "u"}"#)
        };
        for (needed, request) in [
            (
                Scope::TokensIssue,
                order(replica.request_by(client, Method::POST, PATH)),
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
                answer.is_problem(403, "forbidden");
                assert!(!answer.body.to_string().contains(minted.token()));
            }
        }
    }
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_is_404_and_an_unknown_method_405_for_anybody() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (method, path) in [
        (Method::GET, "/"),
        (Method::DELETE, "/bank"),
        (Method::POST, "/bank/tokens//"),
        (Method::GET, "/bank/tokens/../tokens/x"),
        (Method::DELETE, "/bank/tokens/no-uuid?x=1"),
        (Method::GET, "/BANK/TOKENS/"),
        (Method::GET, "/health/live/x"),
        (Method::GET, "/health"),
        (Method::POST, "/%ff%00"),
    ] {
        send(all_wrong(replica.anonymous(method, path)))
            .await
            .is_problem(404, "not-found");
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
        let answer = send(all_wrong(replica.anonymous(method, path))).await;
        answer.is_problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), allow, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_run_in_the_contracts_order() {
    let world = World::new().await;
    let reader = ("reader", "secret");
    world.add_client(reader, &[Scope::TokensRead]).await;
    let replica = world.replica().await;
    let path = "/bank/tokens/?x=1";
    let post = |client| replica.request_by(client, Method::POST, path);
    let json = ("content-type", "application/json");
    let large = || "x".repeat(1 << 20);

    send(all_wrong(replica.anonymous(Method::POST, "/nothing?x=1")))
        .await
        .is_problem(404, "not-found");
    send(all_wrong(replica.anonymous(Method::PUT, path)))
        .await
        .is_problem(405, "method-not-allowed");
    send(all_wrong(replica.anonymous(Method::POST, path)))
        .await
        .is_problem(401, "unauthenticated");
    send(all_wrong(post(NOBODY)))
        .await
        .is_problem(401, "unauthenticated");
    send(all_wrong(post(reader)))
        .await
        .is_problem(403, "forbidden");
    send(all_wrong(post(ADMIN)))
        .await
        .is_problem(415, "unsupported-media-type");
    send(post(ADMIN).header(json.0, json.1).body(large()))
        .await
        .is_problem(413, "body-too-large");
    send(post(ADMIN).header(json.0, json.1).body("x"))
        .await
        .is_problem(400, "malformed");
    send(post(ADMIN).header(json.0, json.1).body("{}"))
        .await
        .is_problem(400, "validation");
    let no_list = replica.anonymous(Method::GET, "/bank/tokens/?limit=0");
    send(no_list).await.is_problem(401, "unauthenticated");
    assert_eq!(world.sandbox.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_its_limit_gets_429_after_403_and_before_415() {
    let world = World::new().await;
    let (issuer, reader) = (("issuer", "secret"), ("reader", "secret"));
    world.add_client(issuer, &[Scope::TokensIssue]).await;
    world.add_client(reader, &[Scope::TokensRead]).await;
    let replica = world.replica_with(&[("CLIENT_RATE_LIMIT", "2")]).await;
    let herd = async |client| {
        let requests =
            (0..30).map(|_| send(all_wrong(replica.request_by(client, Method::POST, PATH))));
        join_all(requests).await
    };
    for answer in herd(reader).await {
        answer.is_problem(403, "forbidden");
    }
    let (limited, taken): (Vec<_>, Vec<_>) = herd(issuer)
        .await
        .into_iter()
        .partition(|answer| answer.status == 429);
    assert!(!limited.is_empty() && taken.len() >= 2, "{}", limited.len());
    for answer in taken {
        answer.is_problem(415, "unsupported-media-type");
    }
    for answer in limited {
        answer.is_problem(429, "rate-limited");
        assert!(answer.retry_after().unwrap() >= 1);
    }
    // The limit of one is not that of another, and health has none.
    assert_eq!(replica.get(PATH).await.status, 200);
    assert!(
        join_all((0..30).map(|_| replica.get("/health/live")))
            .await
            .iter()
            .all(|answer| answer.status == 200)
    );
    eventually("there is room again", async || {
        send(all_wrong(replica.request_by(issuer, Method::POST, PATH)))
            .await
            .status
            == 415
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_disabled_or_added_in_the_database_is_noticed_by_a_running_replica() {
    let world = World::new().await;
    let replica = world.replica().await;
    let late = ("late", "secret");
    let status = async || {
        send(replica.request_by(late, Method::GET, PATH))
            .await
            .status
    };
    assert_eq!(status().await, 401);
    world.add_client(late, Scope::ALL).await;
    eventually("it is let in", async || status().await == 200).await;
    disable(&world, late.0).await;
    eventually("it is refused", async || status().await == 401).await;
    assert_eq!(replica.get(PATH).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_would_send_is_no_5xx() {
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
