//! I8: no secret appears in a log, a response or a column, and no header of the caller reaches the provider.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;
use token_vendor::dev::sandbox::Answer as Upstream;
use token_vendor::model::Scope;

use crate::support::proxy::{PROXY_CREDENTIALS, Proxy};
use crate::support::{ADMIN, Api, Process, World, eventually, send};

const USER: &str = "user-that-no-log-contains";
const WRONG_SECRET: &str = "wrong-secret-of-a-caller";
const CALLER_HEADER: &str = "caller-header-value";
const UPSTREAM: (&str, &str) = ("sandbox-key", "sandbox-secret");

/// Causes successes and errors of all kinds. Returns the responses as text.
async fn send_all_kinds_of_requests(world: &World, api: &Api) -> Vec<String> {
    let token_request =
        |suffix: &str| json!({"userId": format!("{USER}{suffix}"), "bank": "Swedbank"});
    let minted = api.issue(token_request("")).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    assert_eq!(api.issue(token_request("")).await.status, 200);
    let record = api
        .get(&format!("/bank/tokens/{}", minted.text("id")))
        .await;
    let list = api.get(&format!("/bank/tokens/?userId={USER}")).await;
    assert_eq!((record.status, list.status), (200, 200));
    let mut answers = vec![record, list];

    let echo = format!("{} {} are invalid", UPSTREAM.0, UPSTREAM.1);
    let basic = basic_of(UPSTREAM);
    let token = minted.token().to_owned();
    let with_token = |status, identifier: &str, message: &str| Upstream::Raw {
        status,
        content_type: "application/json".into(),
        body: json!({"identifier": identifier, "message": message}).to_string(),
    };
    let message = format!("{token} is not valid");
    for (number, fault) in [
        Upstream::error(401, "UNAUTHORIZED", &echo),
        Upstream::error(400, "BAD_VALUE", format!("not with Basic {basic}")),
        Upstream::error(
            400,
            "BAD_VALUE",
            format!("not through {}", PROXY_CREDENTIALS.1),
        ),
        Upstream::error(
            400,
            "BAD_VALUE",
            format!("not with {}", basic_of(PROXY_CREDENTIALS)),
        ),
        Upstream::Raw {
            status: 402,
            content_type: "text/html".into(),
            body: format!("<h1>Basic {basic}</h1>"),
        },
        with_token(400, &token, "Bad value."),
        with_token(401, "UNAUTHORIZED", &message),
        with_token(404, &token, &message),
        Upstream::with("country", "LV"),
        Upstream::with("expiration", "never"),
        Upstream::Reset,
        Upstream::Redirect {
            location: format!("http://{}:{}@127.0.0.1:1/", UPSTREAM.0, UPSTREAM.1),
        },
    ]
    .into_iter()
    .enumerate()
    {
        world.sandbox.script([fault]);
        answers.push(api.issue(token_request(&number.to_string())).await);
    }

    answers.push(
        api.issue(json!({"userId": USER, "tokenString": token}))
            .await,
    );
    answers.push(api.issue(json!({"userId": {"tokenString": token}})).await);
    answers.push(
        api.get(&format!("/bank/tokens/?userId={USER}&tokenString={token}"))
            .await,
    );
    answers.push(api.get(&format!("/bank/tokens/?cursor={token}")).await);
    answers.push(api.get(&format!("/bank/tokens/{token}")).await);
    answers.push(api.get(&format!("/nowhere/{token}?{token}")).await);
    let malformed = format!("{{\"userId\": \"{USER}\", {token}");
    answers.push(send(api.post_body("/bank/tokens/", malformed)).await);
    for (key, secret) in [(ADMIN.0, WRONG_SECRET), ("unknown", ADMIN.1)] {
        let request = api.anonymous(Method::GET, "/bank/tokens/");
        let answer = send(request.basic_auth(key, Some(secret))).await;
        answer.assert_problem(401, "unauthenticated");
        answers.push(answer);
    }
    let reader = api
        .anonymous(Method::POST, "/bank/tokens/")
        .basic_auth("reader", Some(WRONG_SECRET));
    answers.push(send(reader).await);
    let traced = api
        .post("/bank/tokens/", &token_request("traced"))
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .header("tracestate", format!("vendor={CALLER_HEADER}"))
        .header("baggage", format!("who={CALLER_HEADER}"))
        .header("cookie", CALLER_HEADER)
        .header("x-request-id", CALLER_HEADER)
        .header("x-forwarded-for", CALLER_HEADER);
    assert_eq!(send(traced).await.status, 201);
    answers.iter().map(|answer| format!("{answer:?}")).collect()
}

