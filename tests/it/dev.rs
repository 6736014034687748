//! `token-vendor dev`: a local installation with one command that leaves no process running.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use token_vendor::dev::postgres;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::cluster::{create_empty_database, own_folder};
use crate::support::{Answer, eventually, http_client, program, run};

/// The arguments of every `dev` here: any free port.
const DEV: [&str; 3] = [
    "dev",
    "--listen=127.0.0.1:0",
    "--sandbox-listen=127.0.0.1:0",
];

/// A running `dev`.
struct Dev {
    child: Child,
    curl: String,
}

impl Dev {
    async fn start(more: &[&str], variables: &[(String, String)]) -> Dev {
        let mut command = program(&[&DEV, more].concat(), variables);
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

    /// Sends the request of the printed curl command.
    async fn send_printed_request(&self) -> Answer {
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

/// A data folder that is removed at the end of the test.
struct DataDir(PathBuf);

impl DataDir {
    fn new() -> DataDir {
        DataDir(own_folder())
    }

    fn flag(&self) -> String {
        format!("--data-dir={}", self.0.display())
    }

    fn postmaster(&self) -> Pid {
        Pid::from_raw(self.read_postmaster_file()[0].parse().unwrap())
    }

    /// Connects to the private Postgres as its superuser.
    async fn connect(&self) -> PgConnection {
        // Line 5 is the folder of the socket.
        let socket_dir = &self.read_postmaster_file()[4];
        let url = format!("postgresql:///postgres?host={socket_dir}&port=5432&user=postgres");
        PgConnection::connect(&url).await.unwrap()
    }

    fn read_postmaster_file(&self) -> Vec<String> {
        let file = fs::read_to_string(self.0.join("pgdata/postmaster.pid")).unwrap();
        file.lines().map(str::to_owned).collect()
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let _ = postgres::remove(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_keeps_its_data_and_leaves_no_postgres_running() {
    let data_dir = DataDir::new();
    // `dev` ignores the variables of the parts that it provides.
    let ignored = [
        ("DATABASE_URL", "postgres://elsewhere.invalid/x"),
        ("TOKEN_KEYS", "nonsense"),
        ("UPSTREAM_BASE_URL", "https://elsewhere.invalid"),
        ("LISTEN_ADDR", "nonsense"),
    ];
    let ignored = ignored.map(|(name, value)| (name.to_owned(), value.to_owned()));

    let dev = Dev::start(&[&data_dir.flag()], &ignored).await;
    let minted = dev.send_printed_request().await;
    assert_eq!((minted.status, minted.text("outcome")), (201, "minted"));
    let reused = dev.send_printed_request().await;
    assert_eq!((reused.status, reused.token()), (200, minted.token()));

    let mut superuser = data_dir.connect().await;
    let roles = "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE application_name = 'token-vendor'";
    let roles: Vec<String> = sqlx::query_scalar(roles)
        .fetch_all(&mut superuser)
        .await
        .unwrap();
    assert_eq!(
        roles,
        ["token_vendor"],
        "the service does not own its tables"
    );
    drop(superuser);

    let second = run(&[&DEV[..], &["--fresh", &data_dir.flag()]].concat(), &[]).await;
    assert_eq!(second.code, 1, "the folder is in use: {second:?}");
    assert_eq!(dev.send_printed_request().await.token(), minted.token());

    let postmaster = data_dir.postmaster();
    assert!(dev.end(Signal::SIGINT).await.success());
    assert!(
        kill(postmaster, None).is_err(),
        "Postgres still runs after Ctrl-C"
    );

    let dev = Dev::start(&[&data_dir.flag()], &[]).await;
    let kept = dev.send_printed_request().await;
    assert_eq!((kept.status, kept.token()), (200, minted.token()));
    let postmaster = data_dir.postmaster();
    dev.end(Signal::SIGKILL).await;
    eventually("Postgres has ended", async || {
        kill(postmaster, None).is_err()
    })
    .await;

    let dev = Dev::start(&[&data_dir.flag(), "--fresh"], &[]).await;
    let fresh = dev.send_printed_request().await;
    assert_eq!(fresh.status, 201, "{fresh:?}");
    assert_ne!(fresh.token(), minted.token());
    assert!(dev.end(Signal::SIGTERM).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_ignores_dotenv() {
    let data_dir = DataDir::new();
    let folder = DataDir::new();
    fs::create_dir_all(&folder.0).unwrap();
    fs::write(folder.0.join(".env"), "LOG_FORMAT=nonsense\nnot a line\n").unwrap();
    // The data folder is checked after the configuration: exit code 1 shows that the configuration was valid.
    fs::create_dir_all(&data_dir.0).unwrap();
    fs::write(data_dir.0.join("other"), "").unwrap();
    let mut command = program(&[&DEV[..], &[&data_dir.flag()]].concat(), &[]);
    let output = command.current_dir(&folder.0).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for folder in [folder, data_dir] {
        fs::remove_dir_all(&folder.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_deletes_only_folders_that_dev_created() {
    let data_dir = DataDir::new();
    let other_file = data_dir.0.join("other");
    fs::create_dir_all(&data_dir.0).unwrap();
    fs::write(&other_file, "precious").unwrap();
    for more in [&["--fresh"][..], &[]] {
        let ended = run(&[&DEV, more, &[&data_dir.flag()]].concat(), &[]).await;
        assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{ended:?}");
        assert!(
            ended.err.contains("was not created by token-vendor"),
            "{ended:?}"
        );
        assert_eq!(fs::read_to_string(&other_file).unwrap(), "precious");
    }
    fs::remove_dir_all(&data_dir.0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_accepts_only_a_local_database() {
    let data_dir = DataDir::new();
    let dev = async |url: &str| {
        let url = format!("--database-url={url}");
        let more = ["--startup-wait=100ms", &data_dir.flag(), &url];
        run(&[&DEV[..], &more].concat(), &[]).await
    };
    for remote in [
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
        let ended = dev(remote).await;
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{ended:?}");
        assert_eq!(
            ended.err.lines().count(),
            1,
            "nothing was started: {ended:?}"
        );
    }
    let missing_folder = own_folder();
    for local in [
        "postgres://127.0.0.1:1/x".to_owned(),
        "postgres://127.9.9.9:1/x".to_owned(),
        "postgres://[::1]:1/x".to_owned(),
        "postgres://localhost:1/x".to_owned(),
        format!("postgres:///x?host={}", missing_folder.display()),
    ] {
        let ended = dev(&local).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(
            ended.err.contains("could not be reached within 100ms"),
            "{ended:?}"
        );
    }
    assert!(!Path::new(&data_dir.0).exists());

    let url = format!("--database-url={}", create_empty_database().await);
    let dev = Dev::start(&[&url], &[]).await;
    assert_eq!(dev.send_printed_request().await.status, 201);
    assert!(dev.end(Signal::SIGINT).await.success());
    let again = Dev::start(&[&url], &[]).await;
    let reused = again.send_printed_request().await;
    assert_eq!(
        (reused.status, &reused.body["country"]),
        (200, &json!("LT"))
    );
    again.end(Signal::SIGINT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_can_follow_a_token_from_its_mint_to_the_next_one() {
    let data_dir = DataDir::new();
    let dev = Dev::start(&[&data_dir.flag()], &[]).await;
    let minted = dev.send_printed_request().await;
    let link = minted.text("verificationUrl");
    assert!(
        link.ends_with(&format!("/verify?token={}", minted.token())),
        "{link}"
    );
    let browser = http_client();
    let page = browser
        .get(link)
        .header("accept", "text/html")
        .send()
        .await
        .unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("<dd>LT</dd>"), "{page}");
    let finished = browser.post(link).send().await.unwrap();
    assert_eq!(finished.status(), 200);
    let again = Answer::of(browser.get(link)).await.unwrap();
    assert_eq!(
        (again.status, again.text("identifier")),
        (400, "TOKEN_NOT_VALID")
    );

    // The provider does not report the use, so the caller does.
    let reused = dev.send_printed_request().await;
    assert_eq!(reused.token(), minted.token());
    let base = dev.curl.split_whitespace().last().unwrap();
    let invalidate = browser
        .post(format!("{base}{}/invalidate", minted.text("id")))
        .basic_auth("dev", Some("dev"))
        .header("content-type", "application/json")
        .body(json!({"reason": "used"}).to_string());
    assert_eq!(Answer::of(invalidate).await.unwrap().status, 200);
    let next = dev.send_printed_request().await;
    assert_eq!((next.status, next.text("outcome")), (201, "minted"));
    assert_ne!(next.token(), minted.token());
    assert!(dev.end(Signal::SIGTERM).await.success());

    // An operator can name another page.
    let named = [(
        "VERIFICATION_BASE_URL".to_owned(),
        "https://example.com/?t=".to_owned(),
    )];
    let dev = Dev::start(&[&data_dir.flag()], &named).await;
    let issued = dev.send_printed_request().await;
    assert!(
        issued
            .text("verificationUrl")
            .starts_with("https://example.com/?t="),
        "{issued:?}"
    );
    assert!(dev.end(Signal::SIGTERM).await.success());
}
