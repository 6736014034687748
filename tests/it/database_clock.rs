//! I4, I5, I14: a database clock that steps or is wrong for a while. No step revives a token, stops minting or makes
//! the cleanup delete what must be kept.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::metrics::scrape;
use crate::support::{ADMIN, Api, World, eventually, program, send};

/// Makes the replica read the database's clock, with the credentials of an unknown client.
async fn read_clock(replica: &Api) {
    let request = replica.anonymous(Method::GET, "/bank/tokens/");
    send(request.basic_auth("unknown", Some("x"))).await;
}

async fn warnings(replica: &Api) -> String {
    let ready = send(replica.anonymous(Method::GET, "/health/ready")).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    ready.body["warnings"].to_string()
}

async fn execute(world: &World, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&world.db).await.unwrap();
}

async fn cleanup(world: &World) -> Value {
    let output = program(&["cleanup"], &world.variables(&[])).output().await;
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_clock_that_steps_back_revives_no_token() {
    let world = World::unchecked().await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "lifetime": 600});
    let token = replica.issue(body.clone()).await;
    assert_eq!(token.status, 201);

    // The token expires.
    world.shift_clock("1 hour").await;
    let newer = replica.issue(body.clone()).await;
    assert_eq!(newer.status, 201);
    assert_ne!(newer.token(), token.token());

    // The clock steps back. Neither this replica nor a new one hands out the expired token.
    execute(
        &world,
        "UPDATE tokens SET is_valid = false WHERE ends_at > clock_timestamp() + '1 hour';
         UPDATE tokens SET superseded_at = NULL WHERE is_valid",
    )
    .await;
    world.shift_clock("0").await;
    let new_replica = world.replica().await;
    for replica in [&replica, &new_replica] {
        let answer = replica.issue(body.clone()).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        assert_ne!(answer.token(), token.token());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_database_time_seen_expires_cached_tokens() {
    let world = World::new().await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "lifetime": 600});
    let token = replica.issue(body.clone()).await;
    replica.issue(body.clone()).await.assert_reused(&token);

    world.shift_clock("1 hour").await;
    read_clock(&replica).await;
    world.shift_clock("0").await;
    let newer = replica.issue(body).await;
    assert_eq!(newer.status, 201, "{newer:?}");
    assert_ne!(newer.token(), token.token());
}

