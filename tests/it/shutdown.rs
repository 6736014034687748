//! Graceful shutdown: accepted requests and events are not lost, and the shutdown takes bounded time.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Api, Process, World, eventually, program, send_signal};

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
async fn requests_are_cut_off_at_the_shutdown_timeout() {
    let world = World::new().await;
    let mut process =
        Process::serve(&world.variables(&[("SHUTDOWN_TIMEOUT", "1s"), ("UPSTREAM_TIMEOUT", "1m")]))
            .await;
    world
        .sandbox
        .set_default(token_vendor::dev::sandbox::Answer::Hang);
    let api = Api::at(process.base.clone());
    let request = api.post("/bank/tokens/", &json!({"userId": "u"}));
    let caller = tokio::spawn(Answer::of(request));
    world.upstream_is_called(1).await;
    process.signal(Signal::SIGTERM);
    assert_eq!(exit_code(&mut process).await, Some(0));
    assert!(
        caller
            .await
            .unwrap()
            .is_none_or(|answer| answer.status >= 500)
    );
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
    let mut process = Process::serve(&world.variables(&[("SHUTDOWN_TIMEOUT", "1s")])).await;
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
