//! `token-vendor dev`: one command, everything on this machine, nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use token_vendor::dev::postgres;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::cluster::{create_empty_database, own_folder};
use crate::support::{Answer, eventually, http_client, program, run};

/// A running `dev`.
struct Dev {
    child: Child,
    curl: String,
}

impl Dev {
    async fn start(more: &[&str], variables: &[(String, String)]) -> Dev {
        let arguments = [
            "dev",
            "--listen=127.0.0.1:0",
            "--sandbox-listen=127.0.0.1:0",
        ];
        let mut command = program(&[&arguments, more].concat(), variables);
        command.stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let curl = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("a line with curl");
                if line.starts_with("curl ") {
                    return line;
                }
            }
        };
        let curl = timeout(Duration::from_secs(60), curl).await.unwrap();
        Dev { child, curl }
    }

    /// Does what the printed line says.
    async fn ask(&self) -> Answer {
        let words: Vec<&str> = self.curl.split_whitespace().collect();
        let after = |flag| words[words.iter().position(|word| *word == flag).unwrap() + 1];
        let (key, secret) = after("-u").split_once(':').unwrap();
        let quoted: Vec<&str> = self.curl.split('\'').collect();
        let (name, value) = quoted[1].split_once(": ").unwrap();
        let request = http_client().post(*words.last().unwrap());
        let request = request.basic_auth(key, Some(secret)).header(name, value);
        Answer::of(request.body(quoted[3].to_owned()))
            .await
            .unwrap()
    }

    async fn end(mut self, signal: Signal) -> std::process::ExitStatus {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        let ended = timeout(Duration::from_secs(60), self.child.wait());
        ended.await.unwrap().unwrap()
    }
}

/// A data folder that goes when the test ends.
struct DataDir(PathBuf);

impl DataDir {
    fn new() -> DataDir {
        DataDir(own_folder())
    }

    fn flag(&self) -> String {
        format!("--data-dir={}", self.0.display())
    }

