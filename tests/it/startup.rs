//! Startup checks of `serve`, and `migrate`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions};

use crate::support::cluster::{create_empty_database, own_folder};
use crate::support::{Api, Process, World, run};

#[tokio::test(flavor = "multi_thread")]
async fn serve_rejects_an_unsuitable_database() {
    let world = World::new().await;
    let serve = async |url: &str| {
        let variables = world.variables(&[("DATABASE_URL", url), ("STARTUP_WAIT", "300ms")]);
        run(&["serve"], &variables).await
    };
    let absent = serve("postgres://u:pass-word@127.0.0.1:1/x").await;
    absent.refused(1, "no database within 300ms");
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
        let name: String = sqlx::query_scalar("SELECT current_database()::text")
            .fetch_one(&other.db)
            .await
            .unwrap();
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
