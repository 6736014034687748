//! Invalidations of more tokens than one transaction can change in time: they proceed in batches, and a repeated call
//! continues.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::support::{Answer, Api, World, send};

const INVALIDATED: &str = "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated'";
const VALID: &str = "SELECT count(*) FROM tokens WHERE is_valid";

/// Inserts `count` valid tokens of a user, with their mints. `bank` and `superseded_at` are expressions of `n`.
async fn seed(db: &PgPool, user: &str, count: u32, bank: &str, superseded_at: &str) {
    let tokens = format!(
        "WITH seeded AS (
             INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at, is_valid,
                                 superseded_at, ciphertext, key_id, fingerprint)
             SELECT '{user}', gen_random_uuid(), '', {bank}, 0, 3600, now() - interval '1 h', e.ends_at, e.ends_at, true,
                    {superseded_at}, 'x', 'k1', md5(n::text) || md5(n::text)
             FROM generate_series(1, {count}) n, LATERAL (SELECT now() + interval '1 h' + n * interval '1 s' AS ends_at) e
             RETURNING *
         ), slot AS (
             INSERT INTO slots (user_id, country, bank, access, token_id, usable_until, lease_epoch, lease_until)
             SELECT user_id, country, bank, access, id, ends_at, 1, issued_at FROM seeded WHERE superseded_at IS NULL
         )
         INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id,
                            started_at, finished_at, outcome)
         SELECT user_id, id, country, bank, access, 3600, 1, 'r', 'c', 'q', issued_at, issued_at, 'minted' FROM seeded"
    );
    db.execute(AssertSqlSafe(tokens)).await.unwrap();
}

