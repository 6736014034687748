//! That each scripted answer is what a caller sees.

use reqwest::header::LOCATION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// The whole answer as it came, until the sandbox closes the connection.
async fn raw(sandbox: &Sandbox) -> String {
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    let request = "POST /bank/tokens/ HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\
                   authorization: Basic c2FuZGJveC1rZXk6c2FuZGJveC1zZWNyZXQ=\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn scripted_answers_reach_the_caller() {
    let sandbox = start(SandboxOptions::default()).await;
    let client = client();
    let send = || async { post(&client, &sandbox, "{}").send().await };
    sandbox.script([
        Answer::status(402),
        Answer::with("bank", "Other"),
        Answer::without("expiration"),
        Answer::Raw {
            status: 200,
            content_type: "text/html".into(),
            body: "x".repeat(70_000),
        },
        Answer::Redirect {
            location: "http://127.0.0.1:1/".into(),
        },
        Answer::Expires { after_ms: -5_000 },
        Answer::Skewed { ahead_secs: 600 },
    ]);
    assert_eq!(send().await.unwrap().status(), 402);
    assert_eq!(sandbox.minted(), 0);
    assert_eq!(json_of(send().await.unwrap()).await["bank"], "Other");
    let body = json_of(send().await.unwrap()).await;
    assert!(body.get("expiration").is_none() && body["isValid"] == true);
    let raw_body = send().await.unwrap();
    assert_eq!(raw_body.status(), 200);
    assert_eq!(raw_body.headers()[CONTENT_TYPE], "text/html");
    assert_eq!(raw_body.bytes().await.unwrap().len(), 70_000);
    let redirect = send().await.unwrap();
    assert_eq!(redirect.status(), 302);
    assert_eq!(redirect.headers()[LOCATION], "http://127.0.0.1:1/");
    let past = json_of(send().await.unwrap()).await;
    assert!(time(&past["expiration"]) < Utc::now());
    let skewed = send().await.unwrap();
    let its_now = date(skewed.headers());
    assert!((its_now - Utc::now()).num_seconds() > 590);
    let life = time(&json_of(skewed).await["expiration"]) - its_now;
    assert!((3599..=3601).contains(&life.num_seconds()), "{life}");
    assert_eq!((sandbox.minted(), sandbox.scripted()), (6, 0));
}

#[tokio::test]
async fn answers_can_be_lost_late_slow_or_endless() {
    let sandbox = start(SandboxOptions::default()).await;
    let client = client();
    let send = || async { post(&client, &sandbox, "{}").send().await };
    let not_http = Answer::Verbatim {
        text: "HTTP/1.1 2".into(),
    };
    sandbox.script([Answer::Reset, not_http, Answer::WithoutDate]);
    assert_eq!(raw(&sandbox).await, "");
    assert_eq!(raw(&sandbox).await, "HTTP/1.1 2");
    let (head, body) = {
        let text = raw(&sandbox).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (
            head.to_lowercase(),
            serde_json::from_str::<Value>(body).unwrap(),
        )
    };
    assert!(head.starts_with("http/1.1 201") && !head.contains("date:"));
    assert_eq!(body["isValid"], true);

    sandbox.script([Answer::WithoutDate, Answer::Reset]);
    let dateless = send().await.unwrap();
    assert!(!dateless.headers().contains_key(DATE));
    assert_eq!(json_of(dateless).await["isValid"], true);
    assert!(send().await.unwrap_err().is_request());

    sandbox.set_latency(Duration::from_millis(50));
    sandbox.script([
        Answer::Normal.late(Duration::from_millis(100)),
        Answer::Drip { pause_ms: 1 },
        Answer::Flood,
        Answer::Hang,
    ]);
    let started = Instant::now();
    assert_eq!(send().await.unwrap().status(), 201);
    assert!(started.elapsed() >= Duration::from_millis(150));
    sandbox.set_latency(Duration::ZERO);
    let started = Instant::now();
    let body = json_of(send().await.unwrap()).await;
    assert_eq!(body["isValid"], true);
    assert!(started.elapsed() >= Duration::from_millis(150));
    let mut flood = send().await.unwrap();
    let mut bytes = 0;
    while bytes < 1 << 20 {
        bytes += flood.chunk().await.unwrap().unwrap().len();
    }
    drop(flood);
    let hung = post(&client, &sandbox, "{}").timeout(Duration::from_secs(1));
    assert!(hung.send().await.unwrap_err().is_timeout());
    assert_eq!(sandbox.minted(), 9);
    assert_eq!(sandbox.ledger()[8].status, None);
    // Neither the flood nor the hang holds up what follows.
    assert_eq!(send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn default_answers_stay_until_changed() {
    let sandbox = start(SandboxOptions::default()).await;
    let client = client();
    sandbox.set_default(Answer::status(503));
    sandbox.script([Answer::Normal]);
    for expected in [201, 503, 503] {
        let response = post(&client, &sandbox, "{}").send().await.unwrap();
        assert_eq!(response.status(), expected);
    }
    sandbox.clear_default();
    let response = post(&client, &sandbox, "{}").send().await.unwrap();
    assert_eq!(response.status(), 201);
}

#[tokio::test]
async fn script_and_ledger_work_over_http() {
    let sandbox = start(SandboxOptions::default()).await;
    let client = client();
    let script = |body: Value| {
        call(&client, &sandbox, Method::POST, "/sandbox/script")
            .body(body.to_string())
            .send()
    };
    let answers = json!([
        {"answer": "override", "set": {"isValid": false}},
        {"answer": "late", "by_ms": 1, "then": {"answer": "reset"}},
    ]);
    assert_eq!(script(answers).await.unwrap().status(), 204);
    let wrong = script(json!([{"answer": "explode"}])).await.unwrap();
    assert_eq!(wrong.status(), 400);
    let changed = post(&client, &sandbox, "{}").send().await.unwrap();
    assert_eq!(json_of(changed).await["isValid"], false);
    assert!(post(&client, &sandbox, "{}").send().await.is_err());

    let ledger = || call(&client, &sandbox, Method::GET, "/sandbox/ledger").send();
    let body = json_of(ledger().await.unwrap()).await;
    assert_eq!((&body["requests"], &body["minted"]), (&json!(2), &json!(2)));
    assert_eq!(body["entries"][0]["status"], 201);
    assert_eq!(body["entries"][0]["request"]["lifetime"], 3600);
    assert_eq!(body["entries"][1]["status"], Value::Null);
    let reset = call(&client, &sandbox, Method::DELETE, "/sandbox/ledger");
    assert_eq!(reset.send().await.unwrap().status(), 204);
    assert_eq!(json_of(ledger().await.unwrap()).await["entries"], json!([]));
}