#[tokio::test(flavor = "multi_thread")]
async fn minting_continues_after_a_step_back_of_the_database_clock() {
    let world = World::new().await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    assert_eq!(warnings(&replica).await, "[]");
    world.shift_clock("5 seconds").await;
    replica.issue(json!({"userId": "ahead"})).await;
    world.shift_clock("0").await;
    let new_replica = world.replica().await;
    for replica in [&replica, &new_replica] {
        let users = (0..20).map(|n| json!({"userId": format!("{}-{n}", replica.base)}));
        let minted = join_all(users.clone().map(|body| replica.issue(body))).await;
        for (answer, body) in minted.iter().zip(users) {
            assert_eq!(answer.status, 201, "{answer:?}");
            assert!(answer.body["expiresIn"].as_i64() > Some(3500), "{answer:?}");
            replica.issue(body).await.assert_reused(answer);
        }
    }
    eventually("readiness and the metric show the skew", async || {
        scrape(&replica).await["clock_skew_seconds"] > 2.0
            && warnings(&replica)
                .await
                .contains("the database clock differs by")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_repeated_until_its_cooldown_ends_after_a_step_back() {
    let world = World::new().await;
    world.shift_clock("1 hour").await;
    let replica = world.replica_with(&[("MINT_COOLDOWN", "1h")]).await;
    read_clock(&replica).await;
    world.shift_clock("0").await;
    world.sandbox.script([Upstream::status(400)]);
    for _ in 0..2 {
        let failed = replica.issue(json!({"userId": "u-1"})).await;
        failed.assert_problem(422, "upstream-rejected");
    }
    assert_eq!(world.sandbox.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_back_does_not_revive_a_rotated_secret() {
    let world = World::new().await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    let rotate = "UPDATE clients SET previous_secret_sha256 = sha256('old'), previous_until = clock_timestamp() + '1 hour'";
    execute(&world, rotate).await;
    let status = async || {
        let old = replica.request_by((ADMIN.0, "old"), Method::GET, "/bank/tokens/");
        send(old).await.status
    };
    assert_eq!(status().await, 200);
    world.shift_clock("2 hours").await;
    read_clock(&replica).await;
    world.shift_clock("0").await;
    eventually("the cached client expires", async || status().await == 401).await;
    assert_eq!(status().await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_dated_by_a_replica_that_saw_a_later_time_ends_on_every_replica() {
    let world = World::new().await;
    world.shift_clock("0").await;
    let (one, two) = tokio::join!(world.replica(), world.replica());
    // The second replica does not see this time, unless it reads the clock at the same moment.
    world.shift_clock("1 hour").await;
    read_clock(&one).await;
    world.shift_clock("0").await;
    let body = json!({"userId": "u-1", "lifetime": 2});
    let token = one.issue(body.clone()).await;
    assert_eq!(token.status, 201, "{token:?}");
    tokio::time::sleep(Duration::from_millis(2_050)).await;
    for replica in [&two, &one] {
        let answer = replica.issue(body.clone()).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        assert_ne!(answer.token(), token.token());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_are_500_days_ahead_are_ignored_when_the_clocks_agree() {
    let world = World::unchecked().await;
    execute(
        &world,
        "SELECT create_audit_partition(clock_timestamp() + '500 days');
         INSERT INTO audit_events (id, occurred_at, kind)
         VALUES (gen_random_uuid(), clock_timestamp() + '500 days', 'x')",
    )
    .await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "lifetime": 2});
    let answer = replica.issue(body.clone()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let is_now = |text: &str| {
        let time: DateTime<Utc> = text.parse().unwrap();
        (time - Utc::now()).abs() < TimeDelta::hours(1)
    };
    assert!(is_now(answer.text("issuedAt")), "{answer:?}");
    assert_eq!(warnings(&replica).await, "[]");

    // A running replica forgets such a time too. A token from then ends with its lifetime.
    world.shift_clock("500 days").await;
    read_clock(&replica).await;
    let ahead = replica.issue(body.clone()).await;
    assert_eq!(ahead.status, 201, "{ahead:?}");
    assert!(!is_now(ahead.text("issuedAt")), "{ahead:?}");
    execute(
        &world,
        "INSERT INTO slots (user_id, country, bank, access, lease_until, cooldown_until, failure)
         SELECT 'u-' || n, '', '', 0, clock_timestamp() + n * interval '100 days',
                clock_timestamp() + (n - 2) * interval '100 days', 'null' FROM generate_series(2, 4) n",
    )
    .await;
    world.shift_clock("0").await;
    let new_replica = world.replica().await;
    eventually("the replica forgets the time", async || {
        let user = format!("u-{}", uuid::Uuid::now_v7());
        is_now(
            replica
                .issue(json!({"userId": user}))
                .await
                .text("issuedAt"),
        )
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2_050)).await;
    for replica in [&replica, &new_replica] {
        let answer = replica.issue(body.clone()).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        assert_ne!(answer.token(), ahead.token());
    }
    // A lease and a cooldown from then do not hold.
    for user in ["u-2", "u-3", "u-4"] {
        let answer = replica.issue(json!({"userId": user})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_ends_tokens_that_a_wrong_clock_shows_as_expired() {
    let world = World::new().await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    let mut tokens = Vec::new();
    for user in ["by-id", "by-user", "by-string"] {
        tokens.push(replica.issue(json!({"userId": user})).await);
    }
    // A superseded token of the user.
    let renewed = replica.issue_with(json!({"userId": "by-user"}), "no-cache");
    assert_eq!(renewed.await.status, 201);

    world.shift_clock("2 hours").await;
    let by_id = format!("/bank/tokens/{}/invalidate", tokens[0].text("id"));
    let answer = send(replica.post(&by_id, &json!({"reason": "compromised"}))).await;
    assert_eq!(answer.text("invalidationReason"), "compromised");
    for (selector, count) in [
        (json!({"reason": "used", "userId": "by-user"}), 2),
        (
            json!({"reason": "used", "tokenString": tokens[2].token()}),
            1,
        ),
    ] {
        let answer = send(replica.post("/bank/tokens/invalidate", &selector)).await;
        assert_eq!(answer.body, json!({"invalidated": count}), "{selector}");
    }
    world.shift_clock("0").await;

    let valid =
        "SELECT count(*) FROM tokens WHERE is_valid OR ciphertext <> '' OR invalidated_at IS NULL";
    assert_eq!(world.count(valid).await, 0);
    let events = "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated'";
    assert_eq!(world.count(events).await, 4);
    for token in &tokens {
        let body = json!({"userId": token.text("userId")});
        let answer = replica.issue(body).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        assert!(tokens.iter().all(|old| old.token() != answer.token()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cleanup_deletes_nothing_while_a_clock_is_wrong() {
    let world = World::unchecked().await;
    crate::cleanup::seed(&world, "old", 20, "500 days", false).await;
    crate::cleanup::seed(&world, "expired", 5, "1 hour", true).await;
    let replica = world.replica_with(&[("CLEANUP_INTERVAL", "off")]).await;
    let token = replica.issue(json!({"userId": "u-1"})).await;
    let rows = "SELECT (SELECT count(*) FROM tokens WHERE ciphertext <> '') + (SELECT count(*) FROM mints)
                       + (SELECT count(*) FROM slots)
                       + (SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass
                          AND inhrelid::regclass::text <= 'audit_events_' || to_char(now() + '3 months', 'YYYY_MM'))";
    let before = world.count(rows).await;

    for shift in ["500 days", "25 hours", "-25 hours"] {
        world.shift_clock(shift).await;
        let refused = cleanup(&world).await;
        assert_eq!(
            (&refused["clocksAgree"], &refused["complete"]),
            (&json!(false), &json!(false)),
            "{shift}: {refused}"
        );
        assert_eq!(world.count(rows).await, before, "{shift}");
    }
    let ran = "SELECT count(*) FROM audit_events WHERE kind = 'cleanup.ran'";
    assert_eq!(world.count(ran).await, 0);

    world.shift_clock("0").await;
    replica
        .issue(json!({"userId": "u-1"}))
        .await
        .assert_reused(&token);
    let done = cleanup(&world).await;
    for (member, value) in [
        ("clocksAgree", json!(true)),
        ("complete", json!(true)),
        ("expired", json!(5)),
        ("purgedTokens", json!(20)),
    ] {
        assert_eq!(done[member], value, "{done}");
    }

    // A newest event far ahead of both clocks shows that they are wrong.
    execute(
        &world,
        "SELECT create_audit_partition(clock_timestamp() + '2 months');
         INSERT INTO audit_events (id, occurred_at, kind)
         VALUES (gen_random_uuid(), clock_timestamp() + '25 hours', 'x')",
    )
    .await;
    assert_eq!(cleanup(&world).await["clocksAgree"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_end_while_the_database_clock_is_behind_are_kept_for_their_retention() {
    let world = World::unchecked().await;
    world.shift_clock("0").await;
    let replica = world.replica().await;
    let token = replica.issue(json!({"userId": "u-1"})).await;
    assert_eq!(token.status, 201);
    world.shift_clock("-500 days").await;
    // New connections see the shift.
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "reason": "requested"});
    let invalidated = send(replica.post("/bank/tokens/invalidate", &body)).await;
    assert_eq!(invalidated.body, json!({"invalidated": 1}));
    world.sandbox.script([Upstream::status(400)]);
    let failed = replica.issue(json!({"userId": "u-2"})).await;
    failed.assert_problem(422, "upstream-rejected");

    world.shift_clock("0").await;
    let summary = cleanup(&world).await;
    assert_eq!(summary["purgedTokens"], 0, "{summary}");
    assert_eq!(summary["purgedMints"], 0, "{summary}");
}