async fn invalidate(api: &Api, target: &str, value: &str) -> Answer {
    let body = json!({"reason": "compromised", target: value});
    let request = api.post("/bank/tokens/invalidate", &body);
    // Longer than an invalidation may take.
    send(request.timeout(Duration::from_secs(60))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_valid_tokens_of_a_user_are_invalidated() {
    let world = World::unchecked().await;
    seed(&world.db, "many", 40_000, "'bank-' || n", "NULL").await;
    seed(&world.db, "many", 60_000, "'bank-1'", "now()").await;
    seed(&world.db, "other", 10, "'bank-' || n", "NULL").await;
    let replica = world.replica().await;
    // One call takes about 8 s. On a busy machine it may run out of time, and then a repeated call continues.
    let mut answer = invalidate(&replica, "userId", "many").await;
    for _ in 0..5 {
        if answer.status == 200 {
            break;
        }
        answer.assert_problem(503, "database-unavailable");
        answer = invalidate(&replica, "userId", "many").await;
    }
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(world.count(VALID).await, 10);
    assert_eq!(world.count(INVALIDATED).await, 100_000);
    let reset = "SELECT count(*) FROM slots WHERE user_id = 'many' AND void_epoch = 1 AND usable_until = '-infinity'";
    assert_eq!(world.count(reset).await, 40_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_may_take_longer_than_a_statement() {
    let world = World::unchecked().await;
    seed(&world.db, "many", 10_000, "'bank-' || n", "NULL").await;
    seed(&world.db, "many", 10_000, "'bank-1'", "now()").await;
    // A slow disk: one of 128 rows takes 50 ms. All rows together take 8 s, longer than `statement_timeout`.
    for statement in [
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END'",
        "CREATE TRIGGER wait BEFORE UPDATE ON tokens FOR EACH ROW
         WHEN (get_byte(uuid_send(OLD.id), 15) < 2) EXECUTE FUNCTION wait()",
    ] {
        world.db.execute(statement).await.unwrap();
    }
    let replica = world.replica().await;
    let answer = invalidate(&replica, "userId", "many").await;
    assert_eq!(answer.body, json!({"invalidated": 20_000}), "{answer:?}");
    assert_eq!(world.count(VALID).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_continues_an_interrupted_invalidation() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u-1", "bank": "Swedbank"});
    let token = replica.issue(body.clone()).await;
    seed(&world.db, "u-1", 3_000, "'Swedbank'", "now()").await;
    let mut lock = world.db.begin().await.unwrap();
    let last = "SELECT FROM tokens WHERE ends_at = (SELECT max(ends_at) FROM tokens) FOR UPDATE";
    lock.execute(last).await.unwrap();
    invalidate(&replica, "userId", "u-1")
        .await
        .assert_problem(503, "database-unavailable");

    // The rest is still valid on record, but no token from before is handed out.
    let done = world.count(INVALIDATED).await;
    assert!((1..3_001).contains(&done), "{done} are invalidated");
    assert_eq!(world.count(VALID).await, 3_001 - done);
    let minted = replica.issue(body.clone()).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    assert_ne!(minted.token(), token.token());
    assert_eq!(replica.issue(body.clone()).await.token(), minted.token());

    lock.rollback().await.unwrap();
    let answer = invalidate(&replica, "userId", "u-1").await;
    assert_eq!(answer.body, json!({"invalidated": 3_002 - done}));
    assert_eq!(world.count(VALID).await, 0);
    assert_eq!(world.count(INVALIDATED).await, 3_002);
    let answer = invalidate(&replica, "userId", "u-1").await;
    assert_eq!(answer.body, json!({"invalidated": 0}));
    assert_eq!(replica.issue(body).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_under_way_ends_as_invalidated_in_a_later_batch_too() {
    let world = World::unchecked().await;
    seed(&world.db, "u-1", 2_500, "'bank-' || n", "NULL").await;
    let replica = world.replica().await;
    world.sandbox.set_latency(Duration::from_secs(3));
    let api = replica.api.clone();
    // This bank is the last of the user in key order.
    let body = json!({"userId": "u-1", "bank": "last"});
    let waiting = tokio::spawn(async move { api.issue(body).await });
    world.upstream_is_called(1).await;
    let answer = invalidate(&replica, "userId", "u-1").await;
    assert_eq!(answer.body, json!({"invalidated": 2_500}));
    world.sandbox.set_latency(Duration::ZERO);
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(world.sandbox.requests(), 2);
    assert_eq!(world.count(VALID).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_records_of_a_token_string_are_invalidated() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    let token = replica.issue(json!({"userId": "u-1"})).await;
    for user in ["u-1", "u-2", "u-3"] {
        seed(&world.db, user, 1_200, "'bank-' || n", "NULL").await;
    }
    let same = format!(
        "UPDATE tokens SET fingerprint = '{}'",
        token.text("fingerprint")
    );
    world.db.execute(AssertSqlSafe(same)).await.unwrap();
    let answer = invalidate(&replica, "tokenString", token.token()).await;
    assert_eq!(answer.body, json!({"invalidated": 3_601}));
    assert_eq!(world.count(VALID).await, 0);
    assert_eq!(world.count(INVALIDATED).await, 3_601);
    let pointing = "SELECT count(*) FROM slots WHERE usable_until > '-infinity'";
    assert_eq!(world.count(pointing).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_that_a_new_read_does_not_show_is_503() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    let token = replica.issue(json!({"userId": "u-1"})).await;
    // The changes of a transaction that is acknowledged but not visible.
    for statement in [
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER skip BEFORE UPDATE ON tokens FOR EACH ROW EXECUTE FUNCTION skip()",
    ] {
        world.db.execute(statement).await.unwrap();
    }
    let path = format!("/bank/tokens/{}/invalidate", token.text("id"));
    let by_id = send(replica.post(&path, &json!({"reason": "used"}))).await;
    let by_string = invalidate(&replica, "tokenString", token.token()).await;
    let by_user = invalidate(&replica, "userId", "u-1").await;
    for answer in [by_id, by_string, by_user] {
        answer.assert_problem(503, "database-unavailable");
        assert_ne!(answer.body["detail"], Value::Null);
    }

    world
        .db
        .execute("DROP TRIGGER skip ON tokens")
        .await
        .unwrap();
    let by_user = invalidate(&replica, "userId", "u-1").await;
    assert_eq!(by_user.body, json!({"invalidated": 1}));
}
