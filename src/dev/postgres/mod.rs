//! A private Postgres for `token-vendor dev` and the tests, made from the server binaries that are
//! installed: no port, a unix socket that only its user may open, and gone when its owner is, a
//! kill -9 of the owner included.
//!
//! Postgres refuses to run as root. Started by root, it runs as the user `postgres`, or `nobody`.
//!
//! ```text
//! DATA_DIR/.token-vendor   marks the folder as made here: what `remove` may delete
//! DATA_DIR/lock            locked by the owner, the server and every process between and below
//! DATA_DIR/pgdata          the cluster
//! DATA_DIR/postgres.log    the server's log since it was last started
//! /tmp/token-vendor-…      the socket: its path must be short, and follows from DATA_DIR
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

/// Where a local Postgres keeps its data, and how long it lives.
#[derive(Clone, Debug, Default)]
pub struct LocalPostgresOptions {
    /// Its folder; made if it is missing, refused if it holds something else.
    pub data_dir: PathBuf,
    /// Postgres outlives its owner until the process with this id is gone too. For a test runner
    /// that gives every test a process of its own.
    pub also_until: Option<u32>,
    /// What it has stored is deleted when it ends, however that comes about.
    pub is_temporary: bool,
    /// Settings of the server, as in `postgresql.conf`. Those that keep it private are not
    /// overridden.
    pub settings: Vec<(String, String)>,
}

/// A running Postgres. Dropping it stops the server soon after; [`stop`](Self::stop) waits for that.
#[derive(Debug)]
pub struct LocalPostgres {
    socket_dir: PathBuf,
    pid: u32,
    /// None where another process owns it.
    supervisor: Option<Child>,
}

impl LocalPostgres {
    /// Starts Postgres in the folder and waits until it takes connections, over crash recovery if
    /// there was a crash. One that is just being stopped is waited for.
    ///
    /// # Errors
    /// Somebody else's runs in the folder, the folder is not ours, there are no binaries, or the
    /// server does not start; each with what to do.
    pub async fn start(options: LocalPostgresOptions) -> anyhow::Result<Self> {
        spawn_blocking(move || server::start(&options, false)).await?
    }

    /// As [`start`](Self::start), but one that runs in the folder already is shared. Only who
    /// started it owns it: for the others `stop` and dropping do nothing.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_or_join(options: LocalPostgresOptions) -> anyhow::Result<Self> {
        spawn_blocking(move || server::start(&options, true)).await?
    }

    /// The folder of the socket `.s.PGSQL.5432`: the same at every start on the same data.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// A `DATABASE_URL` for the database, as the superuser `postgres`, understood by sqlx and psql.
    pub fn url(&self, database: &str) -> String {
        let host = self.socket_dir.display();
        format!("postgresql:///{database}?host={host}&port=5432&user=postgres")
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server as `pg_ctl stop -m fast` does (running statements are cut off, nothing
    /// committed is lost) and waits until it is gone. The folder can be started again.
    ///
    /// # Errors
    /// Its end cannot be waited for.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let Some(mut supervisor) = self.supervisor.take() else {
            return Ok(());
        };
        // The supervisor alone would stop it only after `also_until`. Gone already is as good.
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGINT);
        spawn_blocking(move || supervisor.wait()).await??;
        Ok(())
    }
}
