//! Graceful shutdown: accepted requests and events are not lost, and the shutdown takes bounded time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use crate::support::{
    Answer, Api, KeepAlive, Process, World, eventually, http_client, program, send_signal,
    token_request,
};

/// Waits until the process exits and returns its exit code, or `None` if a signal ended it.
async fn exit_code(process: &mut Process) -> Option<i32> {
    let exit = tokio::time::timeout(Duration::from_secs(30), process.child.wait());
    exit.await.expect("the process exits").unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_fails_and_requests_are_served_during_the_shutdown_delay() {
    let world = World::new().await;
    let mut process = Process::serve(&world.variables(&[("SHUTDOWN_DELAY", "4s")])).await;
    let api = Api::at(process.base.clone());
    assert_eq!(api.get("/health/ready").await.status, 200);
    process.signal(Signal::SIGTERM);
    let mut last = None;
    eventually("readiness fails", async || {
        last = Answer::of(api.request(Method::GET, "/health/ready")).await;
        last.as_ref().is_some_and(|answer| answer.status == 503)
    })
    .await;
    let not_ready = last.unwrap();
    assert_eq!(not_ready.body["checks"]["shutdown"], "stopping");
    assert_eq!(not_ready.body["checks"]["database"], "ok");
    assert!(not_ready.retry_after().is_some());
    // A load balancer can open new connections until it sees the readiness.
    let minted = Api::at(process.base.clone())
        .issue(json!({"userId": "u"}))
        .await;
    assert_eq!(minted.status, 201, "{minted:?}");
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert_eq!(world.kinds().await, ["token.minted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_loses_no_request_and_no_event() {
    const USERS: u64 = 24;
    let world = World::new().await;
    let mut process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    let warm = api.issue(json!({"userId": "warm"})).await;
    world.sandbox.set_latency(Duration::from_secs(2));
    // Two requests for each user: one mints and one waits for the mint.
    let requests = (0..2 * USERS).map(|index| {
        let api = Api::at(process.base.clone());
        tokio::spawn(async move {
            api.issue(json!({"userId": format!("u-{}", index / 2)}))
                .await
        })
    });
    let requests: Vec<_> = requests.collect();
    eventually("all mints are under way", async || {
        world.sandbox.requests() == 1 + USERS
    })
    .await;
    assert_eq!(
        api.issue(json!({"userId": "warm"})).await.token(),
        warm.token()
    );
    process.signal(Signal::SIGTERM);

    let mut statuses: Vec<_> = join_all(requests)
        .await
        .into_iter()
        .map(|answer| answer.unwrap().status)
        .collect();
    statuses.sort_unstable();
    let count = USERS as usize;
    assert_eq!(statuses, [vec![200; count], vec![201; count]].concat());
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert_eq!(world.kinds().await.len() as u64, 2 + 2 * USERS);
    assert_eq!(
        world
            .count("SELECT count(*) FROM mints WHERE outcome <> 'minted'")
            .await,
        0
    );
    assert!(
        Answer::of(api.request(Method::GET, "/health/live"))
            .await
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_token_without_callers_is_recorded_before_exit() {
    let world = World::new().await;
    let mut process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    world.sandbox.set_latency(Duration::from_secs(2));
    let caller = tokio::spawn(async move { api.issue(json!({"userId": "u"})).await });
    world.upstream_is_called(1).await;
    let lock = world.lock_table("tokens IN ACCESS EXCLUSIVE MODE").await;
    caller
        .await
        .unwrap()
        .assert_problem(503, "database-unavailable");
    process.signal(Signal::SIGTERM);
    for message in [
        "readiness is off",
        "could not be recorded yet",
        "could not be recorded yet",
    ] {
        process.logs_with(message).await;
    }
    lock.rollback().await.unwrap();
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert_eq!(world.kinds().await, ["token.minted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_that_cannot_be_recorded_is_cut_off_at_the_shutdown_timeout() {
    let world = World::new().await;
    let mut process =
        Process::serve(&world.variables(&[("SHUTDOWN_TIMEOUT", "5s"), ("UPSTREAM_TIMEOUT", "3s")]))
            .await;
    world.sandbox.set_latency(Duration::from_secs(1));
    let api = Api::at(process.base.clone());
    let request = api.post("/bank/tokens/", &json!({"userId": "u"}));
    let caller = tokio::spawn(Answer::of(request));
    world.upstream_is_called(1).await;
    let lock = world.lock_table("tokens IN ACCESS EXCLUSIVE MODE").await;
    process.signal(Signal::SIGTERM);
    let message = "mints did not finish within SHUTDOWN_TIMEOUT";
    process.logs_with(message).await;
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert!(
        caller
            .await
            .unwrap()
            .is_none_or(|answer| answer.status >= 500)
    );
    lock.rollback().await.unwrap();
    assert_eq!(
        world
            .count("SELECT count(*) FROM mints WHERE outcome = 'open'")
            .await,
        1
    );
}

/// Selects the Postgres processes that serve the service.
const SERVICE_BACKENDS: &str = "application_name LIKE 'token-vendor%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_database_does_not_delay_the_shutdown() {
    let world = World::new().await;
    let settings = [("SHUTDOWN_TIMEOUT", "3s"), ("UPSTREAM_TIMEOUT", "1s")];
    let mut process = Process::serve(&world.variables(&settings)).await;
    let api = Api::at(process.base.clone());
    let _lock = world.lock_table("tokens IN ACCESS EXCLUSIVE MODE").await;
    let caller = tokio::spawn(Answer::of(api.request(Method::GET, "/bank/tokens/")));
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'tokens'::regclass";
    eventually("the list request waits for the lock", async || {
        world.count(waiting).await == 1
    })
    .await;
    world
        .signal_backends(SERVICE_BACKENDS, Signal::SIGSTOP)
        .await;
    process.signal(Signal::SIGTERM);
    let exit = tokio::time::timeout(Duration::from_secs(30), process.child.wait()).await;
    world
        .signal_backends(SERVICE_BACKENDS, Signal::SIGCONT)
        .await;
    assert!(exit.expect("the process exits").unwrap().code().is_some());
    let _ = caller.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_its_database_stops_at_sigterm() {
    let world = World::new().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let database = format!("postgres://{}/x", silent.local_addr().unwrap());
    let waiting = world.variables(&[("DATABASE_URL", &database), ("STARTUP_WAIT", "1h")]);
    let mut serve = program(&["serve", "--migrate"], &waiting).spawn().unwrap();
    let connection = silent.accept().await.unwrap();
    send_signal(&serve, Signal::SIGTERM);
    let exit = tokio::time::timeout(Duration::from_secs(30), serve.wait());
    assert!(exit.await.expect("the process exits").unwrap().success());
    drop(connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_closes_its_connection_from_sigterm_on() {
    let world = World::new().await;
    let process = Process::serve(&world.variables(&[("SHUTDOWN_DELAY", "1h")])).await;
    let api = Api::at(process.base.clone());
    let json = |body: &str| api.post_body("/bank/tokens/", body.to_owned());
    let requests = || {
        let paths = [
            "/health/live",
            "/health/ready",
            "/metrics",
            "/openapi.json",
            "/docs/",
            "/docs/none",
            "/none",
            "/console/",
            "/console/none",
            "/console/assets/console.css",
            "/bank/tokens/",
            "/bank/tokens/?x=1",
            "/audit/events",
            "/audit/events/export",
            "/audit/events/export?format=csv",
        ];
        let gets = paths.map(|path| api.request(Method::GET, path));
        let heads = paths.map(|path| api.request(Method::HEAD, path));
        let anonymous = paths.map(|path| api.anonymous(Method::GET, path));
        let others = [
            json(r#"{"userId": "u"}"#),
            json(r#"{"userId": "u"}"#),
            json("{}"),
            json("{"),
            json(&" ".repeat(17_000)),
            json("{}").header("content-encoding", "gzip"),
            json("").header("content-type", "text/plain"),
            api.request(Method::DELETE, "/bank/tokens/"),
            api.post("/bank/tokens/lookup", &json!({"tokenString": "none"})),
            api.post(
                "/bank/tokens/invalidate",
                &json!({"userId": "u", "reason": "used"}),
            ),
        ];
        gets.into_iter().chain(heads).chain(anonymous).chain(others)
    };
    assert_eq!(api.get("/health/live").await.header("connection"), "");
    process.signal(Signal::SIGTERM);
    eventually("readiness fails", async || {
        let ready = Answer::of(api.request(Method::GET, "/health/ready")).await;
        ready.is_some_and(|answer| answer.status == 503)
    })
    .await;
    for request in requests() {
        let request = request.build().unwrap();
        let (method, url) = (request.method().clone(), request.url().clone());
        let response = http_client().execute(request).await.unwrap();
        let connection = response.headers().get("connection");
        let connection = connection.map(|value| value.to_str().unwrap());
        assert_eq!(connection, Some("close"), "{method} {url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alive_callers_lose_no_request_during_the_shutdown_delay() {
    const CALLERS: usize = 40;
    let world = World::new().await;
    let mut process = Process::serve(&world.variables(&[("SHUTDOWN_DELAY", "2s")])).await;
    let address = process.address();
    Api::at(process.base.clone())
        .issue(json!({"userId": "u"}))
        .await;
    let warm = Arc::new(Barrier::new(CALLERS + 1));
    let callers: Vec<_> = (0..CALLERS)
        .map(|index| {
            let warm = warm.clone();
            tokio::spawn(async move {
                let mut connection = KeepAlive::open(address).await.unwrap();
                for count in 0.. {
                    // Some callers are idle for most of the time.
                    tokio::time::sleep(Duration::from_millis(20 * index as u64)).await;
                    let response = connection.exchange(&token_request("u")).await;
                    let (status, head) = response.expect("a response");
                    assert_eq!(status, 200);
                    if head.contains("connection: close") {
                        break;
                    }
                    if count == 1 {
                        warm.wait().await;
                    }
                }
            })
        })
        .collect();
    warm.wait().await;
    process.signal(Signal::SIGTERM);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(exit_code(&mut process).await, Some(0));
}

/// Forwards connections to the first of the addresses that accepts them, as a balancer that knows
/// neither HTTP nor readiness. Returns its own address.
async fn start_balancer(targets: Arc<Mutex<Vec<SocketAddr>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut caller, _) = listener.accept().await.unwrap();
            let targets = targets.lock().unwrap().clone();
            tokio::spawn(async move {
                for target in targets {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut caller, &mut server).await;
                        break;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_behind_a_tcp_balancer_lose_no_request_when_replicas_restart() {
    const CALLERS: usize = 16;
    let world = World::new().await;
    let variables = world.variables(&[("SHUTDOWN_DELAY", "500ms")]);
    let mut serving = Process::serve(&variables).await;
    Api::at(serving.base.clone())
        .issue(json!({"userId": "u"}))
        .await;
    let targets = Arc::new(Mutex::new(Vec::new()));
    let balancer = start_balancer(targets.clone()).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for _ in 0..5 {
        let next = Process::serve(&variables).await;
        *targets.lock().unwrap() = vec![serving.address(), next.address()];
        if callers.is_empty() {
            callers.extend((0..CALLERS).map(|_| {
                let is_done = is_done.clone();
                tokio::spawn(async move {
                    while !is_done.load(Ordering::Relaxed) {
                        let mut connection = KeepAlive::open(balancer).await.unwrap();
                        loop {
                            let response = connection.exchange(&token_request("u")).await;
                            let (status, head) = response.expect("a response");
                            assert_eq!(status, 200);
                            if head.contains("connection: close") || is_done.load(Ordering::Relaxed)
                            {
                                break;
                            }
                        }
                    }
                })
            }));
        }
        serving.signal(Signal::SIGTERM);
        assert_eq!(exit_code(&mut serving).await, Some(0));
        serving = next;
    }
    is_done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}
