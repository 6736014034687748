//! The private Postgres of `dev`, the tests and the benchmark.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection, PgConnection};

use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions, remove};

/// A data folder of one test, in /tmp because the server's user needs access.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        TestDir(format!("/tmp/token-vendor-unit-{}-{count}", std::process::id()).into())
    }

    fn options(&self) -> LocalPostgresOptions {
        LocalPostgresOptions {
            data_dir: self.0.clone(),
            ..Default::default()
        }
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let removed = remove(&self.0);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

async fn query(postgres: &LocalPostgres, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(&postgres.url("postgres"))
        .await
        .unwrap();
    sqlx::query_scalar(sql)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

fn is_alive(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

async fn ends_within(pid: u32, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    while is_alive(pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    !is_alive(pid)
}

#[tokio::test]
async fn starts_on_a_new_folder_and_again_after_a_crash() {
    let dir = TestDir::new();
    // The folder of an interrupted initdb, with a path that is too long for a socket.
    let mut options = dir.options();
    options.data_dir = dir.0.join("a comma, a \"quote\", %41").join("x".repeat(90));
    fs::create_dir_all(options.data_dir.join("pgdata.new/base")).unwrap();
    for folder in [&dir.0, &options.data_dir] {
        fs::write(folder.join(".token-vendor"), "").unwrap();
    }
    let settings = [("work_mem", "5MB"), ("listen_addresses", "*")];
    options.settings = settings.map(|(n, v)| (n.into(), v.into())).into();
    let first = LocalPostgres::start(options.clone()).await.unwrap();
    for (setting, expected) in [
        ("show work_mem", "5MB"),
        ("show listen_addresses", ""),
        ("show fsync", "on"),
        ("show synchronous_commit", "on"),
        ("select current_user::text", "postgres"),
    ] {
        assert_eq!(query(&first, setting).await, expected, "{setting}");
    }
    let socket_dir = first.socket_dir().to_owned();
    kill(Pid::from_raw(first.pid().cast_signed()), Signal::SIGKILL).unwrap();
    first.stop().await.unwrap();

    // The process id of the killed server now belongs to another process.
    let reused_pid = format!("{}\n/\n1700000000\n5432\n\n\n\nready\n", std::process::id());
    fs::write(options.data_dir.join("pgdata/postmaster.pid"), reused_pid).unwrap();
    let second = LocalPostgres::start(options).await.unwrap();
    assert_eq!(query(&second, "select 'back'").await, "back");
    assert_eq!(second.socket_dir(), socket_dir);
    let pid = second.pid();
    second.stop().await.unwrap();
    assert!(!is_alive(pid) && !socket_dir.exists());
}

#[tokio::test]
async fn rejects_a_second_owner_and_lets_others_join() {
    let dir = TestDir::new();
    let first = LocalPostgres::start(dir.options()).await.unwrap();
    let joined = LocalPostgres::start_or_join(dir.options()).await.unwrap();
    assert_eq!(joined.pid(), first.pid());
    joined.stop().await.unwrap();
    let error = LocalPostgres::start(dir.options()).await.unwrap_err();
    assert!(error.to_string().contains("another `token-vendor dev`"));
    assert_eq!(query(&first, "select 'running'").await, "running");

    // `drop` does not wait for the end of the server, but the next start does.
    let pid = first.pid();
    drop(first);
    let next = LocalPostgres::start(dir.options()).await.unwrap();
    assert_ne!(next.pid(), pid);
    next.stop().await.unwrap();
}

#[tokio::test]
async fn temporary_data_is_deleted_when_the_server_ends() {
    let dir = TestDir::new();
    let temporary = LocalPostgresOptions {
        is_temporary: true,
        ..dir.options()
    };
    for options in [temporary, dir.options()] {
        let is_temporary = options.is_temporary;
        let postgres = LocalPostgres::start(options).await.unwrap();
        assert!(dir.0.join("pgdata/PG_VERSION").exists());
        postgres.stop().await.unwrap();
        let files = fs::read_dir(dir.0.join("pgdata")).unwrap().count();
        assert_eq!(files == 0, is_temporary, "{files} files are left");
    }
}

#[test]
fn remove_deletes_only_folders_with_a_marker() {
    let dir = TestDir::new();
    remove(&dir.0).unwrap();
    fs::create_dir(&dir.0).unwrap();
    assert!(remove(&dir.0).is_err() && dir.0.exists());
    fs::write(dir.0.join(".token-vendor"), "").unwrap();
    remove(&dir.0).unwrap();
    assert!(!dir.0.exists());
}

/// The variable that makes the test below the owner of a server: the data folder and, optionally, `keep_alive_pid`.
const OWNER: &str = "TOKEN_VENDOR_TEST_OWNER";

#[tokio::test]
async fn no_server_is_left_after_its_owner_is_killed() {
    if let Ok(owner) = env::var(OWNER) {
        let (dir, keep_alive_pid) = owner.split_once(' ').unwrap();
        return own_until_killed(dir, keep_alive_pid.parse().ok()).await;
    }
    let dir = TestDir::new();
    let (mut owner, server) = spawn_owner(&dir.0, "");
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The first server is still stopping.
    let next = LocalPostgres::start(dir.options()).await.unwrap();
    assert!(ends_within(server, Duration::ZERO).await);
    next.stop().await.unwrap();

    let mut runner = Command::new("sleep").arg("60").spawn().unwrap();
    let (mut owner, server) = spawn_owner(&dir.0, &runner.id().to_string());
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(!ends_within(server, Duration::from_millis(700)).await);
    let joined = LocalPostgres::start_or_join(dir.options()).await.unwrap();
    assert_eq!(joined.pid(), server);
    runner.kill().unwrap();
    runner.wait().unwrap();
    assert!(ends_within(server, Duration::from_secs(2)).await);
}

async fn own_until_killed(dir: &str, keep_alive_pid: Option<u32>) {
    let options = LocalPostgresOptions {
        data_dir: dir.into(),
        keep_alive_pid,
        ..Default::default()
    };
    let postgres = LocalPostgres::start(options).await.unwrap();
    println!("server {}", postgres.pid());
    std::future::pending().await
}

/// Runs the test above in a new process that starts a server. Returns when the server accepts connections.
fn spawn_owner(dir: &Path, keep_alive_pid: &str) -> (std::process::Child, u32) {
    let mut owner = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "local_postgres::no_server_is_left_after_its_owner_is_killed",
        ])
        .env(OWNER, format!("{} {keep_alive_pid}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let server = lines
        .find_map(|line| Some(line.unwrap().split_once("server ")?.1.parse().unwrap()))
        .unwrap();
    (owner, server)
}