/// Returns all secrets of the test, each with a description.
fn collect_secrets(world: &World, variables: &[(String, String)]) -> Vec<(String, String)> {
    let mut secrets: Vec<(String, String)> = vec![
        ("the client's secret".into(), ADMIN.1.into()),
        ("a wrong secret".into(), WRONG_SECRET.into()),
        ("the upstream's key".into(), UPSTREAM.0.into()),
        ("the upstream's secret".into(), UPSTREAM.1.into()),
        ("the proxy's username".into(), PROXY_CREDENTIALS.0.into()),
        ("the proxy's password".into(), PROXY_CREDENTIALS.1.into()),
        ("the proxy's encoded password".into(), "proxy%2F".into()),
    ];
    for credentials in [ADMIN, UPSTREAM, PROXY_CREDENTIALS, (ADMIN.0, WRONG_SECRET)] {
        let description = format!("the credentials of {}", credentials.0);
        secrets.push((description, basic_of(credentials)));
    }
    for (name, value) in variables {
        if name == "TOKEN_KEYS" || name == "FINGERPRINT_KEY" {
            let key = value.rsplit(':').next().unwrap();
            secrets.push((name.clone(), key.into()));
            secrets.push((name.clone(), hex(&BASE64_STANDARD.decode(key).unwrap())));
        }
    }
    let tokens = world
        .sandbox
        .ledger()
        .into_iter()
        .filter_map(|entry| entry.token_string);
    secrets.extend(tokens.map(|token| ("a token".into(), token)));
    secrets
}

/// Encodes credentials for HTTP Basic.
fn basic_of((key, secret): (&str, &str)) -> String {
    BASE64_STANDARD.encode(format!("{key}:{secret}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Asserts that no line contains a secret.
#[track_caller]
fn assert_no_secret_in(secrets: &[(String, String)], place: &str, lines: &[String]) {
    for (description, secret) in secrets {
        if let Some(line) = lines.iter().find(|line| line.contains(secret.as_str())) {
            panic!("{description} is in {place}: {line}");
        }
    }
}

/// Returns every row of every table as JSON, with bytes as hex.
async fn read_all_rows(world: &World) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT quote_ident(table_name) FROM information_schema.tables
         WHERE table_schema = 'public' AND table_type = 'BASE TABLE'",
    )
    .fetch_all(&world.db)
    .await
    .unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let query = format!("SELECT '{table} ' || row_to_json(t)::text FROM {table} t");
        let found = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(query));
        rows.extend(found.fetch_all(&world.db).await.unwrap());
    }
    rows
}

