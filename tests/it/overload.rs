//! Overload: work beyond a lane's queue is refused at once, and the other lanes keep working.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::{ADMIN, Answer, World, issue_at_once, send};

#[tokio::test(flavor = "multi_thread")]
async fn cold_requests_beyond_the_queue_are_refused_before_their_first_query() {
    let world = World::new().await;
    // One connection is left for mints.
    let replica = world
        .replica_with(&[("DATABASE_MAX_CONNECTIONS", "4")])
        .await;
    replica.issue(json!({"userId": "warm"})).await;
    let lock = world.lock_table("slots IN ACCESS EXCLUSIVE MODE").await;
    let cold = (0..60).map(|n| json!({"userId": format!("cold-{n}")}));
    let api = replica.api.clone();
    let cold = tokio::spawn(async move { issue_at_once(&[&api], cold).await });
    world.backend_waits_for_a_lock().await;
    let reused = replica.issue(json!({"userId": "warm"})).await;
    assert_eq!(reused.status, 200, "{reused:?}");
    let cold = cold.await.unwrap();
    lock.rollback().await.unwrap();
    let is_overloaded = |answer: &&Answer| answer.problem() == "overloaded";
    let refused: Vec<_> = cold.iter().filter(is_overloaded).collect();
    assert!(refused.len() >= 50, "{} refused", refused.len());
    for answer in &cold {
        assert_eq!(
            (answer.status, answer.retry_after()),
            (503, Some(1)),
            "{answer:?}"
        );
    }
    // The flights that were admitted may still mint.
    let later = replica.issue(json!({"userId": "later"})).await;
    assert_eq!(later.status, 201, "{later:?}");
    let slots = world.count("SELECT count(*) FROM slots").await;
    assert!(slots <= 12, "{slots} combinations were claimed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_request_is_refused_at_once_while_others_wait_long() {
    let world = World::new().await;
    // One connection is left for mints.
    let replica = world
        .replica_with(&[("DATABASE_MAX_CONNECTIONS", "4")])
        .await;
    let lock = world.lock_table("slots IN ACCESS EXCLUSIVE MODE").await;
    let issue = |user: &str| {
        let (api, body) = (replica.api.clone(), json!({"userId": user}));
        tokio::spawn(async move { api.issue(body).await })
    };
    let first = issue("first");
    world.backend_waits_for_a_lock().await;
    // This one shows that the wait is long.
    let answer = issue("second").await.unwrap();
    answer.assert_problem(503, "overloaded");
    let third = issue("third");
    // The third one enters the queue, which keeps it for 500 ms.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut refused = 0;
    while !third.is_finished() {
        let answer = issue("fourth").await.unwrap();
        answer.assert_problem(503, "overloaded");
        refused += 1;
    }
    // Without the limit, the first of these would wait longer than the third.
    assert!(refused > 1, "{refused} refused");
    lock.rollback().await.unwrap();
    first.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_not_started_is_overload() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("DATABASE_MAX_CONNECTIONS", "4")])
        .await;
    replica.issue(json!({"userId": "warm"})).await;
    let lock = world.lock_table("mints IN SHARE MODE").await;
    let slots = world.lock_table("slots IN ACCESS EXCLUSIVE MODE").await;
    let api = replica.api.clone();
    let users = ["a", "b"].map(|user| json!({"userId": user}));
    let answers = tokio::spawn(async move { issue_at_once(&[&api], users).await });
    world.backend_waits_for_a_lock().await;
    // Both requests arrive, so both slots are read before the first claim. Then the claim of one waits for the lock, and
    // that of the other for its connection.
    tokio::time::sleep(Duration::from_millis(150)).await;
    slots.rollback().await.unwrap();
    let answers = answers.await.unwrap();
    lock.rollback().await.unwrap();
    let mut problems: Vec<_> = answers.iter().map(Answer::problem).collect();
    problems.sort();
    assert_eq!(problems, ["database-unavailable", "overloaded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_callers_that_left_are_dropped_before_they_start() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("DATABASE_MAX_CONNECTIONS", "4")])
        .await;
    replica.get("/bank/tokens/?userId=u").await;
    let lock = world
        .lock_table("audit_events IN ACCESS EXCLUSIVE MODE")
        .await;
    let read = || {
        let api = replica.api.clone();
        tokio::spawn(async move { api.get("/audit/events").await })
    };
    let first = read();
    world.backend_waits_for_a_lock().await;
    for left in [(); 5].map(|()| read()) {
        // Longer than the request takes to reach the queue, and shorter than the queue keeps it.
        tokio::time::sleep(Duration::from_millis(40)).await;
        left.abort();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    lock.rollback().await.unwrap();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(replica.get("/bank/tokens/?userId=u").await.status, 200);
    let reads = "SELECT count(*) FROM audit_events WHERE kind = 'audit.read'";
    assert_eq!(world.count(reads).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_beyond_the_queue_are_refused() {
    let world = World::new().await;
    let replica = world.replica().await;
    let lock = world.lock_table("clients IN ACCESS EXCLUSIVE MODE").await;
    let requests = (0..200).map(|n| {
        let credentials = (&*format!("unknown-{n}"), ADMIN.1);
        let request = replica.request_by(credentials, Method::GET, "/bank/tokens/");
        tokio::spawn(send(request))
    });
    let answers: Vec<_> = join_all(requests).await;
    lock.rollback().await.unwrap();
    let answers = answers.into_iter().map(Result::unwrap);
    let refused = answers.filter(|answer| answer.problem() == "overloaded");
    let refused = refused.count();
    assert!(refused >= 100, "{refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_client_is_refreshed_beside_a_flood_of_unknown_keys() {
    let world = World::new().await;
    let replica = world.replica().await;
    replica.issue(json!({"userId": "u"})).await;
    let end = Instant::now() + Duration::from_secs(5);
    let flood = (0..100).map(|n| {
        let api = replica.api.clone();
        tokio::spawn(async move {
            let credentials = (&*format!("unknown-{n}"), ADMIN.1);
            while Instant::now() < end {
                send(api.request_by(credentials, Method::GET, "/bank/tokens/")).await;
            }
        })
    });
    let flood: Vec<_> = flood.collect();
    // The client is looked up again after 3 s.
    while Instant::now() < end {
        let reused = replica.issue(json!({"userId": "u"})).await;
        assert_eq!(reused.status, 200, "{reused:?}");
    }
    join_all(flood).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_requests_of_a_client_share_one_lookup() {
    let world = World::new().await;
    let minted = world.replica().await.issue(json!({"userId": "u"})).await;
    // This replica knows no credentials. The callers are more than the unknown ones that it looks up in a second.
    let replica = world.replica().await;
    let lock = world.lock_table("clients IN ACCESS EXCLUSIVE MODE").await;
    let api = replica.api.clone();
    let callers = (0..2_500).map(|_| json!({"userId": "u"}));
    let callers = tokio::spawn(async move { issue_at_once(&[&api], callers).await });
    // Most callers arrive while the lookup waits.
    tokio::time::sleep(Duration::from_millis(700)).await;
    lock.rollback().await.unwrap();
    for answer in callers.await.unwrap() {
        answer.assert_reused(&minted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_does_not_end_the_cached_authentication_of_a_client() {
    let world = World::new().await;
    let replica = world.replica().await;
    replica.issue(json!({"userId": "u"})).await;
    let wrong = replica.request_by((ADMIN.0, "wrong"), Method::GET, "/bank/tokens/");
    send(wrong).await.assert_problem(401, "unauthenticated");
    // A lookup would wait for the lock.
    let lock = world.lock_table("clients IN ACCESS EXCLUSIVE MODE").await;
    let reused = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(reused.status, 200, "{reused:?}");
    lock.rollback().await.unwrap();
}
