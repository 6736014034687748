//! `audit verify` finds what somebody with the password of the database can change in the sealed audit log.

use std::path::PathBuf;

use chrono::{Months, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};

use crate::sealing::{FAST, fetch, seed, wait_for_size};
use crate::support::server::Server;
use crate::support::{Ended, Replica, World, eventually, run, send};

/// The settings of a signed log.
struct Keys {
    signing: String,
    verifier: String,
}

async fn make_keys() -> Keys {
    let made = run(&["seal", "keys"], &[]).await;
    let (signing, verifier) = made.out.trim_end().split_once('\n').unwrap();
    Keys {
        signing: signing.into(),
        verifier: verifier.into(),
    }
}

/// A sealed log of some hundred events, and a checkpoint that was kept.
struct Log {
    world: World,
    replica: Replica,
    keys: Keys,
    kept: String,
    folder: PathBuf,
}

impl Log {
    async fn new() -> Log {
        Log::on(World::unchecked().await).await
    }

    async fn on(world: World) -> Log {
        let keys = make_keys().await;
        let replica = world
            .replica_with(&[FAST, ("SEAL_SIGNING_KEY", &keys.signing)])
            .await;
        seed(&world, &replica, 300).await;
        let folder =
            std::env::temp_dir().join(format!("token-vendor-verify-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let mut log = Log {
            world,
            replica,
            keys,
            kept: String::new(),
            folder,
        };
        log.wait_until_all_is_sealed().await;
        let kept = fetch(&log.replica, "/audit/log/checkpoint").await.unwrap();
        log.kept = log.write("kept", &kept);
        log.write("key", log.keys.verifier.as_bytes());
        log
    }

    async fn wait_until_all_is_sealed(&self) {
        let count = self.world.count("SELECT count(*) FROM audit_events").await;
        wait_for_size(&self.replica, count as u64).await;
    }

    /// Writes a file and returns its path.
    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    async fn execute(&self, statement: &str) {
        let statement = format!("ALTER TABLE audit_events DISABLE TRIGGER USER; {statement}");
        let statement = sqlx::AssertSqlSafe(statement);
        sqlx::raw_sql(statement)
            .execute(&self.world.db)
            .await
            .unwrap();
    }

    async fn verify(&self, arguments: &[&str]) -> Ended {
        run(
            &[&["audit", "verify"], arguments].concat(),
            &self.world.variables(&[]),
        )
        .await
    }

    /// Returns what a verification without other evidence prints for an intact log.
    async fn assert_intact(&self, arguments: &[&str]) -> Value {
        let ended = self.verify(arguments).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.out).unwrap()
    }

    async fn assert_changed(&self, arguments: &[&str], naming: &str) {
        self.verify(arguments).await.refused(1, naming);
    }

