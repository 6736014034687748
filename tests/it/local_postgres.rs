//! The private Postgres of `dev` and of these tests.

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

/// A data folder of one test, in /tmp, where the server's user can reach it.
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

async fn is_gone_within(pid: u32, time: Duration) -> bool {
    let end = Instant::now() + time;
    while is_alive(pid) && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    !is_alive(pid)
}

#[tokio::test]
async fn starts_on_a_fresh_folder_and_again_after_every_mishap() {
    let dir = TestDir::new();
    // An initdb that was interrupted, and a path too long for a socket.
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

    // The process id of a killed server, meanwhile given to somebody else.
    let theirs = format!("{}\n/\n1700000000\n5432\n\n\n\nready\n", std::process::id());
    fs::write(options.data_dir.join("pgdata/postmaster.pid"), theirs).unwrap();
    let second = LocalPostgres::start(options).await.unwrap();
    assert_eq!(query(&second, "select 'back'").await, "back");
    assert_eq!(second.socket_dir(), socket_dir);
    let pid = second.pid();
    second.stop().await.unwrap();
    assert!(!is_alive(pid) && !socket_dir.exists());
}

#[tokio::test]
async fn refuses_a_second_owner_and_lets_others_join() {
    let dir = TestDir::new();
    let first = LocalPostgres::start(dir.options()).await.unwrap();
    let joined = LocalPostgres::start_or_join(dir.options()).await.unwrap();
    assert_eq!(joined.pid(), first.pid());
    joined.stop().await.unwrap();
    let refused = LocalPostgres::start(dir.options()).await.unwrap_err();
    assert!(refused.to_string().contains("another `token-vendor dev`"));
    assert_eq!(query(&first, "select 'there'").await, "there");

    // Dropped, not stopped: the next one waits until it is gone.
    let pid = first.pid();
    drop(first);
    let next = LocalPostgres::start(dir.options()).await.unwrap();
    assert_ne!(next.pid(), pid);
    next.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_temporary_goes_with_the_server() {
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
        let left = fs::read_dir(dir.0.join("pgdata")).unwrap().count();
        assert_eq!(left == 0, is_temporary, "{left} left");
    }
}

#[test]
fn removes_only_what_was_made_here() {
    let dir = TestDir::new();
    remove(&dir.0).unwrap();
    fs::create_dir(&dir.0).unwrap();
    assert!(remove(&dir.0).is_err() && dir.0.exists());
    fs::write(dir.0.join(".token-vendor"), "").unwrap();
    remove(&dir.0).unwrap();
    assert!(!dir.0.exists());
}

/// Where set, the test below is the owner that gets killed: the folder, and perhaps a process that
/// the server outlasts it for.
const OWNER: &str = "TOKEN_VENDOR_TEST_OWNER";

#[tokio::test]
async fn a_killed_owner_leaves_nothing() {
    if let Ok(owner) = env::var(OWNER) {
        let (dir, also_until) = owner.split_once(' ').unwrap();
        return be_killed(dir, also_until.parse().ok()).await;
    }
    let dir = TestDir::new();
    let (mut owner, server) = spawn_owner(&dir.0, "");
    owner.kill().unwrap();
    owner.wait().unwrap();
    // While that one is still stopping.
    let next = LocalPostgres::start(dir.options()).await.unwrap();
    assert!(is_gone_within(server, Duration::ZERO).await);
    next.stop().await.unwrap();

    let mut runner = Command::new("sleep").arg("60").spawn().unwrap();
    let (mut owner, server) = spawn_owner(&dir.0, &runner.id().to_string());
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(!is_gone_within(server, Duration::from_millis(700)).await);
    let joined = LocalPostgres::start_or_join(dir.options()).await.unwrap();
    assert_eq!(joined.pid(), server);
    runner.kill().unwrap();
    runner.wait().unwrap();
    assert!(is_gone_within(server, Duration::from_secs(2)).await);
}

async fn be_killed(dir: &str, also_until: Option<u32>) {
    let options = LocalPostgresOptions {
        data_dir: dir.into(),
        also_until,
        ..Default::default()
    };
    let postgres = LocalPostgres::start(options).await.unwrap();
    println!("server {}", postgres.pid());
    std::future::pending().await
}

/// This test again, in a process of its own, until its server is up.
fn spawn_owner(dir: &Path, also_until: &str) -> (std::process::Child, u32) {
    let mut owner = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "local_postgres::a_killed_owner_leaves_nothing",
        ])
        .env(OWNER, format!("{} {also_until}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let server = lines
        .find_map(|line| Some(line.unwrap().split_once("server ")?.1.parse().unwrap()))
        .unwrap();
    (owner, server)
}