    fn postmaster(&self) -> Pid {
        let file = fs::read_to_string(self.0.join("pgdata/postmaster.pid")).unwrap();
        Pid::from_raw(file.lines().next().unwrap().parse().unwrap())
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let _ = postgres::remove(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_vends_keeps_its_data_and_leaves_nothing_running() {
    let data_dir = DataDir::new();
    // What the environment says of parts that `dev` brings itself is not looked at.
    let others = [
        ("DATABASE_URL", "postgres://elsewhere.invalid/x"),
        ("TOKEN_KEYS", "nonsense"),
        ("UPSTREAM_BASE_URL", "https://elsewhere.invalid"),
        ("LISTEN_ADDR", "nonsense"),
    ];
    let others = others.map(|(name, value)| (name.to_owned(), value.to_owned()));

    let dev = Dev::start(&[&data_dir.flag()], &others).await;
    let minted = dev.ask().await;
    assert_eq!((minted.status, minted.text("outcome")), (201, "minted"));
    let reused = dev.ask().await;
    assert_eq!((reused.status, reused.token()), (200, minted.token()));

    let second = run(
        &[
            "dev",
            "--listen=127.0.0.1:0",
            "--sandbox-listen=127.0.0.1:0",
            "--fresh",
            &data_dir.flag(),
        ],
        &[],
    )
    .await;
    assert_eq!(second.code, 1, "the folder is in use: {second:?}");
    assert_eq!(dev.ask().await.token(), minted.token());

    let postmaster = data_dir.postmaster();
    assert!(dev.end(Signal::SIGINT).await.success());
    assert!(
        kill(postmaster, None).is_err(),
        "Postgres runs on after Ctrl-C"
    );

    let dev = Dev::start(&[&data_dir.flag()], &[]).await;
    let kept = dev.ask().await;
    assert_eq!((kept.status, kept.token()), (200, minted.token()));
    let postmaster = data_dir.postmaster();
    dev.end(Signal::SIGKILL).await;
    eventually("Postgres is gone", async || kill(postmaster, None).is_err()).await;

    let dev = Dev::start(&[&data_dir.flag(), "--fresh"], &[]).await;
    let fresh = dev.ask().await;
    assert_eq!(fresh.status, 201, "{fresh:?}");
    assert_ne!(fresh.token(), minted.token());
    assert!(dev.end(Signal::SIGTERM).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_reads_no_dotenv() {
    let data_dir = DataDir::new();
    let folder = DataDir::new();
    fs::create_dir_all(&folder.0).unwrap();
    fs::write(folder.0.join(".env"), "LOG_FORMAT=nonsense\nnot a line\n").unwrap();
    // Its mistake comes after the configuration has been read.
    fs::create_dir_all(&data_dir.0).unwrap();
    fs::write(data_dir.0.join("somebody's"), "").unwrap();
    let arguments = [
        "dev",
        "--listen=127.0.0.1:0",
        "--sandbox-listen=127.0.0.1:0",
    ];
    let mut command = program(&[&arguments[..], &[&data_dir.flag()]].concat(), &[]);
    let output = command.current_dir(&folder.0).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for folder in [folder, data_dir] {
        fs::remove_dir_all(&folder.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_deletes_only_what_dev_made() {
    let data_dir = DataDir::new();
    let somebodys = data_dir.0.join("somebody's");
    fs::create_dir_all(&data_dir.0).unwrap();
    fs::write(&somebodys, "precious").unwrap();
    let arguments = [
        "dev",
        "--listen=127.0.0.1:0",
        "--sandbox-listen=127.0.0.1:0",
    ];
    for more in [&["--fresh"][..], &[]] {
        let ended = run(&[&arguments, more, &[&data_dir.flag()]].concat(), &[]).await;
        assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{ended:?}");
        assert!(
            ended.err.contains("was not made by token-vendor"),
            "{ended:?}"
        );
        assert_eq!(fs::read_to_string(&somebodys).unwrap(), "precious");
    }
    fs::remove_dir_all(&data_dir.0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_takes_a_database_of_this_machine_only() {
    let data_dir = DataDir::new();
    let dev = async |url: &str| {
        let url = format!("--database-url={url}");
        let arguments = [
            "dev",
            "--listen=127.0.0.1:0",
            "--sandbox-listen=127.0.0.1:0",
            "--startup-wait=100ms",
        ];
        run(&[&arguments[..], &[&data_dir.flag(), &url]].concat(), &[]).await
    };
    for elsewhere in [
        "postgres://db.example.com/x",
        "postgres://10.0.0.1/x",
        "postgres://localhost:pw@10.0.0.1/x",
        "postgres://localhost.example.com/x",
        "postgres:///x?host=db.example.com",
        "postgres://localhost/x?host=10.0.0.1",
        "postgres://localhost/x?hostaddr=10.0.0.1",
        "postgres://[2001:db8::1]/x",
        "no address",
    ] {
        let ended = dev(elsewhere).await;
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{ended:?}");
        assert_eq!(
            ended.err.lines().count(),
            1,
            "nothing was started: {ended:?}"
        );
    }
    let nowhere = own_folder();
    for here in [
        "postgres://127.0.0.1:1/x".to_owned(),
        "postgres://127.9.9.9:1/x".to_owned(),
        "postgres://[::1]:1/x".to_owned(),
        "postgres://localhost:1/x".to_owned(),
        format!("postgres:///x?host={}", nowhere.display()),
    ] {
        let ended = dev(&here).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(
            ended.err.contains("could not be reached within 100ms"),
            "{ended:?}"
        );
    }
    assert!(!Path::new(&data_dir.0).exists());

    let url = format!("--database-url={}", create_empty_database().await);
    let dev = Dev::start(&[&url], &[]).await;
    assert_eq!(dev.ask().await.status, 201);
    assert!(dev.end(Signal::SIGINT).await.success());
    let again = Dev::start(&[&url], &[]).await;
    let reused = again.ask().await;
    assert_eq!(
        (reused.status, &reused.body["country"]),
        (200, &json!("LT"))
    );
    again.end(Signal::SIGINT).await;
}
