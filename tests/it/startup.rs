//! Startup checks of `serve`, and `migrate`.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sqlx::migrate::Migrate;
use sqlx::{Connection, PgConnection, PgPool};
use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::ChildStderr;
use tokio::time::timeout;

use crate::support::cluster::{create_database_with_encoding, create_empty_database, own_folder};
use crate::support::database_proxy::DatabaseProxy;
use crate::support::{Api, Process, World, eventually, program, run};

async fn execute(db: &PgPool, statement: &'static str) {
    sqlx::raw_sql(statement).execute(db).await.unwrap();
}

async fn is_true(db: &PgPool, query: &'static str) -> bool {
    sqlx::query_scalar(query).fetch_one(db).await.unwrap()
}

async fn database_name(db: &PgPool) -> String {
    let name = sqlx::query_scalar("SELECT current_database()::text");
    name.fetch_one(db).await.unwrap()
}

/// Starts a server that accepts TLS and then breaks the handshake, and returns a URL that requires TLS.
async fn listen_with_broken_tls() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.write_all(b"Sthis is no TLS record").await;
            tokio::spawn(async move { client.read_to_end(&mut Vec::new()).await });
        }
    });
    format!("postgres://u@{address}/x?sslmode=verify-full")
}

/// Waits for a log line that contains the text.
async fn logs_with(lines: &mut Lines<BufReader<ChildStderr>>, text: &str) {
    let search = async { while !lines.next_line().await.unwrap().unwrap().contains(text) {} };
    timeout(Duration::from_secs(60), search).await.expect(text);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_rejects_an_unsuitable_database() {
    let world = World::new().await;
    let serve = async |url: &str| {
        let variables = world.variables(&[("DATABASE_URL", url), ("STARTUP_WAIT", "300ms")]);
        run(&["serve"], &variables).await
    };
    let absent = serve("postgres://u:pass-word@127.0.0.1:1/x").await;
    absent.refused(1, "could not be reached within 300ms");
    assert!(!absent.err.contains("pass-word"), "{absent:?}");
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("postgres://{}/x", silent.local_addr().unwrap());
    // The short STARTUP_WAIT limits the attempt to 1 s instead of the usual 5 s.
    serve(&silent).await.refused(1, "within 1s");
    serve(&create_empty_database().await)
        .await
        .refused(1, "token-vendor migrate");

    for (setting, expected) in [
        ("synchronous_commit = off", "synchronous_commit is off"),
        ("synchronous_commit = local", "synchronous_commit is local"),
        (
            "synchronous_commit = remote_write",
            "synchronous_commit is remote_write",
        ),
        ("default_transaction_read_only = on", "read-only"),
    ] {
        let other = World::new().await;
        let name = database_name(&other.db).await;
        let alter = format!("ALTER DATABASE {name} SET {setting}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(alter))
            .execute(&other.db)
            .await
            .unwrap();
        serve(&other.url).await.refused(1, expected);
        if expected == "read-only" {
            let variables = world.variables(&[("DATABASE_URL", &other.url)]);
            let migrated = run(&["migrate"], &variables).await;
            migrated.refused(1, expected);
            assert_eq!(migrated.err.matches(expected).count(), 1, "{migrated:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_store_every_user_id_is_refused() {
    let world = World::new().await;
    for encoding in ["LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"] {
        let url = create_database_with_encoding(encoding).await;
        let variables = world.variables(&[("DATABASE_URL", &url)]);
        let expected = format!("the encoding of the database is {encoding} instead of UTF8");
        for command in [&["migrate"][..], &["serve"], &["serve", "--migrate"]] {
            run(command, &variables).await.refused(1, &expected);
        }
        let checked = run(&["check", "--online"], &variables).await;
        assert_eq!(checked.code, 1, "{checked:?}");
        assert!(checked.out.contains(&expected), "{checked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_database_error_ends_a_command_at_once() {
    let world = World::new().await;
    let database = database_name(&world.db).await;
    execute(&world.db, "DO $$ BEGIN CREATE ROLE no_free_connection LOGIN CONNECTION LIMIT 0; EXCEPTION WHEN duplicate_object THEN END $$").await;
    let absent_database = world.url.replace(&database, "no_such_database");
    let absent_role = world.url.replace("user=postgres", "user=no_such_role");
    let proxy = DatabaseProxy::start(&world.url).await;
    let without_tls = format!("{}?sslmode=require", proxy.url());
    let broken_tls = listen_with_broken_tls().await;
    let absent_file = format!("{broken_tls}&sslrootcert=/nonexistent");
    // Every command that connects would wait an hour for an error that passes.
    for (url, reason, hint) in [
        (
            &absent_database,
            "\"no_such_database\" does not exist",
            "create the database",
        ),
        (
            &absent_role,
            "\"no_such_role\" does not exist",
            "correct the role",
        ),
        (&without_tls, "server does not support TLS", "sslmode"),
        (&broken_tls, "received corrupt message", "sslmode"),
        (&absent_file, "No such file", "sslmode"),
    ] {
        let variables = world.variables(&[("DATABASE_URL", url), ("STARTUP_WAIT", "1h")]);
        for command in [
            &["serve"][..],
            &["serve", "--migrate"],
            &["migrate"],
            &["client", "list"],
        ] {
            let ended = run(command, &variables).await;
            ended.refused(1, "the database refused the connection: ");
            assert!(
                ended.err.contains(reason) && ended.err.contains(hint),
                "{ended:?}"
            );
            assert!(!ended.err.contains("at line"), "{ended:?}");
        }
        let checked = run(&["check", "--online"], &variables).await;
        assert!(
            checked.out.contains(reason) && !checked.out.contains("at line"),
            "{checked:?}"
        );
    }
    let no_free_connection = world
        .url
        .replace("user=postgres", "user=no_free_connection");
    let settings = [
        ("DATABASE_URL", &*no_free_connection),
        ("STARTUP_WAIT", "300ms"),
    ];
    let ended = run(&["serve"], &world.variables(&settings)).await;
    ended.refused(1, "could not be reached within 300ms: too many connections");
    assert!(!ended.err.contains("at line"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_ends_serve_at_once() {
    let world = World::new().await;
    let data_dir = own_folder();
    let postgres = LocalPostgres::start(LocalPostgresOptions {
        data_dir: data_dir.clone(),
        ..LocalPostgresOptions::default()
    })
    .await
    .unwrap();
    let url = postgres.url("postgres");
    let admin = PgPool::connect(&url).await.unwrap();
    execute(&admin, "CREATE ROLE service LOGIN PASSWORD 'right'").await;
    let hba: String = sqlx::query_scalar("SHOW hba_file")
        .fetch_one(&admin)
        .await
        .unwrap();
    std::fs::write(
        hba,
        "local all postgres trust\nlocal all all scram-sha-256\n",
    )
    .unwrap();
    execute(&admin, "SELECT pg_reload_conf()").await;
    let url = url.replace("user=postgres", "user=service&password=wrong-secret");
    let variables = world.variables(&[("DATABASE_URL", &url), ("STARTUP_WAIT", "1h")]);
    eventually("the server asks for a password", async || {
        let ended = run(&["serve"], &variables).await;
        assert!(
            !ended.err.contains("at line") && !ended.err.contains("wrong-secret"),
            "{ended:?}"
        );
        ended.err.contains("password authentication failed")
    })
    .await;
    admin.close().await;
    postgres.stop().await.unwrap();
    token_vendor::dev::postgres::remove(&data_dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_address_in_the_database_url_works() {
    let world = World::new().await;
    let url = DatabaseProxy::start_at("[::1]:0", &world.url).await.url();
    assert!(url.contains("@[::1]:"), "{url}");
    let variables = world.variables(&[("DATABASE_URL", &url), ("READ_DATABASE_URL", &url)]);
    let checked = run(&["check", "--online"], &variables).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    let process = Process::serve(&variables).await;
    let api = Api::at(process.base.clone());
    assert_eq!(api.issue(json!({"userId": "u"})).await.status, 201);
    assert_eq!(api.get("/bank/tokens/?userId=u").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_hosts_in_a_database_url_are_refused() {
    let world = World::new().await;
    for url in [
        "postgres://u:pass-word@a,b/d",
        "postgres://u:pass-word@a:5432,b:5432/d",
        "postgres://u:pass-word@[::1],[::2]/d",
        "postgres://u:pass-word@/d?host=a,b",
        "postgres://u:pass-word@a/d?port=5432,5433",
        "postgres://u:pass-word@a/d?sslmode=require&target_session_attrs=read-write",
    ] {
        for variable in ["DATABASE_URL", "READ_DATABASE_URL"] {
            let ended = run(&["serve"], &world.variables(&[(variable, url)])).await;
            ended.refused(2, &format!("{variable}: must name one host"));
            assert!(!ended.err.contains("pass-word"), "{ended:?}");
        }
    }
    let comma_elsewhere = "postgres://u,v:pass,word@127.0.0.1:1/d,e";
    let checked = run(
        &["check"],
        &world.variables(&[("DATABASE_URL", comma_elsewhere)]),
    )
    .await;
    assert_eq!(checked.code, 0, "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_says_that_it_waits_for_another_migration() {
    let url = create_empty_database().await;
    let db = PgPool::connect(&url).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    // The lock of `sqlx migrate run`.
    Migrate::lock(&mut other).await.unwrap();
    let variables = World::new().await.variables(&[("DATABASE_URL", &url)]);
    let mut migrate = program(&["migrate"], &variables).spawn().unwrap();
    let mut lines = BufReader::new(migrate.stderr.take().unwrap()).lines();
    logs_with(&mut lines, "waiting for another migration").await;
    let applied = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    assert!(!is_true(&db, applied).await);
    Migrate::unlock(&mut other).await.unwrap();
    assert!(migrate.wait().await.unwrap().success());
    assert!(is_true(&db, applied).await);
}

/// A pooler that shares connections between transactions gives the lock and its release different connections, unless
/// one transaction has both.
#[tokio::test(flavor = "multi_thread")]
async fn migrate_holds_its_lock_only_within_a_transaction() {
    let url = create_empty_database().await;
    let db = PgPool::connect(&url).await.unwrap();
    execute(&db, "CREATE TABLE tokens (id int)").await;
    let variables = World::new().await.variables(&[("DATABASE_URL", &url)]);
    let mut blocker = db.begin().await.unwrap();
    // Creating the table of migrations waits for this index entry.
    sqlx::raw_sql("CREATE TABLE _sqlx_migrations (version bigint)")
        .execute(&mut *blocker)
        .await
        .unwrap();
    let mut migrate = program(&["migrate"], &variables).spawn().unwrap();
    let mut lines = BufReader::new(migrate.stderr.take().unwrap()).lines();
    logs_with(&mut lines, "the migrations still run").await;
    let holder =
        "SELECT state = 'idle in transaction' FROM pg_locks JOIN pg_stat_activity USING (pid)
                  WHERE locktype = 'advisory' AND granted AND datname = current_database()";
    assert!(is_true(&db, holder).await);
    blocker.rollback().await.unwrap();
    // The table that the test made is in the way of the first migration.
    assert_eq!(migrate.wait().await.unwrap().code(), Some(1));
    let mut errors = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        errors.extend(line.starts_with("error: ").then_some(line));
    }
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].contains("migration 20261122000001: "),
        "{errors:?}"
    );
    assert!(!errors[0].contains("at line"), "{errors:?}");
    let no_lock = "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert!(is_true(&db, no_lock).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_rejects_a_server_without_fsync() {
    let world = World::new().await;
    let data_dir = own_folder();
    let postgres = LocalPostgres::start(LocalPostgresOptions {
        data_dir: data_dir.clone(),
        settings: vec![("fsync".into(), "off".into())],
        ..LocalPostgresOptions::default()
    })
    .await
    .unwrap();
    let variables = world.variables(&[("DATABASE_URL", &postgres.url("postgres"))]);
    run(&["serve", "--migrate"], &variables)
        .await
        .refused(1, "fsync is off");
    postgres.stop().await.unwrap();
    token_vendor::dev::postgres::remove(&data_dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_another_fingerprint_key() {
    /// 32 other bytes.
    const OTHER: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    let world = World::new().await;
    let variables = world.variables(&[("FINGERPRINT_KEY", OTHER)]);
    let refuse = async || {
        let ended = run(&["serve"], &variables).await;
        ended.refused(1, "FINGERPRINT_KEY is not the key of the stored tokens");
    };
    let replica = world.replica().await;
    refuse().await;

    // A database of an earlier version, which has no check value but a token.
    replica.issue(json!({"userId": "u"})).await;
    execute(&world.db, "DELETE FROM key_check").await;
    refuse().await;
    assert!(is_true(&world.db, "SELECT NOT EXISTS (SELECT FROM key_check)").await);
    world.replica().await;
    assert!(is_true(&world.db, "SELECT EXISTS (SELECT FROM key_check)").await);
    execute(&world.db, "DELETE FROM tokens").await;
    refuse().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_accepts_a_newer_schema() {
    let world = World::new().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (99990101000000, 'a later version', true, '', 0)",
    )
    .execute(&world.db)
    .await
    .unwrap();
    let migrated = run(&["migrate"], &world.variables(&[])).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
    let process = Process::serve(&world.variables(&[])).await;
    let api = Api::at(process.base.clone());
    assert_eq!(api.issue(json!({"userId": "u"})).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_with_migrate_starts_on_an_empty_database() {
    let world = World::new().await;
    let url = create_empty_database().await;
    let variables = world.variables(&[("DATABASE_URL", &url)]);
    let mut process = Process::start(&["serve", "--migrate"], &variables).await;
    let ready = Api::at(process.base.clone()).get("/health/ready").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    kill(Pid::from_raw(process.pid()), Signal::SIGTERM).unwrap();
    assert!(process.child.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_and_repeated_migrations_succeed() {
    let world = World::new().await;
    let url = create_empty_database().await;
    let variables = world.variables(&[("DATABASE_URL", &url)]);
    let at_once = (0..4).map(|_| run(&["migrate"], &variables));
    for ended in futures_util::future::join_all(at_once).await {
        assert_eq!((ended.code, ended.out.as_str()), (0, ""), "{ended:?}");
    }
    let again = run(&["migrate"], &variables).await;
    assert_eq!((again.code, again.out.as_str()), (0, ""), "{again:?}");
    World::on(url).await;
}
