//! One Postgres cluster for the whole test run, with a separate database for each test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use sqlx::{Connection, Executor, PgConnection};
use token_vendor::db::schema;
use token_vendor::dev::postgres::{self, LocalPostgres, LocalPostgresOptions};
use tokio::sync::OnceCell;

const FOLDER_PREFIX: &str = "token-vendor-test-";
const TEMPLATE: &str = "template_vending";

static CLUSTER: OnceCell<LocalPostgres> = OnceCell::const_new();

/// Creates a database with the current schema and returns its URL.
pub async fn create_database() -> String {
    create_database_from(TEMPLATE).await
}

/// Creates a database without a schema and returns its URL.
pub async fn create_empty_database() -> String {
    create_database_from("template1").await
}

/// Creates an empty database that stores only the characters of this encoding.
pub async fn create_database_with_encoding(encoding: &str) -> String {
    create_database_from(&format!("template0 ENCODING '{encoding}' LOCALE 'C'")).await
}

async fn create_database_from(template: &str) -> String {
    let cluster = CLUSTER.get_or_init(start).await;
    let name = format!("test_{}_{}", std::process::id(), next_number());
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .unwrap();
    admin
        .execute(sqlx::AssertSqlSafe(format!(
            "CREATE DATABASE {name} TEMPLATE {template}"
        )))
        .await
        .unwrap();
    cluster.url(&name)
}

/// Returns the path of a new data folder for a test that starts its own Postgres.
pub fn own_folder() -> PathBuf {
    std::env::temp_dir().join(format!(
        "{FOLDER_PREFIX}own-{}-{}",
        std::process::id(),
        next_number()
    ))
}

fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Starts the cluster, or joins the one of this run.
///
/// Under nextest each test is a process. The first one starts the cluster, which lives until the runner ends.
async fn start() -> LocalPostgres {
    let nextest_run = std::env::var("NEXTEST_RUN_ID").ok();
    let keep_alive_pid = nextest_run
        .is_some()
        .then(std::os::unix::process::parent_id);
    let name = nextest_run.unwrap_or_else(|| std::process::id().to_string());
    let data_dir = std::env::temp_dir().join(format!("{FOLDER_PREFIX}{name}"));
    remove_leftovers(&data_dir);
    let cluster = LocalPostgres::start_or_join(LocalPostgresOptions {
        data_dir,
        keep_alive_pid,
        is_temporary: true,
        settings: vec![
            ("max_connections".into(), "400".into()),
            ("shared_buffers".into(), "256MB".into()),
        ],
    })
    .await
    .unwrap();
    create_template(&cluster).await;
    cluster
}

/// Removes the data folders of earlier runs. `remove` fails for a folder in use, which stays.
fn remove_leftovers(own: &std::path::Path) {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(suffix) = name
            .to_str()
            .and_then(|name| name.strip_prefix(FOLDER_PREFIX))
        else {
            continue;
        };
        // A running test may start its own Postgres again later, so its folder stays even if no server runs.
        let owner = suffix
            .strip_prefix("own-")
            .and_then(|numbers| numbers.split('-').next());
        let owner = owner.and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        if path != own && owner.is_none_or(|pid| kill(pid, None).is_err()) {
            let _ = postgres::remove(&path);
        }
    }
}

async fn create_template(cluster: &LocalPostgres) {
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .unwrap();
    admin.execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(TEMPLATE)
            .fetch_one(&mut admin)
            .await
            .unwrap();
    if !exists {
        // The rename at the end marks the template as complete.
        admin
            .execute("DROP DATABASE IF EXISTS template_raw")
            .await
            .unwrap();
        admin.execute("CREATE DATABASE template_raw").await.unwrap();
        let url = cluster.url("template_raw").into();
        schema::migrate(&schema::connect_options(&url).unwrap())
            .await
            .unwrap();
        let rename = format!("ALTER DATABASE template_raw RENAME TO {TEMPLATE}");
        admin.execute(sqlx::AssertSqlSafe(rename)).await.unwrap();
    }
}
