//! Health endpoints, the `health` command, and HTTPS.

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::support::{ADMIN, Answer, Api, Process, Replica, World, eventually, run, send};

async fn get_readiness(api: &Api) -> Option<Answer> {
    Answer::of(api.anonymous(Method::GET, "/health/ready")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_authentication() {
    let world = World::new().await;
    let replica = world.replica().await;
    for path in [
        "/health/live",
        "/health/live/",
        "/health/ready",
        "/health/ready/",
    ] {
        let answer = send(replica.anonymous(Method::GET, path)).await;
        assert_eq!(
            (answer.status, answer.text("status")),
            (200, "ok"),
            "{path}: {answer:?}"
        );
        let head = send(replica.anonymous(Method::HEAD, path)).await;
        assert_eq!(head.status, 200, "{path}");
        replica
            .get(&format!("{path}?x=1"))
            .await
            .assert_problem(400, "validation");
    }
    let ready = get_readiness(&replica).await.unwrap();
    let checks = ready.body["checks"].as_object().unwrap();
    for check in ["database", "schema", "writer", "shutdown"] {
        assert_eq!(checks[check], "ok", "{checks:?}");
    }
}

/// Waits until readiness fails with exactly this check. Liveness must still be 200.
async fn wait_for_failed_check(replica: &Replica, check: &str) {
    let mut failed = None;
    eventually("readiness fails", async || {
        failed = get_readiness(replica)
            .await
            .filter(|answer| answer.status == 503);
        failed.is_some()
    })
    .await;
    let answer = failed.unwrap();
    for (name, state) in answer.body["checks"].as_object().unwrap() {
        assert_eq!(state != "ok", name == check, "{answer:?}");
    }
    assert_eq!(answer.text("status"), "unavailable");
    assert_eq!(replica.get("/health/live").await.status, 200);
}

async fn execute(world: &World, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&world.db).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_an_outdated_schema() {
    let world = World::new().await;
    let replica = world.replica().await;
    assert_eq!(get_readiness(&replica).await.unwrap().status, 200);
    let delete_newest =
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)";
    execute(&world, delete_newest).await;
    wait_for_failed_check(&replica, "schema").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_a_missing_partition() {
    let world = World::new().await;
    let replica = world.replica().await;
    let detach = "DO $$ DECLARE part regclass; BEGIN
        FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'audit_events'::regclass LOOP
            EXECUTE format('ALTER TABLE audit_events DETACH PARTITION %s', part);
        END LOOP; END $$";
    execute(&world, detach).await;
    wait_for_failed_check(&replica, "partitions").await;
    let refused = replica.issue(json!({"userId": "u"})).await;
    refused.assert_problem(503, "database-unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_warns_before_the_partitions_run_out() {
    let world = World::new().await;
    let replica = world.replica().await;
    let ready = get_readiness(&replica).await.unwrap();
    assert_eq!(ready.body["warnings"], json!([]), "{ready:?}");
    let detach_later = "DO $$ DECLARE part regclass; BEGIN
        FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'audit_events'::regclass
            AND inhrelid::regclass::text > 'audit_events_' || to_char(now() + interval '1 month', 'YYYY_MM') LOOP
            EXECUTE format('ALTER TABLE audit_events DETACH PARTITION %s', part);
        END LOOP; END $$";
    execute(&world, detach_later).await;
    eventually("readiness warns", async || {
        let ready = get_readiness(&replica).await.unwrap();
        let has_warning = ready.body["warnings"]
            .to_string()
            .contains("partitions for 1 month");
        has_warning && ready.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_and_a_key_enable_https() {
    let world = World::new().await;
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = std::env::temp_dir().join(format!("token-vendor-tls-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir(&folder).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let files = [
        ("TLS_CERT", cert.to_str().unwrap()),
        ("TLS_KEY", key.to_str().unwrap()),
    ];
    let replica = world.replica_with(&files).await;
    let address = replica.service.addr().to_string();
    let probe = [&files[..], &[("LISTEN_ADDR", &address)]].concat();
    let probed = run(&["health"], &world.variables(&probe)).await;
    assert_eq!(probed.code, 0, "{probed:?}");
    let named = ["health", "--listen", &address];
    let probed = run(&named, &world.variables(&files)).await;
    assert_eq!(probed.code, 0, "{probed:?}");
    let probe = [&files[..], &[("METRICS_ADDR", &*address)]].concat();
    let plain = run(&named, &world.variables(&probe)).await;
    assert_eq!(plain.code, 1, "METRICS_ADDR has no TLS: {plain:?}");
    std::fs::remove_dir_all(&folder).unwrap();

    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap()])
        .resolve("localhost", replica.service.addr())
        .build()
        .unwrap();
    let base = format!("https://localhost:{}", replica.service.addr().port());
    let post = client
        .post(format!("{base}/bank/tokens/"))
        .basic_auth(ADMIN.0, Some(ADMIN.1))
        .header("content-type", "application/json")
        .body(r#"{"userId": "u"}"#);
    let minted = Answer::of(post).await.expect("a response over TLS");
    assert_eq!(minted.status, 201, "{minted:?}");
    assert_ne!(
        Answer::of(replica.anonymous(Method::GET, "/health/live"))
            .await
            .map_or(0, |a| a.status),
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_can_have_an_address_of_their_own() {
    let world = World::new().await;
    let process = Process::serve(&world.variables(&[("METRICS_ADDR", "127.0.0.1:0")])).await;
    let announced = |line: &String| {
        let (_, address) = line.split_once("metrics and health are served address=")?;
        Some(address.trim().to_owned())
    };
    let operators = process.early.iter().find_map(announced).unwrap();
    let variables = world.variables(&[("METRICS_ADDR", &operators)]);
    let statuses = async |base: String| {
        let api = Api::at(base);
        let mut statuses = Vec::new();
        for path in ["/metrics", "/health/live", "/health/ready", "/openapi.json"] {
            statuses.push(send(api.anonymous(Method::GET, path)).await.status);
        }
        statuses
    };
    assert_eq!(statuses(process.base.clone()).await, [404, 404, 404, 200]);
    let api = Api::at(process.base.clone());
    let landing = send(api.anonymous(Method::GET, "/")).await;
    assert_eq!(landing.body["links"]["readiness"], json!(null));
    let page = api
        .anonymous(Method::GET, "/")
        .header("accept", "text/html");
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(
        page.contains("/docs/") && !page.contains("/health/ready"),
        "{page}"
    );
    let operators = format!("http://{operators}");
    assert_eq!(statuses(operators).await, [200, 200, 200, 404]);
    let ready = run(&["health"], &variables).await;
    assert_eq!(ready.code, 0, "{ready:?}");

    let taken = [("METRICS_ADDR", &*process.address().to_string())];
    let ended = run(&["serve"], &world.variables(&taken)).await;
    ended.refused(1, "METRICS_ADDR: 127.0.0.1");
    let wrong = run(&["check"], &world.variables(&[("METRICS_ADDR", "9100")])).await;
    wrong.refused(2, "METRICS_ADDR: must be an IP address and port");
}

/// Returns an address on which nothing listens.
fn unused_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_distinguishes_ready_not_ready_and_unreachable() {
    let world = World::new().await;
    let process = Process::serve(&world.variables(&[("SHUTDOWN_DELAY", "1h")])).await;
    let port = process.base.rsplit(':').next().unwrap();
    let variables = world.variables(&[("LISTEN_ADDR", &format!("0.0.0.0:{port}"))]);
    let ready = run(&["health"], &variables).await;
    assert_eq!((ready.code, ready.out.as_str()), (0, ""), "{ready:?}");

    process.signal(Signal::SIGTERM);
    let is_not_ready = async || run(&["health"], &variables).await.err.contains("503");
    eventually("readiness fails", is_not_ready).await;
    run(&["health"], &variables).await.refused(1, "503");

    let variables = world.variables(&[("LISTEN_ADDR", &unused_address())]);
    run(&["health"], &variables)
        .await
        .refused(1, "cannot be reached");
}