async fn assert_no_secret_leaks(log_format: &str) {
    let world = World::new().await;
    world
        .add_client(("reader", WRONG_SECRET), &[Scope::TokensRead])
        .await;
    let proxy = Proxy::start().await;
    let variables = world.variables(&[
        ("UPSTREAM_PROXY", &proxy.url()),
        ("RUST_LOG", "trace"),
        ("LOG_FORMAT", log_format),
        ("MINT_COOLDOWN", "0s"),
    ]);
    let mut process = Process::serve(&variables).await;
    let answers = send_all_kinds_of_requests(&world, &Api::at(process.base.clone())).await;
    process.signal(Signal::SIGTERM);
    let mut logs = process.early.clone();
    while let Some(line) = process.logs.recv().await {
        logs.push(line);
    }
    assert!(process.child.wait().await.unwrap().success());

    let mut secrets = collect_secrets(&world, &variables);
    assert!(secrets.len() > 12, "{secrets:?}");
    assert_no_secret_in(&secrets, "a response", &answers);
    let rows = read_all_rows(&world).await;
    assert!(
        rows.iter().any(|row| row.contains(USER)),
        "the rows include the user"
    );
    assert_no_secret_in(&secrets, "a column", &rows);
    let as_bytes = secrets
        .iter()
        .map(|(description, text)| (description.clone(), hex(text.as_bytes())));
    assert_no_secret_in(&as_bytes.collect::<Vec<_>>(), "a column as bytes", &rows);
    secrets.push(("a user".into(), USER.into()));
    assert!(logs.len() > 50, "{logs:?}");
    assert_no_secret_in(&secrets, "the log", &logs);

    assert!(!proxy.requests().is_empty());
    for entry in world.sandbox.ledger() {
        let basic = format!("Basic {}", basic_of(UPSTREAM));
        assert_eq!(entry.header("authorization"), Some(&*basic));
        let names: Vec<&str> = entry.headers.iter().map(|(name, _)| &**name).collect();
        for name in [
            "traceparent",
            "tracestate",
            "baggage",
            "cookie",
            "x-request-id",
            "proxy-authorization",
        ] {
            assert!(!names.contains(&name), "{names:?}");
        }
        let sent = format!("{entry:?}");
        for private in [CALLER_HEADER, USER, ADMIN.1] {
            assert!(!sent.contains(private), "{sent}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_logs_contain_no_secret() {
    assert_no_secret_leaks("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_contain_no_secret() {
    assert_no_secret_leaks("json").await;
}

/// Counts the copies of a text in the writable memory of a process.
#[cfg(target_os = "linux")]
fn count_copies(pid: i32, text: &str) -> usize {
    use std::os::unix::fs::FileExt;

    const PAGE: usize = 4096;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let mut content = vec![0; usize::try_from(end - start).unwrap()];
        // A region can end meanwhile, and the kernel does not show all of them.
        if memory.read_exact_at(&mut content, start).is_err() {
            continue;
        }
        for from in (0..content.len()).step_by(PAGE) {
            // Most pages are empty, and only this comparison is fast in a debug build.
            if content[from..from + PAGE] != [0; PAGE] {
                let end = content.len().min(from + PAGE + text.len() - 1);
                let windows = content[from..end].windows(text.len());
                found += windows.filter(|part| *part == text.as_bytes()).count();
            }
        }
    }
    found
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn memory_has_no_invalidated_expired_or_reported_token() {
    let world = World::new().await;
    let process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    let short = json!({"userId": "short", "lifetime": 2});
    let mut gone = Vec::new();
    for body in [json!({"userId": "invalidated"}), short.clone()] {
        let token = api.issue(body).await.token().to_owned();
        // The cache has one, the read buffer of hyper one, and the write buffer of actix two, one of them in the link.
        let copies = count_copies(process.pid(), &token);
        assert!((1..=4).contains(&copies), "{copies} copies");
        gone.push(token);
    }
    // Another replica decrypts the token instead.
    let other = Process::serve(&world.variables(&[])).await;
    let other_api = Api::at(other.base.clone());
    let reused = other_api.issue(json!({"userId": "invalidated"})).await;
    assert_eq!(reused.token(), gone[0]);
    let copies = count_copies(other.pid(), &gone[0]);
    assert!((1..=3).contains(&copies), "{copies} copies");

    let reported = "a-token-of-another-service-0123456789";
    for token in [&*gone[0], reported] {
        let body = json!({"reason": "compromised", "tokenString": token});
        let answer = send(api.post("/bank/tokens/invalidate", &body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    gone.push(reported.into());
    // The cache drops a token when its combination is requested again.
    api.issue(json!({"userId": "invalidated"})).await;
    eventually("the token expires", async || {
        api.issue(short.clone()).await.token() != gone[1]
    })
    .await;

    // Other requests overwrite the buffers of the libraries.
    let mut user = 0;
    for token in &gone {
        let mut copies = count_copies(process.pid(), token);
        for _ in 0..20 {
            if copies == 0 {
                break;
            }
            for _ in 0..50 {
                user += 1;
                api.issue(json!({"userId": format!("user-{user}")})).await;
            }
            copies = count_copies(process.pid(), token);
        }
        assert_eq!(copies, 0, "{token}");
    }
}
