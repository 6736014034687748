//! Rotation of encryption keys while the service runs, and stored tokens that cannot be decrypted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use chrono::Utc;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use token_vendor::crypto::KeyRing;
use token_vendor::db::keys::{list_tokens_under_key, replace_ciphertexts};
use token_vendor::model::{Access, Combination, TokenString};
use tokio::process::Child;
use uuid::Uuid;

use crate::metrics::scrape;
use crate::support::{Api, Ended, Process, World, eventually, program, run, send, send_signal};

/// A second key. `World::variables` configures only the old key.
const NEW_KEY: &str = "k2:AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
const OLD_KEY: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn both_keys() -> String {
    format!("{NEW_KEY},{OLD_KEY}")
}

fn old_ring() -> KeyRing {
    KeyRing::new([("k1", &[1; 32])], &[2; 32])
}

fn new_ring() -> KeyRing {
    KeyRing::new([("k2", &[3; 32])], &[2; 32])
}

fn token_request(user: usize) -> Value {
    json!({"userId": format!("u-{user}")})
}

/// Inserts a token under the old key for each of `count` users, with the rows that a mint leaves.
async fn seed(world: &World, count: usize) {
    let ring = old_ring();
    let (mut user_ids, mut ids, mut ciphertexts, mut fingerprints) =
        (vec![], vec![], vec![], vec![]);
    for user in 0..count {
        let (id, secret) = (Uuid::now_v7(), format!("secret-of-u-{user}"));
        let combination = Combination {
            user_id: format!("u-{user}").into(),
            country: None,
            bank: None,
            access: Access::default(),
        };
        fingerprints.push(ring.fingerprint(&secret).to_string());
        let encrypted = ring.encrypt(&TokenString::new(&secret), id, &combination);
        user_ids.push(combination.user_id);
        ids.push(id);
        ciphertexts.push(encrypted.bytes);
    }
    sqlx::query(
        "WITH token AS (
             INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                                 is_valid, ciphertext, key_id, fingerprint)
             SELECT user_id, id, '', '', 0, 86400, now(), now() + '1 day', now() + '1 day', true, ciphertext, 'k1', fingerprint
             FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::text[]) AS t (user_id, id, ciphertext, fingerprint)
             RETURNING *
         ), slot AS (
             INSERT INTO slots (user_id, country, bank, access, token_id, usable_until)
             SELECT user_id, '', '', 0, id, ends_at FROM token
         ), mint AS (
             INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id, started_at, outcome)
             SELECT user_id, id, '', '', 0, 86400, 1, 'seed', 'seed', 'seed', now(), 'minted' FROM token
         )
         INSERT INTO audit_events (id, occurred_at, kind, user_id, token_id)
         SELECT gen_random_uuid(), now(), 'token.minted', user_id, id FROM token",
    )
    .bind(user_ids)
    .bind(ids)
    .bind(ciphertexts)
    .bind(fingerprints)
    .execute(&world.db)
    .await
    .unwrap();
}

/// Counts seeded tokens under the new key. Tokens minted by the tests have another lifetime.
const ROTATED: &str = "SELECT count(*) FROM tokens WHERE key_id = 'k2' AND lifetime = 86400";
const REMAINING: &str = "SELECT count(*) FROM tokens WHERE key_id <> 'k2' AND is_valid";

/// Starts `keys rotate` and waits until it has rotated a token.
async fn start_rotation(world: &World, variables: &[(String, String)]) -> Child {
    // A statement of a killed process can still commit.
    let running = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND state = 'active' AND query LIKE '%SKIP LOCKED%' AND pid <> pg_backend_pid()";
    eventually("no rotation is running", async || {
        world.count(running).await == 0
    })
    .await;
    let before = world.count(ROTATED).await;
    let child = program(&["keys", "rotate"], variables).spawn().unwrap();
    eventually("a token is rotated", async || {
        world.count(ROTATED).await > before
    })
    .await;
    child
}