    /// Seals the log again from its first event, as the owner of the database can.
    async fn rebuild(&self) {
        self.execute(
            "DELETE FROM audit_tiles;
             UPDATE audit_log SET size = 0, last_at = 'epoch', last_id = '00000000-0000-0000-0000-000000000000',
                                  checkpoint = NULL",
        )
        .await;
        self.wait_until_all_is_sealed().await;
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Selects an event in the middle of the log.
const ONE: &str = "(SELECT id FROM audit_events ORDER BY occurred_at, id OFFSET 150 LIMIT 1)";

#[tokio::test(flavor = "multi_thread")]
async fn an_intact_log_is_verified() {
    let log = Log::new().await;
    let verified = log.assert_intact(&[]).await;
    assert_eq!(verified["first"], 0);
    assert_eq!(verified["compared"], verified["size"]);
    assert!(verified["size"].as_u64().unwrap() > 300);
    assert_eq!(verified["isSigned"], false);
    let key = log.write("key", log.keys.verifier.as_bytes());
    let arguments = ["--public-key", &key, "--checkpoint", &log.kept];
    let verified = log.assert_intact(&arguments).await;
    assert_eq!(verified["isSigned"], true);
    assert_eq!(verified["checkpoints"], 1);
    // The log grows.
    seed(&log.world, &log.replica, 300).await;
    log.wait_until_all_is_sealed().await;
    let later = log.assert_intact(&arguments).await;
    assert!(later["size"].as_u64() > verified["size"].as_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_events_are_found() {
    let log = Log::new().await;
    let dump = "CREATE TABLE saved AS TABLE audit_events";
    log.execute(dump).await;
    let after = "UPDATE audit_events e SET occurred_at = o.occurred_at FROM audit_events o
                 WHERE o.id = (SELECT id FROM audit_events ORDER BY occurred_at, id OFFSET 200 LIMIT 1)";
    let shift = "UPDATE audit_events e SET client = o.client, request_id = o.request_id
                 FROM (SELECT *, lead(id) OVER (ORDER BY occurred_at, id) AS next FROM saved) o
                 WHERE e.id = o.next AND e.kind = 'token.reused'";
    let first = "(SELECT id FROM audit_events ORDER BY occurred_at, id LIMIT 1)";
    let insert = |at: &str| {
        format!(
            "INSERT INTO audit_events (id, occurred_at, kind)
             SELECT gen_random_uuid(), {at}, 'audit.read' FROM audit_events WHERE id = {ONE}"
        )
    };
    let update = |set: &str| format!("UPDATE audit_events SET {set} WHERE id = {ONE}");
    let delete = |which: &str| format!("DELETE FROM audit_events WHERE {which}");
    let last =
        "occurred_at >= (SELECT occurred_at FROM audit_events ORDER BY 1 OFFSET 250 LIMIT 1)";
    for (change, naming) in [
        (update("client = 'x'"), "entry 150 differs"),
        (
            update("occurred_at = occurred_at + interval '1 h'"),
            "entry 150 differs",
        ),
        (update("id = gen_random_uuid()"), "entry 150 differs"),
        (delete(&format!("id = {ONE}")), "entry 150 differs"),
        (delete(&format!("id <> {ONE}")), "differs"),
        (delete(last), "differs: its event is missing"),
        (delete(&format!("id = {first}")), "no sealed event records"),
        (delete("true"), "all events are missing"),
        (insert("occurred_at + interval '1 us'"), "differs"),
        (
            insert("(SELECT min(occurred_at) - interval '1 s' FROM audit_events)"),
            "entry 0 differs",
        ),
        (
            insert("(SELECT last_at - interval '1 us' FROM audit_log)"),
            "entry",
        ),
        (format!("{after} AND e.id = {ONE}"), "entry 150 differs"),
        (shift.into(), "differs"),
    ] {
        log.execute(&change).await;
        let ended = log.verify(&[]).await;
        assert_eq!(ended.code, 1, "{change}: {ended:?}");
        assert!(ended.err.contains(naming), "{change}: {ended:?}");
        log.execute("DELETE FROM audit_events; INSERT INTO audit_events SELECT * FROM saved")
            .await;
        log.assert_intact(&["--checkpoint", &log.kept]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_tree_are_found() {
    let log = Log::new().await;
    log.execute(
        "CREATE TABLE saved AS TABLE audit_tiles; CREATE TABLE saved_log AS TABLE audit_log",
    )
    .await;
    let flip = |byte: u8, tile: &str| {
        format!(
            "UPDATE audit_tiles SET hashes = set_byte(hashes, {byte}, get_byte(hashes, {byte}) # 1) WHERE {tile}"
        )
    };
    let checkpoint = |value: &str| format!("UPDATE audit_log SET checkpoint = {value}");
    for (change, naming) in [
        (flip(40, "level = 0 AND n = 0"), "entry 1 differs"),
        (flip(4, "level = 1"), "tile 0 of level 1 differs"),
        (
            "DELETE FROM audit_tiles WHERE level = 1".into(),
            "tile 0 of level 1 differs",
        ),
        (
            "DELETE FROM audit_tiles WHERE level = 0 AND n = 1".into(),
            "tile 1 of level 0 is missing",
        ),
        (
            "UPDATE audit_tiles SET first_at = first_at + interval '1 h' WHERE level = 0 AND n = 1"
                .into(),
            "tile 1 of level 0 names another first event",
        ),
        (
            "UPDATE audit_log SET size = size - 1".into(),
            "the checkpoint of the database has",
        ),
        (
            checkpoint("regexp_replace(checkpoint, '[0-9]+', '2')"),
            "the checkpoint of the database has",
        ),
        (checkpoint("'x'"), "it is not a checkpoint"),
    ] {
        // A seal would restore the checkpoint and the last tile.
        log.execute(&format!("BEGIN; {change}; COMMIT")).await;
        log.assert_changed(&[], naming).await;
        log.execute(
            "DELETE FROM audit_tiles; INSERT INTO audit_tiles SELECT * FROM saved;
             UPDATE audit_log l SET size = s.size, checkpoint = s.checkpoint FROM saved_log s",
        )
        .await;
        log.assert_intact(&["--checkpoint", &log.kept]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_rebuilt_is_found_with_a_kept_checkpoint_or_the_public_key() {
    let log = Log::new().await;
    let key = log.write("key", log.keys.verifier.as_bytes());
    log.execute(&format!(
        "UPDATE audit_events SET client = 'x' WHERE id = {ONE}"
    ))
    .await;
    log.rebuild().await;
    // The service signed the new tree, so only a kept checkpoint shows the change.
    log.assert_intact(&["--public-key", &key]).await;
    log.assert_changed(&["--checkpoint", &log.kept], "does not continue")
        .await;

    // Somebody without the key signs with another.
    let other = make_keys().await;
    let key = log.write("other", other.verifier.as_bytes());
    log.assert_changed(&["--public-key", &key], "no valid signature")
        .await;
    log.execute("UPDATE audit_log SET checkpoint = split_part(checkpoint, '—', 1)")
        .await;
    log.assert_intact(&[]).await;
    let key = log.write("key", log.keys.verifier.as_bytes());
    log.assert_changed(&["--public-key", &key], "no valid signature")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_cut_or_restored_from_an_older_backup_is_found_with_a_kept_checkpoint() {
    let log = Log::new().await;
    let tables = [
        "audit_events",
        "audit_tiles",
        "audit_log",
        "tokens",
        "mints",
    ];
    for table in tables {
        log.execute(&format!("CREATE TABLE saved_{table} AS TABLE {table}"))
            .await;
    }
    seed(&log.world, &log.replica, 100).await;
    log.wait_until_all_is_sealed().await;
    let latest = fetch(&log.replica, "/audit/log/checkpoint").await.unwrap();
    let latest = log.write("latest", &latest);
    for table in tables {
        let restore =
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table}");
        log.execute(&restore).await;
    }
    log.assert_intact(&["--checkpoint", &log.kept]).await;
    log.assert_changed(&["--checkpoint", &latest], "the log has only")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_token_records_are_found() {
    let log = Log::new().await;
    for (change, undo) in [
        (
            "UPDATE tokens SET fingerprint = 'x'",
            "UPDATE tokens t SET fingerprint = s.fingerprint FROM saved s",
        ),
        (
            "UPDATE tokens SET user_id = 'x'",
            "UPDATE tokens t SET user_id = s.user_id FROM saved s",
        ),
        (
            "UPDATE tokens SET country = 'LT'",
            "UPDATE tokens t SET country = s.country FROM saved s",
        ),
        (
            "DELETE FROM tokens",
            "INSERT INTO tokens SELECT * FROM saved",
        ),
    ] {
        log.execute("DROP TABLE IF EXISTS saved; CREATE TABLE saved AS TABLE tokens")
            .await;
        log.execute(change).await;
        log.assert_changed(&[], "token").await;
        log.execute(undo).await;
        log.assert_intact(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_leaves_an_intact_log_and_a_dropped_partition_does_not() {
    let world = World::unchecked().await;
    // Events of two earlier months, which are sealed first.
    for (back, name) in [(20, "old"), (3, "kept")] {
        let month = Utc::now() - Months::new(back);
        let insert = "SELECT create_audit_partition($1)";
        sqlx::query(insert)
            .bind(month)
            .execute(&world.db)
            .await
            .unwrap();
        let insert = "INSERT INTO audit_events (id, occurred_at, kind, client)
                      SELECT gen_random_uuid(), $1 + make_interval(secs => i), 'audit.read', $2
                      FROM generate_series(1, 300) i";
        sqlx::query(insert)
            .bind(month)
            .bind(name)
            .execute(&world.db)
            .await
            .unwrap();
    }
    let log = Log::on(world).await;
    let all = log.assert_intact(&[]).await;
    assert!(all["size"].as_u64().unwrap() > 900);

    let cleaned = run(&["cleanup"], &log.world.variables(&[])).await;
    let summary: Value = serde_json::from_str(&cleaned.out).unwrap();
    assert_eq!(summary["partitionsDropped"], 1, "{cleaned:?}");
    let verified = log.assert_intact(&["--checkpoint", &log.kept]).await;
    assert_eq!(verified["first"], 300);
    log.wait_until_all_is_sealed_after(300).await;
    log.assert_intact(&["--checkpoint", &log.kept]).await;

    let month = (Utc::now() - Months::new(3))
        .format("audit_events_%Y_%m")
        .to_string();
    log.execute(&format!("DROP TABLE {month}")).await;
    log.assert_changed(&[], "no sealed event records").await;
}

impl Log {
    /// Waits until all events are sealed, of which retention deleted this many.
    async fn wait_until_all_is_sealed_after(&self, deleted: u64) {
        let count = self.world.count("SELECT count(*) FROM audit_events").await;
        wait_for_size(&self.replica, count as u64 + deleted).await;
    }
}

/// Transaction ids start again in another server.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_after_a_dump_is_restored_into_another_server() {
    let server = Server::start(&[]).await;
    let Some(pg_dump) = server.program("pg_dump") else {
        server.stop().await;
        eprintln!("skipped: this Postgres has no pg_dump");
        return;
    };
    let log = Log::new().await;
    let mut admin = server.admin().await;
    admin.execute("CREATE DATABASE restored").await.unwrap();
    let restored = server.postgres.url("restored");
    let pipe = format!(
        "pg_dump --no-owner '{}' | psql --quiet --set ON_ERROR_STOP=1 '{restored}'",
        log.world.url
    );
    let path = format!("{}:/usr/bin:/bin", pg_dump.parent().unwrap().display());
    let mut piped = tokio::process::Command::new("sh");
    let piped = piped
        .args(["-c", &pipe])
        .env("PATH", path)
        .output()
        .await
        .unwrap();
    assert!(piped.status.success(), "{piped:?}");

    // The environment adds its client again.
    let mut connection = PgConnection::connect(&restored).await.unwrap();
    connection.execute("DELETE FROM clients").await.unwrap();
    let world = World::on(restored).await;
    let settings = [FAST, ("SEAL_SIGNING_KEY", &*log.keys.signing)];
    let replica = world.replica_with(&settings).await;
    for _ in 0..50 {
        assert!(replica.issue(json!({"userId": "u"})).await.status < 300);
    }
    let events = world.count("SELECT count(*) FROM audit_events").await;
    wait_for_size(&replica, events as u64).await;
    let key = log.write("key", log.keys.verifier.as_bytes());
    let arguments = [
        "audit",
        "verify",
        "--public-key",
        &key,
        "--checkpoint",
        &log.kept,
    ];
    let verified = run(&arguments, &world.variables(&[])).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    replica.service.stop().await;
    drop(world);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_verified_without_the_events_of_the_database() {
    let log = Log::new().await;
    let export = fetch(&log.replica, "/audit/events/export").await.unwrap();
    let whole = log.write("whole", &export);
    let lines: Vec<_> = export.split_inclusive(|byte| *byte == b'\n').collect();
    let part = log.write("part", &lines[100..270].concat());
    let edited =
        String::from_utf8(export.clone())
            .unwrap()
            .replacen("token.reused", "token.minted", 150);
    let edited = log.write("edited", edited.as_bytes());
    let cut = log.write("cut", &[&lines[..50], &lines[51..]].concat().concat());
    log.execute("DELETE FROM audit_events").await;

    let verified = log
        .assert_intact(&["--export", &whole, "--checkpoint", &log.kept])
        .await;
    assert!(
        verified["compared"].as_u64().unwrap() >= lines.len() as u64 - 1,
        "{verified}"
    );
    let verified = log.assert_intact(&["--export", &part]).await;
    assert_eq!(
        (&verified["first"], &verified["compared"]),
        (&json!(100), &json!(170))
    );
    log.assert_changed(&["--export", &edited], "of the export")
        .await;
    log.assert_changed(&["--export", &cut], "entry 50 differs: line 51")
        .await;
    let empty = log.write("empty", b"");
    log.verify(&["--export", &empty])
        .await
        .refused(2, "no sealed event");
    let csv = log.write("csv", b"id,occurredAt\n");
    log.verify(&["--export", &csv]).await.refused(2, "NDJSON");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_cannot_tell_has_exit_code_2() {
    let world = World::new().await;
    let variables = world.variables(&[]);
    let verify = ["audit", "verify"];
    run(&verify, &variables)
        .await
        .refused(2, "no event is sealed");
    let missing = [&verify[..], &["--checkpoint", "/nonexistent"]].concat();
    run(&missing, &variables).await.refused(2, "/nonexistent");
    let url = "postgres://u:p@127.0.0.1:1/x";
    let variables = world.variables(&[("DATABASE_URL", url), ("STARTUP_WAIT", "0s")]);
    run(&verify, &variables).await.refused(2, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_that_stands_still_is_a_readiness_warning() {
    let world = World::new().await;
    let insert = "INSERT INTO audit_events (id, occurred_at, kind)
                  VALUES (gen_random_uuid(), now() - interval '2 minutes', 'audit.read')";
    sqlx::query(insert).execute(&world.db).await.unwrap();
    // A sealer skips the locked row.
    let mut transaction = world.db.begin().await.unwrap();
    let lock = "SELECT size FROM audit_log FOR UPDATE";
    sqlx::query(lock).execute(&mut *transaction).await.unwrap();
    let replica = world.replica_with(&[FAST]).await;
    let warns = async || {
        let ready = send(replica.anonymous(Method::GET, "/health/ready")).await;
        ready.body["warnings"].to_string().contains("not sealed is")
    };
    eventually("readiness warns", warns).await;
    transaction.rollback().await.unwrap();
    eventually("readiness is calm", async || !warns().await).await;
}
