//! I3: one upstream call for any number of simultaneous requests, on any number of replicas.

use std::iter::repeat_n;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::{Answer, Api, Process, World, eventually, issue_at_once, send};

fn count_status(answers: &[Answer], status: u16) -> usize {
    answers
        .iter()
        .filter(|answer| answer.status == status)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_to_three_cold_processes_make_one_upstream_call() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(300));
    let variables = world.variables(&[]);
    let replicas = join_all((0..3).map(|_| Process::serve(&variables))).await;
    let apis: Vec<Api> = replicas
        .iter()
        .map(|replica| Api::at(replica.base.clone()))
        .collect();

    let body = json!({"userId": "u-1", "country": "LT"});
    let answers = issue_at_once(&apis.iter().collect::<Vec<_>>(), repeat_n(body, 500)).await;

    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(count_status(&answers, 201), 1);
    assert_eq!(count_status(&answers, 200), 499);
    assert!(
        answers
            .iter()
            .all(|answer| answer.token() == answers[0].token())
    );
    let collapsed = "token-vendor; fwd=uri-miss; stored; collapsed";
    assert!(
        answers
            .iter()
            .any(|answer| answer.header("cache-status") == collapsed)
    );
    let handed_out = world
        .count("SELECT count(*) FROM audit_events WHERE kind IN ('token.minted', 'token.reused')")
        .await;
    assert_eq!(handed_out, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_waiting_requests_on_all_replicas_share_a_failure() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(300));
    world
        .sandbox
        .script([Upstream::error(400, "BAD_VALUE", "no such bank")]);
    let (one, two) = tokio::join!(world.replica(), world.replica());

    let body = json!({"userId": "u-1", "bank": "nowhere"});
    let answers = issue_at_once(&[&one, &two], repeat_n(body.clone(), 100)).await;

    assert_eq!(world.sandbox.requests(), 1);
    for answer in &answers {
        answer.assert_problem(422, "upstream-rejected");
        assert_eq!(answer.body["upstream"]["identifier"], "BAD_VALUE");
    }
    assert_eq!(world.kinds().await, ["token.mint_failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_disconnects_does_not_stop_the_mint() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(400));
    let replica = world.replica().await;
    let body = json!({"userId": "u-1"});

    let request = replica
        .post("/bank/tokens/", &body)
        .timeout(Duration::from_millis(150));
    assert!(Answer::of(request).await.is_none());
    let answer = replica.issue(body).await;

    assert_eq!((answer.status, answer.text("outcome")), (200, "reused"));
    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(world.kinds().await, ["token.minted", "token.reused"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_a_mint_without_callers() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(400));
    let replica = world.replica().await;

    let request = replica
        .post("/bank/tokens/", &json!({"userId": "u-1"}))
        .timeout(Duration::from_millis(150));
    assert!(Answer::of(request).await.is_none());
    replica.service.stop().await;

    assert_eq!(world.kinds().await, ["token.minted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_lived_token_serves_all_requests_that_waited_for_it() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(1_200));
    let (one, two) = tokio::join!(world.replica(), world.replica());

    // The token arrives with 0.8 s left, less than half of its lifetime.
    let body = json!({"userId": "u-1", "lifetime": 2});
    let answers = issue_at_once(&[&one, &two], repeat_n(body.clone(), 60)).await;

    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(
        (count_status(&answers, 201), count_status(&answers, 200)),
        (1, 59)
    );
    // A later request requires half of the lifetime and mints.
    assert_eq!(one.issue(body).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_no_cache_requests_on_two_replicas_share_one_mint() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let body = json!({"userId": "u-1"});
    let old = one.issue(body.clone()).await;
    two.issue(body.clone()).await;
    world.sandbox.set_latency(Duration::from_millis(500));

    let requests = (0..40).map(|n| if n % 2 == 0 { &one } else { &two });
    let answers =
        join_all(requests.map(|replica| replica.issue_with(body.clone(), "no-cache"))).await;

    assert_eq!(world.sandbox.requests(), 2);
    assert_eq!(
        (count_status(&answers, 201), count_status(&answers, 200)),
        (1, 39)
    );
    assert!(
        answers
            .iter()
            .all(|answer| answer.token() == answers[0].token())
    );
    assert_ne!(answers[0].token(), old.token());
    for replica in [&one, &two] {
        assert_eq!(
            replica.issue(body.clone()).await.token(),
            answers[0].token()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_lifetime_0_never_share_a_token() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "lifetime": 0});

    let answers = issue_at_once(&[&replica], repeat_n(body, 10)).await;

    let mut tokens: Vec<&str> = answers.iter().map(|answer| answer.token()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 10);
    assert_eq!(count_status(&answers, 201), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_share_a_failure_even_without_a_cooldown() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_secs(1));
    world
        .sandbox
        .script([Upstream::error(400, "BAD_VALUE", "no")]);
    let replica = world.replica_with(&[("MINT_COOLDOWN", "0s")]).await;

    let body = json!({"userId": "u-1"});
    let answers = issue_at_once(&[&replica], repeat_n(body, 50)).await;

    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(count_status(&answers, 422), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_stored_token_satisfies_does_not_wait_for_a_mint() {
    let world = World::new().await;
    let body = json!({"userId": "u", "lifetime": 600});
    let minted = world.replica().await.issue(body.clone()).await;
    // The new replica has an empty cache, and another request there needs a new token.
    for cache_control in ["min-fresh=3000", "no-cache"] {
        let cold = world.replica_with(&[("UPSTREAM_TIMEOUT", "3s")]).await;
        world.sandbox.script([Upstream::Hang]);
        let calls = world.sandbox.requests();
        let longer = json!({"userId": "u", "lifetime": 3600});
        let request = cold
            .post("/bank/tokens/", &longer)
            .header("cache-control", cache_control);
        let minting = tokio::spawn(send(request));
        eventually("the upstream is called", async || {
            world.sandbox.requests() > calls
        })
        .await;
        let plain = cold.issue(body.clone()).await;
        plain.assert_reused(&minted);
        assert!(!minting.is_finished(), "{cache_control}");
        minting
            .await
            .unwrap()
            .assert_problem(504, "upstream-timeout");
        eventually("the cooldown ends", async || {
            let cooling_down =
                "SELECT count(*) FROM slots WHERE cooldown_until > clock_timestamp()";
            world.count(cooling_down).await == 0
        })
        .await;
    }
}
