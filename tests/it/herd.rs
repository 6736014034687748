//! I3: one upstream call for any herd, over any number of replicas.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::{Answer, Api, Process, World, eventually, send};

fn statuses(answers: &[Answer], status: u16) -> usize {
    answers
        .iter()
        .filter(|answer| answer.status == status)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_cold_requests_over_three_processes_make_one_upstream_call() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(300));
    let variables = world.variables(&[]);
    let replicas = join_all((0..3).map(|_| Process::serve(&variables))).await;
    let apis: Vec<Api> = replicas
        .iter()
        .map(|replica| Api::at(replica.base.clone()))
        .collect();

    let order = json!({"userId": "u-1", "country": "LT"});
    let answers = join_all((0..500).map(|n| apis[n % 3].issue(order.clone()))).await;

    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(statuses(&answers, 201), 1);
    assert_eq!(statuses(&answers, 200), 499);
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
async fn a_failure_is_shared_by_all_who_wait_on_every_replica() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(300));
    world
        .sandbox
        .script([Upstream::error(400, "BAD_VALUE", "no such bank")]);
    let (one, two) = tokio::join!(world.replica(), world.replica());

    let order = json!({"userId": "u-1", "bank": "nowhere"});
    let asked = (0..100).map(|n| if n % 2 == 0 { &one } else { &two });
    let answers = join_all(asked.map(|replica| replica.issue(order.clone()))).await;

    assert_eq!(world.sandbox.requests(), 1);
    for answer in &answers {
        answer.is_problem(422, "upstream-rejected");
        assert_eq!(answer.body["upstream"]["identifier"], "BAD_VALUE");
    }
    assert_eq!(world.kinds().await, ["token.mint_failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_loses_nothing() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(400));
    let replica = world.replica().await;
    let order = json!({"userId": "u-1"});

    let request = replica
        .post("/bank/tokens/", &order)
        .timeout(Duration::from_millis(150));
    assert!(Answer::of(request).await.is_none());
    let answer = replica.issue(order).await;

    assert_eq!((answer.status, answer.text("outcome")), (200, "reused"));
    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(world.kinds().await, ["token.minted", "token.reused"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_waits_for_a_mint_that_nobody_waits_for() {
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
async fn a_short_lived_token_serves_the_whole_herd_that_waited_for_it() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_millis(1_200));
    let (one, two) = tokio::join!(world.replica(), world.replica());

    // 0.8 s are left when it comes, less than half its lifetime.
    let order = json!({"userId": "u-1", "lifetime": 2});
    let asked = (0..60).map(|n| if n % 2 == 0 { &one } else { &two });
    let answers = join_all(asked.map(|replica| replica.issue(order.clone()))).await;

    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!((statuses(&answers, 201), statuses(&answers, 200)), (1, 59));
    // Who comes later is not content with so little.
    assert_eq!(one.issue(order).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_renew_at_the_same_moment_share_one_mint() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    let order = json!({"userId": "u-1"});
    let old = one.issue(order.clone()).await;
    two.issue(order.clone()).await;
    world.sandbox.set_latency(Duration::from_millis(500));

    let asked = (0..40).map(|n| if n % 2 == 0 { &one } else { &two });
    let answers =
        join_all(asked.map(|replica| replica.issue_with(order.clone(), "no-cache"))).await;

    assert_eq!(world.sandbox.requests(), 2);
    assert_eq!((statuses(&answers, 201), statuses(&answers, 200)), (1, 39));
    assert!(
        answers
            .iter()
            .all(|answer| answer.token() == answers[0].token())
    );
    assert_ne!(answers[0].token(), old.token());
    for replica in [&one, &two] {
        assert_eq!(
            replica.issue(order.clone()).await.token(),
            answers[0].token()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_that_wants_dead_tokens_gets_no_token_twice() {
    let world = World::new().await;
    let replica = world.replica().await;
    let order = json!({"userId": "u-1", "lifetime": 0});

    let answers = join_all((0..10).map(|_| replica.issue(order.clone()))).await;

    let mut tokens: Vec<&str> = answers.iter().map(|answer| answer.token()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 10);
    assert_eq!(statuses(&answers, 201), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_shares_a_failure_among_those_who_wait_without_any_cooldown() {
    let world = World::new().await;
    world.sandbox.set_latency(Duration::from_secs(1));
    world
        .sandbox
        .script([Upstream::error(400, "BAD_VALUE", "no")]);
    let replica = world.replica_with(&[("MINT_COOLDOWN", "0s")]).await;

    let order = json!({"userId": "u-1"});
    let answers = join_all((0..50).map(|_| replica.issue(order.clone()))).await;

    assert_eq!(world.sandbox.requests(), 1);
    assert_eq!(statuses(&answers, 422), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_be_served_from_the_record_waits_for_nobody_s_mint() {
    let world = World::new().await;
    let order = json!({"userId": "u", "lifetime": 600});
    let minted = world.replica().await.issue(order.clone()).await;
    // It has nothing in memory, and somebody there asks for more than the record has.
    for demand in ["min-fresh=3000", "no-cache"] {
        let cold = world.replica_with(&[("UPSTREAM_TIMEOUT", "3s")]).await;
        world.sandbox.script([Upstream::Hang]);
        let calls = world.sandbox.requests();
        let body = json!({"userId": "u", "lifetime": 3600});
        let request = cold
            .post("/bank/tokens/", &body)
            .header("cache-control", demand);
        let demanding = tokio::spawn(send(request));
        eventually("it calls", async || world.sandbox.requests() > calls).await;
        let plain = cold.issue(order.clone()).await;
        plain.is_reused(&minted);
        assert!(!demanding.is_finished(), "{demand}");
        demanding.await.unwrap().is_problem(504, "upstream-timeout");
        eventually("it has cooled down", async || {
            let due = "SELECT count(*) FROM slots WHERE cooldown_until > clock_timestamp()";
            world.count(due).await == 0
        })
        .await;
    }
}