fn report(output: &Ended) -> Value {
    serde_json::from_str(&output.out).unwrap_or_else(|_| panic!("{output:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_keys_are_valid_settings() {
    let first = run(&["keys", "generate"], &[]).await;
    let second = run(&["keys", "generate", "--id", "other"], &[]).await;
    assert_eq!((first.code, second.code), (0, 0), "{first:?} {second:?}");
    assert!(
        first
            .out
            .starts_with(&Utc::now().format("k%Y%m").to_string())
    );
    assert!(second.out.starts_with("other:"));
    let world = World::new().await;
    let keys = format!("{},{}", first.out.trim_end(), second.out.trim_end());
    let checked = run(&["check"], &world.variables(&[("TOKEN_KEYS", &keys)])).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    let long = "k".repeat(33);
    for id in ["", "a b", "a:b", &long] {
        assert_eq!(run(&["keys", "generate", "--id", id], &[]).await.code, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_rotations_under_load_lose_no_token() {
    const USERS: usize = 20_000;
    let world = World::new().await;
    seed(&world, USERS).await;
    let keys = both_keys();
    let variables = world.variables(&[("TOKEN_KEYS", &keys)]);
    // A cache of one token makes most handouts read the rows that are rotated.
    let settings = [("TOKEN_KEYS", keys.as_str()), ("CACHE_MAX_TOKENS", "1")];
    let replicas = [
        world.replica_with(&settings).await,
        world.replica_with(&settings).await,
    ];
    let is_done = AtomicBool::new(false);

    let issue = async |replica: &Api| {
        let mut seen = Vec::new();
        while !is_done.load(Relaxed) {
            // One user in eleven has no token and causes a mint.
            let answer = replica
                .issue(token_request(fastrand::usize(..USERS + USERS / 10)))
                .await;
            assert!([200, 201].contains(&answer.status), "{answer:?}");
            seen.push((answer.text("id").to_owned(), answer.token().to_owned()));
        }
        seen
    };
    let invalidate = async |replica: &Api| {
        let mut invalidated = 0;
        while !is_done.load(Relaxed) {
            let user = format!("u-{}", fastrand::usize(..USERS));
            let body = json!({"reason": "used", "userId": user});
            let answer = send(replica.post("/bank/tokens/invalidate", &body)).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            invalidated += answer.body["invalidated"].as_i64().unwrap();
        }
        invalidated
    };
    let rotate = async || {
        for _ in 0..3 {
            let mut child = start_rotation(&world, &variables).await;
            child.kill().await.unwrap();
            assert!(
                world.count(REMAINING).await > 0,
                "the rotation finished before the kill"
            );
        }
        let stopped = start_rotation(&world, &variables).await;
        send_signal(&stopped, Signal::SIGTERM);
        let stopped = stopped.wait_with_output().await.unwrap();
        assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
        let report: Value = serde_json::from_slice(&stopped.stdout).unwrap();
        assert!(report["left"]["k1"].as_i64().unwrap() > 0, "{report}");
        let arguments = ["keys", "rotate"];
        let outputs = join_all((0..3).map(|_| run(&arguments, &variables))).await;
        is_done.store(true, Relaxed);
        outputs
    };
    let (seen, invalidated, rotations) = tokio::join!(
        join_all((0..4).map(|n| issue(&replicas[n % 2]))),
        invalidate(&replicas[0]),
        rotate()
    );

    for rotation in &rotations {
        assert_eq!(
            (rotation.code, rotation.err.as_str()),
            (0, ""),
            "{rotation:?}"
        );
        assert_eq!(report(rotation)["left"], json!({}));
        assert_eq!(report(rotation)["failed"], 0);
    }
    assert_eq!(world.count(REMAINING).await, 0);
    assert!(invalidated > 10, "only {invalidated} invalidations");
    let with_ciphertext = "SELECT count(*) FROM tokens WHERE NOT is_valid AND ciphertext <> ''";
    assert_eq!(world.count(with_ciphertext).await, 0);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(world.count(deadlocks).await, 0);
    let events = "SELECT count(*) FROM audit_events WHERE kind = 'keys.rotated' AND detail->>'actor' LIKE 'cli:%'
                AND detail->>'key' = 'k2' AND (detail->>'rotated')::int > 0 AND detail->'failed' = '0'";
    // The stopped rotation and at least one finished rotation.
    assert!(world.count(events).await >= 2);

    let rows: Vec<(Uuid, String, Vec<u8>, String, bool)> =
        sqlx::query_as("SELECT id, user_id, ciphertext, fingerprint, is_valid FROM tokens")
            .fetch_all(&world.db)
            .await
            .unwrap();
    let (ring, mut recorded) = (new_ring(), HashMap::new());
    for (id, user_id, ciphertext, fingerprint, is_valid) in rows {
        if is_valid {
            let combination = Combination {
                user_id: user_id.into(),
                country: None,
                bank: None,
                access: Access::default(),
            };
            let token = ring.decrypt(&ciphertext, id, &combination).unwrap();
            assert_eq!(ring.fingerprint(token.expose()).to_string(), fingerprint);
        }
        recorded.insert(id.to_string(), fingerprint);
    }
    let seen: Vec<_> = seen.into_iter().flatten().collect();
    assert!(seen.len() > 100, "only {} handouts", seen.len());
    for (id, token) in &seen {
        assert_eq!(ring.fingerprint(token).to_string(), recorded[id], "{id}");
    }

    // The old key can be removed from the settings.
    let settings = [("TOKEN_KEYS", NEW_KEY)];
    let online = run(&["check", "--online"], &world.variables(&settings)).await;
    assert_eq!(online.code, 0, "{online:?}");
    let replica = world.replica_with(&settings).await;
    for user in 0..100 {
        let answer = replica.issue(token_request(user)).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        let fingerprint = ring.fingerprint(answer.token());
        assert_eq!(fingerprint.to_string(), answer.text("fingerprint"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_skips_changed_and_locked_tokens() {
    let world = World::new().await;
    seed(&world, 3).await;
    let replica = world.replica().await;
    let tokens = list_tokens_under_key(
        &mut world.db.acquire().await.unwrap(),
        "k1",
        Uuid::nil(),
        10,
    )
    .await
    .unwrap();
    let ring = new_ring();
    let changes: Vec<_> = tokens
        .into_iter()
        .map(|old| {
            let token = old_ring()
                .decrypt(&old.ciphertext, old.id, &old.combination)
                .unwrap();
            let new = ring.encrypt(&token, old.id, &old.combination);
            (old, new)
        })
        .collect();
    let path = format!("/bank/tokens/{}/invalidate", changes[0].0.id);
    let answer = send(replica.post(&path, &json!({"reason": "used"}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // Another transaction locks this token. The rotation must not wait for it.
    let mut transaction = world.db.begin().await.unwrap();
    sqlx::query("SELECT FROM tokens WHERE id = $1 FOR UPDATE")
        .bind(changes[1].0.id)
        .execute(&mut *transaction)
        .await
        .unwrap();

    assert_eq!(
        replace_ciphertexts(&mut world.db.acquire().await.unwrap(), &changes)
            .await
            .unwrap(),
        1
    );
    transaction.rollback().await.unwrap();
    assert_eq!(
        replace_ciphertexts(&mut world.db.acquire().await.unwrap(), &changes)
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        replace_ciphertexts(&mut world.db.acquire().await.unwrap(), &changes)
            .await
            .unwrap(),
        0
    );
    let empty =
        "SELECT count(*) FROM tokens WHERE ciphertext = '' AND key_id = 'k1' AND NOT is_valid";
    assert_eq!(world.count(empty).await, 1);
    assert_eq!(world.count(ROTATED).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_tokens_are_counted_and_named_and_stay_unchanged() {
    let world = World::new().await;
    seed(&world, 1200).await;
    let keys = both_keys();
    let variables = world.variables(&[("TOKEN_KEYS", &keys)]);
    let unreadable = make_unreadable(&world).await;
    let output = run(&["keys", "rotate"], &variables).await;
    assert_eq!(output.code, 1, "{output:?}");
    let expected = json!({"rotated": 1195, "left": {"k1": 4, "k9": 1}, "failed": 5});
    assert_eq!(report(&output), expected);
    for (_, id) in &unreadable {
        let lines = output
            .err
            .lines()
            .filter(|line| line.contains(&id.to_string()));
        assert_eq!(lines.count(), 1, "{id}: {output:?}");
    }
    assert!(output.err.contains("5 stored tokens"), "{output:?}");
    let detail: Value =
        sqlx::query_scalar("SELECT detail FROM audit_events WHERE kind = 'keys.rotated'")
            .fetch_one(&world.db)
            .await
            .unwrap();
    assert_eq!(
        (&detail["rotated"], &detail["failed"]),
        (&json!(1195), &json!(5))
    );

    // TOKEN_KEYS cannot be a flag, and both key settings are required.
    let flag = run(&["keys", "rotate", "--token-keys", OLD_KEY], &variables).await;
    assert_eq!((flag.code, flag.out.as_str()), (2, ""), "{flag:?}");
    let without_keys = [("DATABASE_URL".to_owned(), world.url.clone())];
    let rejected = run(&["keys", "rotate"], &without_keys).await;
    assert_eq!(
        (rejected.code, rejected.err.lines().count()),
        (2, 2),
        "{rejected:?}"
    );
}

/// Makes the tokens of the first five users unreadable in different ways. Returns the users and token ids.
async fn make_unreadable(world: &World) -> Vec<(usize, Uuid)> {
    let changes = [
        // Two rows exchange their ciphertexts.
        "UPDATE tokens t SET ciphertext = o.ciphertext FROM tokens o
         WHERE (t.user_id, o.user_id) IN (('u-0', 'u-1'), ('u-1', 'u-0'))",
        "UPDATE tokens SET ciphertext = set_bit(ciphertext, 400, 1 - get_bit(ciphertext, 400)) WHERE user_id = 'u-2'",
        "UPDATE tokens SET ciphertext = substr(ciphertext, 2) WHERE user_id = 'u-3'",
        r"UPDATE tokens SET key_id = 'k9', ciphertext = overlay(ciphertext PLACING '\x6b39'::bytea FROM 3) WHERE user_id = 'u-4'",
    ];
    for change in changes {
        sqlx::query(change).execute(&world.db).await.unwrap();
    }
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM tokens WHERE user_id IN ('u-0', 'u-1', 'u-2', 'u-3', 'u-4') ORDER BY user_id",
    )
    .fetch_all(&world.db)
    .await
    .unwrap();
    ids.into_iter().enumerate().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_token_is_503_and_other_tokens_are_handed_out() {
    let world = World::new().await;
    seed(&world, 10).await;
    let unreadable = make_unreadable(&world).await;
    let mut process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    for (user, id) in &unreadable {
        let answer = api.issue(token_request(*user)).await;
        answer.assert_problem(503, "token-unreadable");
        assert!(answer.retry_after().is_some());
        let alarm = loop {
            let line = process.next_line().await;
            if line.contains("ALARM") {
                break line;
            }
        };
        assert!(alarm.contains(&id.to_string()), "{id}: {alarm}");
    }
    let counted = scrape(&api).await["tokens_unreadable_total"];
    assert_eq!(counted, unreadable.len() as f64);
    for user in 5..10 {
        let answer = api.issue(token_request(user)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.token(), format!("secret-of-u-{user}"));
    }
    assert_eq!(world.sandbox.minted(), 0);
    // Only `no-cache` replaces an unreadable token.
    let renewed = api.issue_with(token_request(0), "no-cache").await;
    assert_eq!(
        (renewed.status, api.issue(token_request(0)).await.token()),
        (201, renewed.token())
    );

    let invalidation = api.post(
        "/bank/tokens/invalidate",
        &json!({"reason": "requested", "userId": "u-2"}),
    );
    assert_eq!(send(invalidation).await.body, json!({"invalidated": 1}));
    assert_eq!(api.issue(token_request(2)).await.status, 201);

    // A replica without the old key cannot hand out tokens under it. It can mint new ones.
    let new_key_only = world.replica_with(&[("TOKEN_KEYS", NEW_KEY)]).await;
    new_key_only
        .issue(token_request(7))
        .await
        .assert_problem(503, "token-unreadable");
    assert_eq!(new_key_only.issue(token_request(70)).await.status, 201);
}
