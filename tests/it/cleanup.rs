//! Cleanup by the command, by the schedule and by `POST /maintenance/cleanup`.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};
use token_vendor::db::cleanup::{
    abandon_mints, count_due, expire_tokens, has_recent_handouts, purge_mints, purge_slots,
    purge_tokens,
};
use token_vendor::model::{Origin, Scope};

use crate::audit_plans::{one_connection, pages_fetched};
use crate::metrics::scrape;
use crate::support::{Process, World, eventually, program, run, send, send_signal};

const VALID: &str = "SELECT count(*) FROM tokens WHERE is_valid";

/// Inserts `count` tokens that expired `age` ago, with their slots and mints.
pub async fn seed(world: &World, user: &str, count: u32, age: &str, is_valid: bool) {
    let seed = format!(
        "INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                             is_valid, ciphertext, key_id, fingerprint)
         SELECT '{user}', gen_random_uuid(), '', 'bank-' || n, 0, 3600, now() - interval '{age}' - interval '1 hour',
                now() - interval '{age}', now() - interval '{age}', {is_valid}, 'x', 'k1', 'f' || n
         FROM generate_series(1, {count}) n;
         INSERT INTO slots (user_id, country, bank, access, token_id, usable_until, claimed_at)
         SELECT user_id, country, bank, access, id, ends_at, issued_at FROM tokens WHERE user_id = '{user}';
         INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id,
                            started_at, finished_at, outcome)
         SELECT user_id, id, country, bank, access, 3600, 1, 'r', 'c', 'q', issued_at, issued_at, 'minted'
         FROM tokens WHERE user_id = '{user}'"
    );
    world.db.execute(AssertSqlSafe(seed)).await.unwrap();
}

