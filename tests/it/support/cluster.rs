//! One Postgres cluster for the whole run, and a database of its own for every test.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use sqlx::{Connection, Executor, PgConnection};
use token_vendor::db::schema;
use token_vendor::dev::postgres::{self, LocalPostgres, LocalPostgresOptions};
use tokio::sync::OnceCell;

const FOLDERS: &str = "token-vendor-test-";
const TEMPLATE: &str = "template_vending";

static CLUSTER: OnceCell<LocalPostgres> = OnceCell::const_new();

/// Makes a database with the current schema and returns its address.
pub async fn create_database() -> String {
    let cluster = CLUSTER.get_or_init(start).await;
    let name = format!("test_{}_{}", std::process::id(), next());
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .unwrap();
    admin
        .execute(sqlx::AssertSqlSafe(format!(
            "CREATE DATABASE {name} TEMPLATE {TEMPLATE}"
        )))
        .await
        .unwrap();
    cluster.url(&name)
}

/// Makes a database without any schema and returns its address.
pub async fn create_empty_database() -> String {
    let cluster = CLUSTER.get_or_init(start).await;
    let name = format!("test_{}_{}", std::process::id(), next());
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .unwrap();
    admin
        .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .await
        .unwrap();
    cluster.url(&name)
}

/// A folder for a Postgres that a test has to itself.
pub fn own_folder() -> PathBuf {
    std::env::temp_dir().join(format!("{FOLDERS}own-{}-{}", std::process::id(), next()))
}

fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Under nextest every test is a process: the first one starts the cluster, the others join it,
/// and it lives until the runner ends.
async fn start() -> LocalPostgres {
    static RUN: OnceLock<String> = OnceLock::new();
    let run = std::env::var("NEXTEST_RUN_ID").ok();
    let also_until = run.is_some().then(std::os::unix::process::parent_id);
    let name = RUN.get_or_init(|| run.unwrap_or_else(|| std::process::id().to_string()));
    let data_dir = std::env::temp_dir().join(format!("{FOLDERS}{name}"));
    remove_leftovers(&data_dir);
    let cluster = LocalPostgres::start_or_join(LocalPostgresOptions {
        data_dir,
        also_until,
        is_temporary: true,
        settings: vec![
            ("max_connections".into(), "400".into()),
            ("shared_buffers".into(), "256MB".into()),
        ],
    })
    .await
    .unwrap();
    make_template(&cluster).await;
    cluster
}

/// Folders of earlier runs; one that is in use refuses.
fn remove_leftovers(own: &std::path::Path) {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(FOLDERS)) else {
            continue;
        };
        // A test that starts a Postgres twice has its folder unused in between.
        let of = rest
            .strip_prefix("own-")
            .and_then(|rest| rest.split('-').next());
        let of = of.and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        if path != own && of.is_none_or(|pid| kill(pid, None).is_err()) {
            let _ = postgres::remove(&path);
        }
    }
}

async fn make_template(cluster: &LocalPostgres) {
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .unwrap();
    admin.execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let is_there: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(TEMPLATE)
            .fetch_one(&mut admin)
            .await
            .unwrap();
    if !is_there {
        // Under another name until it is whole.
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
