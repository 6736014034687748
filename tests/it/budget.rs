//! Limits of upstream calls: the hourly budget shared by all replicas, the circuit breaker, and the number of calls in
//! flight.

use std::time::Duration;

use serde_json::{Value, json};
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::{Answer, Api, World, eventually, issue_at_once};

/// Requests a token for each of `users` users at once, spread over the replicas.
async fn issue_for_users(replicas: &[&Api], prefix: &str, users: usize) -> Vec<Answer> {
    let bodies = (0..users).map(|number| json!({"userId": format!("{prefix}-{number}")}));
    issue_at_once(replicas, bodies).await
}

fn count_status(answers: &[Answer], status: u16) -> usize {
    answers
        .iter()
        .filter(|answer| answer.status == status)
        .count()
}

/// Moves the recorded attempts back in time.
async fn shift_budget(world: &World, minutes: i64) {
    let shift = "UPDATE upstream_budget
                 SET minutes = (SELECT array_agg(m.at - $1 ORDER BY place)
                                FROM unnest(minutes) WITH ORDINALITY AS m(at, place))";
    sqlx::query(shift)
        .bind(minutes)
        .execute(&world.db)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_one_hourly_budget() {
    let world = World::new().await;
    let settings = [("UPSTREAM_HOURLY_BUDGET", "7")];
    let first = world.replica_with(&settings).await;
    let second = world.replica_with(&settings).await;
    let both: [&Api; 2] = [&first, &second];

    let answers = issue_for_users(&both, "early", 40).await;
    assert_eq!(world.sandbox.requests(), 7);
    assert_eq!(
        (count_status(&answers, 201), count_status(&answers, 503)),
        (7, 33)
    );
    for refused in answers.iter().filter(|answer| answer.status == 503) {
        refused.assert_problem(503, "upstream-budget-spent");
        assert!(refused.retry_after() >= Some(1), "{refused:?}");
    }
    let minted = answers
        .iter()
        .position(|answer| answer.status == 201)
        .unwrap();
    let body = json!({"userId": format!("early-{minted}")});
    assert_eq!(first.issue(body).await.status, 200, "reuse needs no budget");
    let failed = "SELECT count(*) FROM mints m JOIN audit_events e ON e.user_id = m.user_id AND e.token_id = m.id
                     WHERE m.outcome = 'failed' AND m.failure = 'upstream-budget-spent' AND m.attempts = 0
                       AND e.kind = 'token.mint_failed' AND e.detail->>'failure' = m.failure";
    assert_eq!(world.count(failed).await, 33);

    shift_budget(&world, 30).await;
    let answers = issue_for_users(&both, "half an hour later", 4).await;
    assert_eq!(count_status(&answers, 503), 4);
    shift_budget(&world, 31).await;
    let answers = issue_for_users(&both, "over an hour later", 10).await;
    assert_eq!(
        (count_status(&answers, 201), count_status(&answers, 503)),
        (7, 3)
    );
    assert_eq!(world.sandbox.requests(), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_counts_against_the_budget() {
    let world = World::new().await;
    let replica = world
        .replica_with(&[("UPSTREAM_HOURLY_BUDGET", "2"), ("UPSTREAM_TIMEOUT", "3s")])
        .await;
    world.sandbox.set_default(Upstream::status(500));
    let answer = replica.issue(json!({"userId": "u"})).await;
    answer.assert_problem(503, "upstream-budget-spent");
    assert_eq!(world.sandbox.requests(), 2);
    let mint: Value = sqlx::query_scalar("SELECT to_jsonb(m) FROM mints m")
        .fetch_one(&world.db)
        .await
        .unwrap();
    assert_eq!((&mint["attempts"], &mint["unseen"]), (&json!(2), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_zero_means_no_limit() {
    let world = World::new().await;
    sqlx::query("UPDATE upstream_budget SET minutes = array_fill(floor(extract(epoch FROM now()) / 60)::bigint, ARRAY[61]), attempts = array_fill(1000000, ARRAY[61])")
        .execute(&world.db)
        .await
        .unwrap();
    let limited = world
        .replica_with(&[("UPSTREAM_HOURLY_BUDGET", "1000000")])
        .await;
    let answers = issue_for_users(&[&limited], "limited", 1).await;
    answers[0].assert_problem(503, "upstream-budget-spent");
    let unlimited = world.replica_with(&[("UPSTREAM_HOURLY_BUDGET", "0")]).await;
    assert_eq!(
        count_status(&issue_for_users(&[&unlimited], "free", 10).await, 201),
        10
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_circuit_opens_after_20_failures_and_closes_after_a_success() {
    let world = World::new().await;
    let replica = world.replica_with(&[("UPSTREAM_MAX_ATTEMPTS", "1")]).await;
    assert_eq!(replica.issue(json!({"userId": "warm"})).await.status, 201);

    world.sandbox.set_default(Upstream::status(400));
    assert_eq!(
        count_status(&issue_for_users(&[&replica], "bad", 25).await, 422),
        25
    );
    world.sandbox.set_default(Upstream::status(503));
    assert_eq!(
        count_status(&issue_for_users(&[&replica], "down", 20).await, 502),
        20
    );
    let calls = world.sandbox.requests();
    for answer in issue_for_users(&[&replica], "open", 10).await {
        answer.assert_problem(503, "upstream-unavailable");
        assert!(
            (1..=5).contains(&answer.retry_after().unwrap()),
            "{answer:?}"
        );
    }
    assert_eq!(
        world.sandbox.requests(),
        calls,
        "an open circuit makes no upstream call"
    );
    assert_eq!(replica.issue(json!({"userId": "warm"})).await.status, 200);

    world.sandbox.clear_default();
    eventually("the circuit closes", async || {
        replica.issue(json!({"userId": "again"})).await.status == 201
    })
    .await;
    assert_eq!(
        count_status(&issue_for_users(&[&replica], "closed", 10).await, 201),
        10
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_claim_does_not_spend_the_trial_of_an_open_circuit() {
    let world = World::new().await;
    let settings = [("UPSTREAM_MAX_ATTEMPTS", "1"), ("MINT_COOLDOWN", "0s")];
    let replica = world.replica_with(&settings).await;
    world.sandbox.script(vec![Upstream::status(503); 20]);
    issue_for_users(&[&replica], "down", 20).await;

    // The claim waits for this lock. When the transaction commits, another mint holds the lease.
    let mut other = world.db.begin().await.unwrap();
    let lock = "UPDATE slots SET lease_until = clock_timestamp() + interval '1 hour' WHERE user_id = 'down-0'";
    sqlx::query(lock).execute(&mut *other).await.unwrap();
    let api = replica.api.clone();
    let losing = tokio::spawn(async move {
        loop {
            let answer = api.issue(json!({"userId": "down-0"})).await;
            if answer.body["type"] != "urn:token-vendor:problem:upstream-unavailable" {
                return answer;
            }
        }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, 'INTO slots') > 0";
    eventually("the claim waits", async || world.count(waiting).await > 0).await;
    other.commit().await.unwrap();
    eventually("the claim is lost", async || {
        world.count(waiting).await == 0
    })
    .await;
    let trial = replica.issue(json!({"userId": "trial"})).await;
    assert_eq!(trial.status, 201, "{trial:?}");
    losing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_mints_beyond_the_in_flight_limit_are_shed() {
    let world = World::new().await;
    let replica = world.replica_with(&[("UPSTREAM_MAX_IN_FLIGHT", "1")]).await;
    world.sandbox.set_latency(Duration::from_secs(2));
    let body = json!({"userId": "slow"});
    let others = async {
        world.upstream_is_called(1).await;
        let replicas: [&Api; 1] = [&replica];
        tokio::join!(
            issue_for_users(&replicas, "shed", 5),
            replica.issue(body.clone())
        )
    };
    let (slow, (shed, joined)) = tokio::join!(replica.issue(body.clone()), others);
    for answer in shed {
        answer.assert_problem(503, "overloaded");
        assert!(answer.retry_after().is_some(), "{answer:?}");
    }
    assert_eq!((slow.status, joined.status), (201, 200));
    assert_eq!(slow.token(), joined.token());
    assert_eq!(world.sandbox.requests(), 1);

    world.sandbox.set_latency(Duration::ZERO);
    for answer in issue_for_users(&[&replica], "shed", 5).await {
        assert_eq!(
            answer.status, 201,
            "a shed request causes no cooldown: {answer:?}"
        );
    }
    let not_minted = "SELECT count(*) FROM mints WHERE outcome <> 'minted'";
    assert_eq!(world.count(not_minted).await, 0);
}
