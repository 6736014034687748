//! Overload: work beyond a lane's queue is refused at once, and the other lanes keep working.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{ADMIN, Answer, World, eventually, issue_at_once, send};

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
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("a mint waits for the lock", async || {
        world.count(waiting).await > 0
    })
    .await;
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
async fn unknown_keys_do_not_keep_a_known_client_from_its_tokens() {
    let world = World::new().await;
    let replica = world.replica().await;
    replica.issue(json!({"userId": "u"})).await;
    // Lookups of unknown keys wait for the lock. The known client is refreshed after the lock, in its own lane.
    let lock = world.lock_table("clients IN ACCESS EXCLUSIVE MODE").await;
    let unknown = join_all((0..200).map(|n| {
        let credentials = (&*format!("unknown-{n}"), ADMIN.1);
        let request = replica.request_by(credentials, reqwest::Method::GET, "/bank/tokens/");
        tokio::spawn(send(request))
    }));
    let unknown = unknown.await;
    let is_overloaded = |answer: &&Answer| answer.problem() == "overloaded";
    let answers: Vec<Answer> = unknown.into_iter().map(Result::unwrap).collect();
    let refused = answers.iter().filter(is_overloaded).count();
    assert!(refused >= 100, "{refused} refused");
    lock.rollback().await.unwrap();
    let reused = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(reused.status, 200, "{reused:?}");
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
    let wrong = replica.request_by((ADMIN.0, "wrong"), reqwest::Method::GET, "/bank/tokens/");
    send(wrong).await.assert_problem(401, "unauthenticated");
    // A lookup would wait for the lock.
    let lock = world.lock_table("clients IN ACCESS EXCLUSIVE MODE").await;
    let reused = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(reused.status, 200, "{reused:?}");
    lock.rollback().await.unwrap();
}
