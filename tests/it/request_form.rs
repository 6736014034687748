//! The form of a token request: body, media type, cache directives and query.

use futures_util::stream;
use reqwest::{Body, Method};
use serde_json::json;

use crate::support::{World, send, send_raw};

const PATH: &str = "/bank/tokens/";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_utf_8_json_is_malformed() {
    let world = World::new().await;
    let replica = world.replica().await;
    let deep_array = "[".repeat(8000) + &"]".repeat(8000);
    let deep_object = r#"{"a":"#.repeat(2000) + "1" + &"}".repeat(2000);
    let cases: [&[u8]; 15] = [
        b"",
        b" ",
        b"{",
        b"{\"userId\": \"u\"",
        b"{\"userId\": \"u\"} {}",
        b"{\"userId\": \"u\",}",
        b"{userId: \"u\"}",
        b"{\"userId\": \"a\nb\"}",
        b"{\"userId\": \"\\ud800\"}",
        b"{\"userId\": \"\xff\"}",
        b"{\"userId\": \"u\", \"lifetime\": NaN}",
        b"\xef\xbb\xbf{\"userId\": \"u\"}",
        b"userId=u",
        deep_array.as_bytes(),
        deep_object.as_bytes(),
    ];
    for body in cases {
        let answer = send(replica.post_body(PATH, body.to_vec())).await;
        answer.assert_problem(400, "malformed");
    }
    assert_eq!(world.sandbox.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_16_kib_is_too_large_with_and_without_a_content_length() {
    let world = World::new().await;
    let replica = world.replica().await;
    let valid = r#"{"userId": "u"}"#;
    let longest = valid.to_owned() + &" ".repeat(16 * 1024 - valid.len());
    let chunked = |body: &str| {
        let chunks: Vec<_> = body.as_bytes().chunks(4096).map(<[u8]>::to_vec).collect();
        Body::wrap_stream(stream::iter(
            chunks.into_iter().map(Ok::<_, std::io::Error>),
        ))
    };
    let megabyte = " ".repeat(1 << 20);
    for body in [longest.clone() + " ", megabyte] {
        send(replica.post_body(PATH, body.clone()))
            .await
            .assert_problem(413, "body-too-large");
        send(replica.post_body(PATH, chunked(&body)))
            .await
            .assert_problem(413, "body-too-large");
    }
    let declared = "POST /bank/tokens/ HTTP/1.1\r\nhost: x\r\nauthorization: Basic YWRtaW46YWRtaW4tc2VjcmV0\r\n\
                  content-type: application/json\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n";
    assert_eq!(send_raw(&replica.base, declared.as_bytes()).await.0, 413);
    assert_eq!(world.sandbox.requests(), 0);

    assert_eq!(
        send(replica.post_body(PATH, longest.clone())).await.status,
        201
    );
    assert_eq!(
        send(replica.post_body(PATH, chunked(&longest)))
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_application_json_without_encoding_is_accepted() {
    let world = World::new().await;
    let replica = world.replica().await;
    let post = || {
        replica
            .request(Method::POST, PATH)
            .body(r#"{"userId": "u"}"#)
    };
    let json = "application/json";
    let rejected = [
        post(),
        post().header("content-type", ""),
        post().header("content-type", "text/plain"),
        post().header("content-type", "text/json"),
        post().header("content-type", "application/jsonx"),
        post().header("content-type", "application/problem+json"),
        post().header("content-type", "application/x-www-form-urlencoded"),
        post()
            .header("content-type", json)
            .header("content-type", json),
        post()
            .header("content-type", json)
            .header("content-encoding", "gzip"),
        post()
            .header("content-type", json)
            .header("content-encoding", "identity"),
        post()
            .header("content-type", json)
            .header("content-encoding", "x"),
    ];
    for request in rejected {
        send(request)
            .await
            .assert_problem(415, "unsupported-media-type");
    }
    assert_eq!(world.sandbox.requests(), 0);
    for good in [json, "Application/JSON", "application/json; charset=utf-8"] {
        let answer = send(post().header("content-type", good)).await;
        assert!(matches!(answer.status, 200 | 201), "{good}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_min_fresh_is_rejected_and_other_directives_are_ignored() {
    let world = World::new().await;
    let replica = world.replica().await;
    for bad in [
        "min-fresh",
        "min-fresh=",
        "min-fresh=abc",
        "min-fresh=-1",
        "min-fresh=1.5",
        "min-fresh=101",
        "min-fresh=99999999999999999999",
        "no-cache, min-fresh=x",
        "MIN-FRESH=x",
    ] {
        let answer = replica
            .issue_with(json!({"userId": "u", "lifetime": 100}), bad)
            .await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), ["Cache-Control"], "{bad}");
    }
    let above_default_lifetime = replica
        .issue_with(json!({"userId": "u"}), "min-fresh=3601")
        .await;
    above_default_lifetime.assert_problem(400, "validation");
    assert_eq!(world.sandbox.requests(), 0);

    for good in [
        "min-fresh=0",
        "Min-Fresh=\"7\"",
        "max-age=0",
        "no-store",
        "only-if-cached, max-stale=x",
        "x=\"min-fresh=x\"",
        ",,",
    ] {
        let answer = replica
            .issue_with(json!({"userId": "u", "lifetime": 100}), good)
            .await;
        assert!(matches!(answer.status, 200 | 201), "{good}: {answer:?}");
    }
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn query_parameters_are_rejected_by_name() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (query, named) in [
        ("?x=1", &["x"][..]),
        ("?userId=u&lifetime=1", &["userId", "lifetime"]),
        ("?x", &["x"]),
        ("?%ff=1", &["%ff"]),
        ("?%00=1", &["\0"]),
    ] {
        let request = replica.post(&format!("/bank/tokens/{query}"), &json!({"userId": "u"}));
        let answer = send(request).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), named, "{query}");
    }
    assert_eq!(world.sandbox.requests(), 0);
    assert_eq!(
        send(replica.post("/bank/tokens/?", &json!({"userId": "u"})))
            .await
            .status,
        201
    );
}
