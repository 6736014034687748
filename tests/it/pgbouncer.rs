//! The service behind a real PgBouncer in transaction mode, with its default settings.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, geteuid};
use reqwest::{Method, Url};
use serde_json::json;
use sqlx::{ConnectOptions, Connection, Executor};
use token_vendor::db::schema;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::cluster::{create_empty_database, own_folder};
use crate::support::{Api, Process, World, eventually, issue_to_new_users, run, send};

/// The default `default_pool_size` of PgBouncer.
const SERVER_CONNECTIONS: usize = 20;

/// A running PgBouncer. The process ends when this is dropped.
struct PgBouncer {
    url: String,
    folder: PathBuf,
    _process: Child,
}

impl PgBouncer {
    /// Starts a PgBouncer in front of the database. Returns `None` if PgBouncer 1.21 or later is not installed.
    async fn start(url: &str) -> Option<PgBouncer> {
        let version = Command::new("pgbouncer").arg("--version").output().await;
        let version = String::from_utf8(version.ok()?.stdout).unwrap();
        let minor = version.strip_prefix("PgBouncer 1.")?.split('.').next()?;
        if minor.parse::<u32>().ok()? < 21 {
            return None;
        }
        let url = Url::parse(url).unwrap();
        let (_, socket_dir) = url.query_pairs().find(|(name, _)| name == "host").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);

        let folder = own_folder();
        fs::create_dir(&folder).unwrap();
        let (users, ini) = (folder.join("users.txt"), folder.join("pgbouncer.ini"));
        fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let settings = format!(
            "[databases]\n* = host={socket_dir} port=5432\n\
             [pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\n\
             pool_mode = transaction\nauth_type = trust\nauth_file = {}\n",
            address.ip(),
            address.port(),
            users.display()
        );
        fs::write(&ini, settings).unwrap();
        let mut command = Command::new("pgbouncer");
        if geteuid().is_root() {
            // PgBouncer refuses to run as root. The user of the server may open its socket.
            let owner = fs::metadata(&*socket_dir).unwrap().uid();
            let owner = User::from_uid(Uid::from_raw(owner)).unwrap().unwrap();
            command.arg("-u").arg(owner.name);
        }
        let process = command.arg(ini).stderr(Stdio::null()).kill_on_drop(true);
        let process = process.spawn().unwrap();
        eventually("PgBouncer listens", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        Some(PgBouncer {
            url: format!("postgres://postgres@{address}{}", url.path()),
            folder,
            _process: process,
        })
    }

    /// Returns the session settings of all server connections. PgBouncer itself sets some and keeps track of them.
    async fn session_settings(&self) -> BTreeSet<(String, String)> {
        let options = schema::connect_options(&self.url.clone().into()).unwrap();
        let connect = (0..SERVER_CONNECTIONS).map(|_| async {
            let mut connection = options.connect().await.unwrap();
            // A transaction keeps its server connection, so all of them are read.
            connection.execute("BEGIN").await.unwrap();
            connection
        });
        let mut settings = BTreeSet::new();
        for mut connection in join_all(connect).await {
            let set: Vec<(String, String)> = sqlx::query_as(
                "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN
                 ('application_name', 'client_encoding', 'DateStyle', 'IntervalStyle', 'standard_conforming_strings', 'TimeZone')",
            )
            .fetch_all(&mut connection)
            .await
            .unwrap();
            settings.extend(set);
            connection.execute("COMMIT").await.unwrap();
            connection.close().await.unwrap();
        }
        settings
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PgBouncer: run make chaos"]
async fn the_service_works_behind_a_transaction_pooler_and_leaves_no_state() {
    let url = create_empty_database().await;
    let Some(pooler) = PgBouncer::start(&url).await else {
        eprintln!("skipped: PgBouncer 1.21 or later is not installed");
        return;
    };
    let migrator = [("DATABASE_URL".to_owned(), pooler.url.clone())];
    for _ in 0..2 {
        let migrated = run(&["migrate"], &migrator).await;
        assert_eq!(migrated.code, 0, "{migrated:?}");
    }
    let world = World::on(url).await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(world.count(locks).await, 0);

    let variables = world.variables(&[("DATABASE_URL", &pooler.url)]);
    let mut process = Process::serve(&variables).await;
    let api = Api::at(process.base.clone());
    let minted = api.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    // Each prepared statement runs on several server connections.
    for _ in 0..5 {
        for answer in issue_to_new_users(&api, 30).await {
            answer.assert_minted("fwd=uri-miss; stored");
        }
        api.issue(json!({"userId": "u"}))
            .await
            .assert_reused(&minted);
    }
    let path = format!("/bank/tokens/{}/invalidate", minted.text("id"));
    let invalidated = send(api.post(&path, &json!({"reason": "requested"}))).await;
    assert_eq!(invalidated.status, 200, "{invalidated:?}");
    api.issue(json!({"userId": "u"}))
        .await
        .assert_minted("fwd=uri-miss; stored");
    let by_user = json!({"reason": "requested", "userId": "u"});
    let invalidated = send(api.post("/bank/tokens/invalidate", &by_user)).await;
    assert_eq!(invalidated.body, json!({"invalidated": 1}));
    for path in [
        "/health/ready",
        "/bank/tokens/?userId=u",
        "/audit/events?userId=u",
        "/audit/events/export?userId=u",
        "/console/",
        "/console/audit",
        "/maintenance/cleanup",
        "/metrics",
    ] {
        let response = api.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    let cleaned = send(api.post("/maintenance/cleanup", &json!({}))).await;
    assert_eq!(cleaned.status, 200, "{cleaned:?}");
    for command in [
        &["cleanup"][..],
        &["check", "--online"],
        &["keys", "rotate"],
    ] {
        let ended = run(command, &variables).await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    assert_eq!(world.count(locks).await, 0);
    let settings = pooler.session_settings().await;
    assert!(settings.is_empty(), "{settings:?}");
    process.signal(Signal::SIGTERM);
    assert!(process.child.wait().await.unwrap().success());
}
