use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use super::folder::is_alive;
use super::{LocalPostgres, LocalPostgresError, LocalPostgresOptions, binaries, pid_file, remove};

/// A data folder of one test, in /tmp: short, and the server's user can reach it.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        TestDir(format!("/tmp/token-vendor-test-{}-{count}", std::process::id()).into())
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

async fn is_gone_within(pid: u32, time: Duration) -> bool {
    let end = Instant::now() + time;
    while is_alive(pid.cast_signed()) {
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

#[tokio::test]
async fn starts_on_a_fresh_folder_and_again_on_its_data() {
    let dir = TestDir::new();
    let mut options = dir.options();
    options.settings = vec![
        ("work_mem".into(), "5MB".into()),
        ("listen_addresses".into(), "*".into()),
    ];
    let began = Instant::now();
    let first = LocalPostgres::start(options).await.unwrap();
    assert_eq!(query(&first, "show work_mem").await, "5MB");
    eprintln!("cold start to first query: {:?}", began.elapsed());
    assert_eq!(query(&first, "show listen_addresses").await, "");
    assert_eq!(query(&first, "show fsync").await, "on");
    assert_eq!(query(&first, "show synchronous_commit").await, "on");
    assert_eq!(query(&first, "select current_user::text").await, "postgres");
    let socket_dir = first.socket_dir().to_path_buf();
    let pid = first.pid();
    first.stop().await.unwrap();
    assert!(!is_alive(pid.cast_signed()));

    let began = Instant::now();
    let second = LocalPostgres::start(dir.options()).await.unwrap();
    assert_eq!(query(&second, "select 'two'").await, "two");
    eprintln!("warm start to first query: {:?}", began.elapsed());
    assert_eq!(second.socket_dir(), socket_dir);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn refuses_a_second_owner_and_lets_others_join() {
    let dir = TestDir::new();
    let first = LocalPostgres::start(dir.options()).await.unwrap();
    let refused = LocalPostgres::start(dir.options()).await.unwrap_err();
    assert!(
        matches!(refused, LocalPostgresError::InUse { pid, .. } if pid.cast_unsigned() == std::process::id())
    );
    assert!(matches!(
        remove(&dir.0),
        Err(LocalPostgresError::InUse { .. })
    ));

    let joined = LocalPostgres::start_or_join(dir.options()).await.unwrap();
    assert_eq!(joined.pid(), first.pid());
    joined.stop().await.unwrap();
    assert_eq!(query(&first, "select 'there'").await, "there");

    // Dropped, not stopped: the next one waits until it is gone.
    let pid = first.pid();
    drop(first);
    let next = LocalPostgres::start(dir.options()).await.unwrap();
    assert_ne!(next.pid(), pid);
    next.stop().await.unwrap();
}

#[tokio::test]
async fn recovers_from_a_killed_server_and_an_interrupted_initdb() {
    let dir = TestDir::new();
    fs::create_dir_all(dir.0.join("pgdata.new/base")).unwrap();
    fs::write(dir.0.join(".token-vendor"), "").unwrap();
    let first = LocalPostgres::start(dir.options()).await.unwrap();
    let postmaster = nix::unistd::Pid::from_raw(first.pid().cast_signed());
    nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).unwrap();
    first.stop().await.unwrap();

    let second = LocalPostgres::start(dir.options()).await.unwrap();
    assert_eq!(query(&second, "select 'back'").await, "back");
    second.stop().await.unwrap();

    // The process id of a killed server, meanwhile given to somebody else.
    let ours = format!(
        "{}\n/\n1700000000\n5432\n\n\n\nready   \n",
        std::process::id()
    );
    fs::write(dir.0.join("pgdata/postmaster.pid"), ours).unwrap();
    let third = LocalPostgres::start(dir.options()).await.unwrap();
    assert_eq!(query(&third, "select 'again'").await, "again");
    third.stop().await.unwrap();
}

#[tokio::test]
async fn a_long_path_has_its_socket_elsewhere() {
    let dir = TestDir::new();
    fs::create_dir(&dir.0).unwrap();
    fs::write(dir.0.join(".token-vendor"), "").unwrap();
    let mut options = dir.options();
    options.data_dir = dir
        .0
        .join("a comma, a space, \"quotes\", %41")
        .join("x".repeat(90));
    let postgres = LocalPostgres::start(options.clone()).await.unwrap();
    assert_eq!(query(&postgres, "select 'there'").await, "there");
    let socket_dir = postgres.socket_dir().to_path_buf();
    assert!(socket_dir.as_os_str().len() < 50);
    postgres.stop().await.unwrap();
    assert!(!socket_dir.exists());
}

#[test]
fn removes_only_what_was_made_here() {
    let dir = TestDir::new();
    remove(&dir.0).unwrap();
    fs::create_dir(&dir.0).unwrap();
    fs::write(dir.0.join("precious"), "").unwrap();
    assert!(matches!(
        remove(&dir.0),
        Err(LocalPostgresError::NotOurs { .. })
    ));
    assert!(dir.0.join("precious").exists());
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
        settings: Vec::new(),
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
            "local_postgres::tests::a_killed_owner_leaves_nothing",
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

#[test]
fn reads_versions_and_pid_files() {
    for (text, major) in [
        (
            "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n",
            Some(15),
        ),
        ("postgres (PostgreSQL) 18beta2\n", Some(18)),
        ("postgres (PostgreSQL) 9.6.24\n", Some(9)),
        ("command not found", None),
    ] {
        assert_eq!(binaries::major(text), major);
    }
    let text = "35\n/data\n1700000000\n5432\n/run\n\n  123  456\nready   \n";
    assert!(pid_file::parse(text).unwrap().is_ready);
    let starting = text.replace("ready", "starting");
    assert!(!pid_file::parse(&starting).unwrap().is_ready);
    assert_eq!(pid_file::parse("35\n"), None);
}
