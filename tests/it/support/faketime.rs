//! Clocks that a test sets, by Debian's `faketime`. The monotonic clocks stay real.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::Stdio;

use chrono::TimeDelta;
use nix::sys::signal::Signal;
use sqlx::{Connection, PgConnection};
use token_vendor::dev::postgres::remove;
use tokio::process::{Child, Command};

use super::cluster::own_folder;
use super::server::Server;
use super::{eventually, send_signal};

/// The system clock of the processes that are started with its variables: the real time plus an offset.
pub struct FakeClock {
    library: PathBuf,
    file: PathBuf,
}

impl FakeClock {
    /// Creates a clock that shows the real time. Returns `None` if `faketime` is not installed.
    pub fn new() -> Option<FakeClock> {
        let folders = fs::read_dir("/usr/lib").ok()?.flatten();
        let library = folders
            .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.exists())?;
        let file = own_folder();
        let clock = FakeClock { library, file };
        clock.set(TimeDelta::zero());
        Some(clock)
    }

    /// Returns the environment variables of the processes.
    pub fn variables(&self) -> [(&'static str, &str); 4] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    /// Sets the offset, in milliseconds. The processes read it at their next look at the clock.
    pub fn set(&self, offset: TimeDelta) {
        let new = self.file.with_extension("new");
        let ms = offset.num_milliseconds();
        let sign = if ms < 0 { '-' } else { '+' };
        let seconds = ms.unsigned_abs() / 1000;
        fs::write(
            &new,
            format!("{sign}{seconds}.{:03}\n", ms.unsigned_abs() % 1000),
        )
        .unwrap();
        fs::rename(new, &self.file).unwrap();
    }
}

impl Drop for FakeClock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// A Postgres with a fake clock and the current schema in the database `vending`. The processes end when this is
/// dropped.
pub struct FakeTimeServer {
    pub url: String,
    data_dir: PathBuf,
    process: Child,
}

impl FakeTimeServer {
    /// Starts a server on a new data folder.
    pub async fn start(clock: &FakeClock) -> FakeTimeServer {
        let Server { postgres, data_dir } = Server::start(&[]).await;
        let program = fs::read_link(format!("/proc/{}/exe", postgres.pid())).unwrap();
        postgres.stop().await.unwrap();
        let pgdata = data_dir.join("pgdata");
        let owner = fs::metadata(&pgdata).unwrap();
        let socket_dir = data_dir.join("socket");
        fs::create_dir(&socket_dir).unwrap();
        chown(&socket_dir, Some(owner.uid()), Some(owner.gid())).unwrap();
        let process = Command::new(program)
            .arg("-D")
            .arg(&pgdata)
            .args(["-c", "listen_addresses=", "-c", "port=5432", "-c"])
            .arg(format!("unix_socket_directories={}", socket_dir.display()))
            .env_clear()
            .envs(clock.variables())
            .current_dir(&data_dir)
            .uid(owner.uid())
            .gid(owner.gid())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let host = socket_dir.display();
        let url = format!("postgresql:///vending?host={host}&port=5432&user=postgres");
        eventually("the server with the fake clock is ready", async || {
            PgConnection::connect(&url).await.is_ok()
        })
        .await;
        FakeTimeServer {
            url,
            data_dir,
            process,
        }
    }

    /// Stops the server and removes its data.
    pub async fn stop(mut self) {
        send_signal(&self.process, Signal::SIGINT);
        self.process.wait().await.unwrap();
        remove(&self.data_dir).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fake_clock_is_the_clock_of_a_server_and_of_a_replica() {
    let (Some(database), Some(system)) = (FakeClock::new(), FakeClock::new()) else {
        eprintln!("skipped: faketime is not installed");
        return;
    };
    let server = FakeTimeServer::start(&database).await;
    let world = super::World::on(server.url.clone()).await;
    let replica = super::Process::serve(&world.variables(&system.variables())).await;
    let api = super::Api::at(replica.base.clone());
    database.set(TimeDelta::hours(-5));
    system.set(TimeDelta::hours(5));
    let ahead = "SELECT extract(epoch from clock_timestamp())::bigint";
    let ahead = world.count(ahead).await - chrono::Utc::now().timestamp();
    assert!((-18_060..-17_940).contains(&ahead), "{ahead}");
    eventually(
        "the replica measures the difference of the clocks",
        async || {
            let skew = crate::metrics::scrape(&api).await["clock_skew_seconds"];
            (35_900.0..36_100.0).contains(&skew)
        },
    )
    .await;
    drop(world);
    server.stop().await;
}
