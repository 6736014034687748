//! A private Postgres for `token-vendor dev`, the tests and the benchmark.
//!
//! It uses the installed server binaries. It listens on no port, only on a unix socket that only its user may open.
//! It stops when its owner ends, even after a kill -9 of the owner. ADR 0007 has the reasons.
//!
//! Postgres refuses to run as root. Started by root, it runs as the user `postgres`, or `nobody`.
//!
//! ```text
//! DATA_DIR/.token-vendor   marks the folder as created here, so that `remove` may delete it
//! DATA_DIR/lock            locked by the owner, the supervisor, the server and its children
//! DATA_DIR/pgdata          the cluster
//! DATA_DIR/postgres.log    the server's log since its last start
//! /tmp/token-vendor-…      the folder of the socket; its short name is a hash of DATA_DIR
//! ```

mod binaries;
mod folder;
mod server;

use std::path::{Path, PathBuf};
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::spawn_blocking;

pub use folder::{default_data_dir, remove};

/// The data folder, lifetime and settings of a [`LocalPostgres`].
#[derive(Clone, Debug, Default)]
pub struct LocalPostgresOptions {
    /// The data folder. A missing folder is created; a folder with other contents is rejected.
    pub data_dir: PathBuf,
    /// A process that keeps the server running after its owner has ended. For a test runner that runs each test in
    /// its own process.
    pub keep_alive_pid: Option<u32>,
    /// Deletes the data when the server ends, even after a crash or a kill -9 of the owner.
    pub is_temporary: bool,
    /// Server settings, as in `postgresql.conf`. They cannot override the settings that keep the server private.
    pub settings: Vec<(String, String)>,
}

/// A running Postgres. Dropping it stops the server soon after; [`stop`](Self::stop) waits for the end.
#[derive(Debug)]
pub struct LocalPostgres {
    socket_dir: PathBuf,
    pid: u32,
    /// `None` if another process owns the server.
    supervisor: Option<Child>,
}

impl LocalPostgres {
    /// Starts Postgres on the data folder and waits until it accepts connections, including crash recovery.
    ///
    /// Waits for an earlier server on the same folder that is stopping.
    ///
    /// # Errors
    /// Fails if another server runs on the folder, the folder has other contents, no binaries are installed, or the
    /// server does not start. Each message says what to do.
    pub async fn start(options: LocalPostgresOptions) -> anyhow::Result<Self> {
        spawn_blocking(move || server::start(&options, false)).await?
    }

    /// Shares the server that runs on the folder, or starts one like [`start`](Self::start).
    ///
    /// The process that started the server owns it. For the others, `stop` and dropping do nothing.
    ///
    /// # Errors
    /// Fails like `start`, except that a running server is no error.
    pub async fn start_or_join(options: LocalPostgresOptions) -> anyhow::Result<Self> {
        spawn_blocking(move || server::start(&options, true)).await?
    }

    /// Returns the folder of the socket `.s.PGSQL.5432`, which is the same at every start on the same data.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Returns a `DATABASE_URL` for the superuser `postgres`. sqlx and psql accept it.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// Returns a `DATABASE_URL` for another role, which needs no password.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        let host = self.socket_dir.display();
        format!("postgresql:///{database}?host={host}&port=5432&user={role}")
    }

    /// Returns the process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server like `pg_ctl stop -m fast` and waits for its end.
    ///
    /// Running statements are cancelled; committed data stays.
    ///
    /// # Errors
    /// Fails if the wait for the process fails.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let Some(mut supervisor) = self.supervisor.take() else {
            return Ok(());
        };
        // The supervisor would wait for `keep_alive_pid`. An error means that the server has already ended.
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGINT);
        spawn_blocking(move || supervisor.wait()).await??;
        Ok(())
    }
}