/// Runs the command and returns its exit code and its summary.
async fn cleanup(world: &World, arguments: &[&str], more: &[(&str, &str)]) -> (i32, Value) {
    let arguments = [&["cleanup"], arguments].concat();
    let output = program(&arguments, &world.variables(more))
        .output()
        .await
        .unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), summary)
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_expires_and_purges_exactly_what_is_due() {
    let world = World::unchecked().await;
    seed(&world, "expired", 30, "1 hour", true).await;
    seed(&world, "old", 20, "500 days", false).await;
    let replica = world.replica().await;
    let live = replica.issue(json!({"userId": "u-1"})).await;
    let abandoned = "INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client,
                                        request_id, started_at)
                     VALUES ('u-2', gen_random_uuid(), 'LT', '', 0, 3600, 1, 'r', 'c', 'q', now() - interval '10 min')";
    world.db.execute(abandoned).await.unwrap();

    let (code, due) = cleanup(&world, &["--dry-run"], &[]).await;
    assert_eq!((code, &due["dryRun"]), (0, &json!(true)));
    let expected = [
        ("expired", 30),
        ("abandonedMints", 1),
        ("purgedTokens", 20),
        ("purgedMints", 20),
        ("purgedCombinations", 20),
    ];
    for (member, count) in expected {
        assert_eq!(due[member], count, "{member} of {due}");
    }
    assert_eq!(world.count(VALID).await, 31);

    let (code, done) = cleanup(&world, &["--batch-size", "7"], &[]).await;
    assert_eq!((code, &done["complete"]), (0, &json!(true)), "{done}");
    for (member, count) in expected {
        assert_eq!(done[member], count, "{member} of {done}");
    }
    let expired = "SELECT count(*) FROM audit_events e JOIN tokens t ON t.id = e.token_id
                WHERE e.kind = 'token.expired' AND NOT t.is_valid AND t.ciphertext = '' AND t.invalidated_at IS NULL";
    assert_eq!(world.count(expired).await, 30);
    let unknown = "SELECT count(*) FROM audit_events e JOIN mints m ON m.id = e.token_id
                   WHERE e.kind = 'token.mint_unknown' AND e.country = 'LT' AND m.outcome = 'unknown'";
    assert_eq!(world.count(unknown).await, 1);
    for table in ["tokens", "mints", "slots"] {
        let old = format!("SELECT count(*) FROM {table} WHERE user_id = 'old'");
        let remaining: i64 = sqlx::query_scalar(AssertSqlSafe(old))
            .fetch_one(&world.db)
            .await
            .unwrap();
        assert_eq!(remaining, 0, "{table}");
    }
    assert_eq!(
        replica.issue(json!({"userId": "u-1"})).await.token(),
        live.token()
    );
    let ran = "SELECT count(*) FROM audit_events WHERE kind = 'cleanup.ran' AND detail->>'actor' LIKE 'cli:%@%'
               AND detail->>'expired' = '30'";
    assert_eq!(world.count(ran).await, 1);
    let recorded = [
        ("purgedTokens", 20),
        ("purgedMints", 20),
        ("purgedCombinations", 20),
    ];
    for (member, count) in recorded {
        assert_eq!(count_recorded(&world, member).await, count, "{member}");
    }
    let events = "SELECT count(*) FROM audit_events WHERE kind = 'cleanup.ran'";
    let events_before = world.count(events).await;

    // A second run finds nothing and records no event.
    let (_, again) = cleanup(&world, &[], &[]).await;
    assert_eq!(
        (&again["expired"], &again["complete"]),
        (&json!(0), &json!(true))
    );
    assert_eq!(world.count(events).await, events_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_reads_only_rows_that_are_due() {
    let world = World::unchecked().await;
    seed(&world, "live", 20_000, "-20 days", true).await;
    seed(&world, "kept", 20_000, "5 days", false).await;
    seed(&world, "due", 5, "1 hour", true).await;
    seed(&world, "old", 5, "500 days", false).await;
    world.db.execute("VACUUM ANALYZE").await.unwrap();
    let pool = one_connection(&world).await;
    let (now, age) = (chrono::Utc::now(), Duration::from_secs(400 * 86_400));
    let before = pages_fetched(&pool, "tokens|mints|slots").await;
    let mut connection = pool.acquire().await.unwrap();
    let due = count_due(&mut connection, Some(age)).await.unwrap();
    let counted = (
        due.expired,
        due.abandoned_mints,
        due.tokens,
        due.mints,
        due.slots,
    );
    assert_eq!(counted, (5, 0, 5, 5, 5));
    let expired = expire_tokens(&mut connection, now, 10).await.unwrap();
    let abandoned = abandon_mints(&mut connection, now, 10).await.unwrap();
    assert_eq!((expired, abandoned), (5, 0));
    let origin = Origin::Actor("test".into());
    let tokens = purge_tokens(&mut connection, now, age, 10, &origin).await;
    let mints = purge_mints(&mut connection, now, age, 10, &origin).await;
    let slots = purge_slots(&mut connection, now, age, 10, &origin).await;
    let purged = (tokens.unwrap(), mints.unwrap(), slots.unwrap());
    drop(connection);
    assert_eq!(purged, ((5, 5), 0, 5));
    let pages = pages_fetched(&pool, "tokens|mints|slots").await - before;
    assert!(pages < 500, "{pages} pages for 20 rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_handouts_are_detected() {
    let world = World::new().await;
    let replica = world.replica().await;
    let hour = Duration::from_secs(3600);
    replica.issue(json!({"userId": "u-1"})).await;
    assert!(
        !has_recent_handouts(&mut world.db.acquire().await.unwrap(), hour)
            .await
            .unwrap(),
        "a mint does not count"
    );
    replica.issue(json!({"userId": "u-1"})).await;
    assert!(
        has_recent_handouts(&mut world.db.acquire().await.unwrap(), hour)
            .await
            .unwrap()
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    let window = Duration::from_millis(10);
    assert!(
        !has_recent_handouts(&mut world.db.acquire().await.unwrap(), window)
            .await
            .unwrap(),
        "an old handout"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_keep_purges_nothing() {
    let world = World::unchecked().await;
    seed(&world, "old", 5, "5000 days", false).await;
    let keep = [("TOKEN_RETENTION", "keep"), ("AUDIT_RETENTION", "keep")];
    let (_, done) = cleanup(&world, &[], &keep).await;
    assert_eq!(
        (&done["purgedTokens"], &done["complete"]),
        (&json!(0), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_retention_must_be_30_days_longer_than_token_retention() {
    let world = World::unchecked().await;
    for (tokens, audit) in [("30d", "59d"), ("411d", "440d"), ("keep", "36500d")] {
        let settings = [("TOKEN_RETENTION", tokens), ("AUDIT_RETENTION", audit)];
        for command in ["serve", "cleanup", "check"] {
            let ended = run(&[command], &world.variables(&settings)).await;
            assert_eq!(ended.code, 2, "{command}: {ended:?}");
            assert!(ended.err.contains("AUDIT_RETENTION"), "{ended:?}");
        }
    }
    let settings = [("TOKEN_RETENTION", "30d"), ("AUDIT_RETENTION", "60d")];
    assert_eq!(cleanup(&world, &[], &settings).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_evidence_of_a_token_is_kept_as_long_as_its_record() {
    let world = World::unchecked().await;
    let seed = "
        SELECT create_audit_partition(now() - interval '425 days');
        INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at, is_valid,
                            ciphertext, key_id, fingerprint)
        SELECT 'u-1', gen_random_uuid(), '', '', 0, 2592000, t, t + '30 days', t + '30 days', false, '', 'k1', 'f'
        FROM (SELECT now() - interval '425 days' AS t) x;
        INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id,
                           started_at, finished_at, outcome)
        SELECT user_id, id, '', '', 0, lifetime, 1, 'r', 'c', 'q', issued_at, issued_at, 'minted' FROM tokens;
        INSERT INTO audit_events (id, occurred_at, kind, user_id, token_id)
        SELECT gen_random_uuid(), issued_at, 'token.minted', user_id, id FROM tokens";
    world.db.execute(seed).await.unwrap();
    let (_, done) = cleanup(&world, &[], &[]).await;
    assert_eq!(done["complete"], true, "{done}");
    let evidence = "SELECT count(*) FROM tokens t JOIN mints m ON m.id = t.id JOIN audit_events e ON e.token_id = t.id
                    WHERE e.kind = 'token.minted'";
    assert_eq!(world.count(evidence).await, 1);

    // Later the record, the mint and the month are all past retention.
    let settings = [("TOKEN_RETENTION", "300d"), ("AUDIT_RETENTION", "380d")];
    let (_, done) = cleanup(&world, &[], &settings).await;
    for member in ["purgedTokens", "purgedMints", "partitionsDropped"] {
        assert_eq!(done[member], 1, "{done}");
        assert_eq!(count_recorded(&world, member).await, 1, "{member}");
    }
}

/// Returns the sum of a member of all `cleanup.ran` events.
pub async fn count_recorded(world: &World, member: &str) -> i64 {
    let sum = "SELECT coalesce(sum((detail->>$1)::int8), 0)::int8 FROM audit_events WHERE kind = 'cleanup.ran'";
    let sum = sqlx::query_scalar(sum).bind(member);
    sum.fetch_one(&world.db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_are_recorded_although_a_later_step_fails() {
    let world = World::unchecked().await;
    seed(&world, "old", 20, "500 days", false).await;
    let refuse = "CREATE TRIGGER refuse BEFORE DELETE ON slots FOR EACH ROW EXECUTE FUNCTION refuse_change()";
    world.db.execute(refuse).await.unwrap();
    let (code, _) = cleanup(&world, &["--batch-size", "7"], &[]).await;
    assert_eq!(code, 1);
    assert_eq!(world.count("SELECT count(*) FROM tokens").await, 0);
    assert_eq!(count_recorded(&world, "purgedTokens").await, 20);
    assert_eq!(count_recorded(&world, "purgedCombinations").await, 0);
    let summary = "SELECT (last_summary->>'purgedTokens')::int8 FROM maintenance
                   WHERE last_success_at IS NULL AND last_summary->>'complete' = 'false'";
    assert_eq!(world.count(summary).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_continues_when_its_caller_hangs_up() {
    let world = World::unchecked().await;
    seed(&world, "old", 2000, "500 days", false).await;
    let replica = world.replica_with(&[("CLEANUP_INTERVAL", "off")]).await;
    let request = replica.post("/maintenance/cleanup", &json!({"batchSize": 10}));
    let call = tokio::spawn(send(request));
    eventually("the pass deletes records", async || {
        count_recorded(&world, "purgedTokens").await > 0
    })
    .await;
    call.abort();
    eventually("the pass ends", async || {
        world
            .count("SELECT count(last_success_at) FROM maintenance")
            .await
            == 1
    })
    .await;
    for member in ["purgedTokens", "purgedMints", "purgedCombinations"] {
        assert_eq!(count_recorded(&world, member).await, 2000, "{member}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cleanup_drops_no_table_that_an_operator_detached() {
    let world = World::unchecked().await;
    // An earlier version was interrupted while it detached one month, and before it dropped the next one.
    let months = "
        SELECT create_audit_partition(month::timestamptz)
        FROM unnest('{2019-05-01, 2019-07-01, 2019-08-01, 2019-09-01}'::date[]) month;
        ALTER TABLE audit_events DETACH PARTITION audit_events_2019_05;
        CREATE TABLE audit_events_2019_06 (LIKE audit_events);
        COMMENT ON TABLE audit_events_2019_07 IS 'token-vendor: the cleanup detached this month to drop it';
        ALTER TABLE audit_events DETACH PARTITION audit_events_2019_07";
    sqlx::raw_sql(months).execute(&world.db).await.unwrap();
    detach_half(&world, "audit_events_2019_08").await;
    let (_, done) = cleanup(&world, &[], &[]).await;
    assert_eq!(
        (&done["partitionsDropped"], &done["complete"]),
        (&json!(3), &json!(true)),
        "{done}"
    );
    let kept = "SELECT array_agg(relname::text ORDER BY relname) FROM pg_class
                WHERE relname LIKE 'audit_events_2019%' AND relkind = 'r'";
    let kept: Vec<String> = sqlx::query_scalar(kept).fetch_one(&world.db).await.unwrap();
    assert_eq!(kept, ["audit_events_2019_05", "audit_events_2019_06"]);
}

/// Starts to detach a partition concurrently, and leaves the detach half-done.
async fn detach_half(world: &World, partition: &str) {
    let mut reader = world.db.begin().await.unwrap();
    let read = format!("SELECT FROM {partition}");
    reader.execute(AssertSqlSafe(read)).await.unwrap();
    let mut connection = world.db.acquire().await.unwrap().detach();
    connection
        .execute("SET lock_timeout = '1ms'")
        .await
        .unwrap();
    let detach = format!("ALTER TABLE audit_events DETACH PARTITION {partition} CONCURRENTLY");
    let interrupted = connection.execute(AssertSqlSafe(detach)).await;
    assert!(interrupted.is_err());
    reader.rollback().await.unwrap();
    let pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending";
    assert_eq!(world.count(pending).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_combination_of_a_valid_superseded_token_is_kept() {
    let world = World::unchecked().await;
    seed(&world, "superseded", 1, "-20 days", true).await;
    seed(&world, "ended", 1, "3 days", false).await;
    let old = "UPDATE slots SET usable_until = '-infinity', claimed_at = now() - interval '3 days'";
    world.db.execute(old).await.unwrap();
    let (_, done) = cleanup(&world, &[], &[("TOKEN_RETENTION", "1d")]).await;
    assert_eq!(done["purgedCombinations"], 1, "{done}");
    let kept = "SELECT count(*) FROM slots WHERE user_id = 'superseded'";
    assert_eq!(world.count(kept).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_and_killed_runs_expire_each_token_once() {
    let world = World::unchecked().await;
    seed(&world, "expired", 4000, "1 hour", true).await;
    let variables = world.variables(&[]);
    let arguments = ["cleanup", "--batch-size", "10"];
    let mut killed = program(&arguments, &variables).spawn().unwrap();
    let expired = "SELECT count(*) FROM audit_events WHERE kind = 'token.expired'";
    eventually("300 tokens are expired", async || {
        world.count(expired).await >= 300
    })
    .await;
    killed.kill().await.unwrap();

    let runs = join_all((0..4).map(|_| cleanup(&world, &["--batch-size", "100"], &[]))).await;
    assert!(runs.iter().all(|(code, _)| *code == 0));
    assert_eq!(world.count(expired).await, 4000);
    let distinct = "SELECT count(DISTINCT token_id) FROM audit_events WHERE kind = 'token.expired'";
    assert_eq!(world.count(distinct).await, 4000);
    assert_eq!(world.count(VALID).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_stops_at_sigterm_and_at_its_max_runtime() {
    let world = World::unchecked().await;
    seed(&world, "expired", 3000, "1 hour", true).await;
    let (_, done) = cleanup(
        &world,
        &["--batch-size", "1", "--max-runtime", "200ms"],
        &[],
    )
    .await;
    assert_eq!(done["complete"], false);
    let child = program(&["cleanup", "--batch-size", "1"], &world.variables(&[]))
        .spawn()
        .unwrap();
    let before = world.count(VALID).await;
    eventually("the first token is expired", async || {
        world.count(VALID).await < before
    })
    .await;
    send_signal(&child, Signal::SIGTERM);
    let output = child.wait_with_output().await.unwrap();
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &summary["complete"]),
        (Some(0), &json!(false))
    );
    assert!(world.count(VALID).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_cleans_up_and_the_endpoint_reports_its_state() {
    let world = World::unchecked().await;
    seed(&world, "expired", 10, "1 hour", true).await;
    let unscheduled = world.replica_with(&[("CLEANUP_INTERVAL", "off")]).await;
    let before = unscheduled.get("/maintenance/cleanup").await;
    assert_eq!(before.status, 200, "{before:?}");
    assert_eq!(before.body["overdueTokens"], 10);
    assert!(before.body["oldestOverdue"].is_string());
    assert_eq!(
        (&before.body["lastRunAt"], &before.body["nextDue"]),
        (&Value::Null, &Value::Null)
    );

    let scheduled = Process::serve(&world.variables(&[("CLEANUP_INTERVAL", "1s")])).await;
    let mut after = unscheduled.get("/maintenance/cleanup").await;
    eventually("a run succeeds", async || {
        after = unscheduled.get("/maintenance/cleanup").await;
        !after.body["lastSuccessAt"].is_null() && world.count(VALID).await == 0
    })
    .await;
    drop(scheduled);
    assert_eq!(
        (&after.body["overdueTokens"], &after.body["oldestOverdue"]),
        (&json!(0), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_runs_a_cleanup_and_names_invalid_members() {
    let world = World::unchecked().await;
    seed(&world, "expired", 10, "1 hour", true).await;
    world
        .add_client(("issuer", "x"), &[Scope::TokensIssue])
        .await;
    let replica = world.replica_with(&[("CLEANUP_INTERVAL", "off")]).await;
    let post = async |body: Value| send(replica.post("/maintenance/cleanup", &body)).await;
    for (body, pointer) in [
        (json!({"batchSize": 0}), "#/batchSize"),
        (json!({"batchSize": 10_001}), "#/batchSize"),
        (json!({"maxRuntimeSeconds": 1.5}), "#/maxRuntimeSeconds"),
        (json!({"dryRun": 1}), "#/dryRun"),
        (json!({"dry_run": true}), "#/dry_run"),
    ] {
        let answer = post(body.clone()).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), [pointer], "{body}");
    }
    let dry = post(json!({"dryRun": true})).await;
    assert_eq!((dry.status, &dry.body["expired"]), (200, &json!(10)));
    let done = post(json!({"batchSize": 3, "maxRuntimeSeconds": 30})).await;
    assert_eq!(
        (&done.body["expired"], &done.body["complete"]),
        (&json!(10), &json!(true))
    );
    let ran = "SELECT count(*) FROM audit_events WHERE kind = 'cleanup.ran' AND client = 'admin'";
    assert_eq!(world.count(ran).await, 1);
    let without_body = replica.request(Method::POST, "/maintenance/cleanup");
    let summary = send(without_body).await;
    assert_eq!(summary.status, 200, "{summary:?}");
    assert_eq!(summary.body["dryRun"], false);

    let refused = replica.request_by(("issuer", "x"), Method::GET, "/maintenance/cleanup");
    send(refused).await.assert_problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_created_and_dropped_without_blocking_handouts() {
    let world = World::unchecked().await;
    world
        .db
        .execute(
            "SELECT create_audit_partition('2019-05-01'), create_audit_partition('2019-06-01');
             INSERT INTO audit_events (id, occurred_at, kind)
             VALUES (gen_random_uuid(), '2019-05-03', 'x'), (gen_random_uuid(), '2019-06-03', 'x')",
        )
        .await
        .unwrap();
    // A month that is only partly sealed would be kept.
    let settings = [("CLEANUP_INTERVAL", "off"), ("SEAL_INTERVAL", "off")];
    let replica = world.replica_with(&settings).await;
    let body = json!({"userId": "u-1"});
    replica.issue(body.clone()).await;

    // A long read of the audit log blocks the removal of partitions.
    let mut reader = world.db.begin().await.unwrap();
    reader
        .execute("SELECT count(*) FROM audit_events")
        .await
        .unwrap();
    let run = tokio::spawn({
        let request = replica.post("/maintenance/cleanup", &json!({"maxRuntimeSeconds": 5}));
        async move { send(request).await }
    });
    for _ in 0..30 {
        let answer = replica.issue(body.clone()).await;
        assert_eq!(answer.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let blocked = run.await.unwrap();
    assert_eq!(blocked.status, 200, "{blocked:?}");
    assert_eq!(blocked.body["complete"], false);
    // The reader blocks neither the creation of a partition nor the handouts.
    world
        .db
        .execute("SELECT create_audit_partition('2031-01-01')")
        .await
        .unwrap();
    assert_eq!(replica.issue(body.clone()).await.status, 200);
    reader.rollback().await.unwrap();

    let (_, done) = cleanup(&world, &[], &[]).await;
    assert_eq!(
        (&done["partitionsDropped"], &done["complete"]),
        (&json!(2), &json!(true)),
        "{done}"
    );
    let remaining =
        "SELECT count(*) FROM pg_class WHERE relname LIKE 'audit_events_2019%' AND relkind = 'r'";
    assert_eq!(world.count(remaining).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_the_backlog_and_the_work_of_cleanup() {
    let world = World::unchecked().await;
    seed(&world, "expired", 30, "2 hours", true).await;
    seed(&world, "old", 20, "500 days", false).await;
    let off = [("CLEANUP_INTERVAL", "off")];
    let replica = world.replica_with(&off).await;
    let samples = scrape(&replica).await;
    assert_eq!(samples["cleanup_overdue_tokens"], 30.0);
    assert_eq!(samples["cleanup_last_success_timestamp_seconds"], 0.0);
    let two_hours_ago = (chrono::Utc::now().timestamp() - 7200) as f64;
    let oldest = samples["cleanup_oldest_overdue_timestamp_seconds"];
    assert!((oldest - two_hours_ago).abs() < 600.0, "{oldest}");

    let before = chrono::Utc::now().timestamp();
    let run = replica.post("/maintenance/cleanup", &json!({}));
    assert_eq!(send(run).await.status, 200);
    // The backlog is read from the database, so every replica reports it. The row counters belong to the replica that ran
    // the cleanup.
    let another = world.replica_with(&off).await;
    let another = scrape(&another).await;
    assert_eq!(another["cleanup_overdue_tokens"], 0.0);
    assert_eq!(another["cleanup_oldest_overdue_timestamp_seconds"], 0.0);
    assert!(another["cleanup_last_success_timestamp_seconds"] >= before as f64);
    let samples = scrape(&replica).await;
    for (kind, rows) in [
        ("expired", 30.0),
        ("purged_tokens", 20.0),
        ("abandoned_mints", 0.0),
    ] {
        let name = format!("cleanup_rows_total{{kind=\"{kind}\"}}");
        assert_eq!(samples[&name], rows, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_tokens_are_expired_while_the_service_hands_out_tokens() {
    let world = World::unchecked().await;
    let expired = "INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                                       is_valid, ciphertext, key_id, fingerprint)
                   SELECT 'u-' || n % 1000, gen_random_uuid(), '', 'bank-' || n, 0, 3600, now() - interval '2 hours',
                          now() - interval '1 hour', now() - interval '1 hour', true, 'x', 'k1', 'f' || n
                   FROM generate_series(1, 1000000) n";
    world.db.execute(expired).await.unwrap();
    let every_second = [("CLEANUP_INTERVAL", "1s")];
    let replica = world.replica_with(&every_second).await;
    let body = json!({"userId": "u-1"});
    let minted = replica.issue(body.clone()).await;
    let run = tokio::spawn({
        let body = json!({"batchSize": 10_000, "maxRuntimeSeconds": 300});
        let request = replica
            .post("/maintenance/cleanup", &body)
            .timeout(Duration::from_secs(300));
        async move { send(request).await }
    });
    let mut handouts = 0;
    while !run.is_finished() {
        replica.issue(body.clone()).await.assert_reused(&minted);
        handouts += 1;
    }
    let summary = run.await.unwrap();
    assert_eq!(
        (summary.status, &summary.body["complete"]),
        (200, &json!(true)),
        "{summary:?}"
    );
    assert!(handouts > 10, "{handouts}");
    // The endpoint and the schedule together expired each token once.
    eventually("the scheduled run ends", async || {
        world.count(VALID).await == 1
    })
    .await;
    let distinct = "SELECT count(DISTINCT token_id) FROM audit_events WHERE kind = 'token.expired'";
    let events = "SELECT count(*) FROM audit_events WHERE kind = 'token.expired'";
    assert_eq!(
        (world.count(distinct).await, world.count(events).await),
        (1_000_000, 1_000_000)
    );
    let reused = "SELECT count(*) FROM audit_events WHERE kind = 'token.reused'";
    assert_eq!(world.count(reused).await, handouts);
}
