//! A private Postgres for `token-vendor dev` and the tests, made from the server binaries that are
//! installed: no port, a unix socket that only its user may open, and gone when its owner is, a
//! kill -9 of the owner included.
//!
//! Postgres refuses to run as root. Started by root, it runs as the user `postgres`, or `nobody`.
//!
//! ```text
//! DATA_DIR/.token-vendor   marks the folder as made here: what `remove` may delete
//! DATA_DIR/lock            locked, with the process id of the owner in it, while Postgres may run
//! DATA_DIR/pgdata          the cluster
//! DATA_DIR/postgres.log    the server's log since it was last started
//! DATA_DIR/run             the socket (a folder in /tmp where this path would be too long)
//! ```

mod binaries;
mod cluster;
mod folder;
mod pid_file;
mod server;
mod supervisor;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use binaries::find_binaries;
pub use folder::{default_data_dir, remove};

/// The oldest Postgres that the service runs on.
pub const OLDEST_MAJOR: u32 = 15;

/// Where a local Postgres keeps its data, and how long it lives.
#[derive(Clone, Debug, Default)]
pub struct LocalPostgresOptions {
    /// Its folder; made if it is missing, refused if it holds something else.
    pub data_dir: PathBuf,
    /// Postgres outlives its owner until the process with this id is gone too. For a test runner
    /// that gives every test a process of its own.
    pub also_until: Option<u32>,
    /// Settings of the server, as in `postgresql.conf`. Those that keep it private are not
    /// overridden.
    pub settings: Vec<(String, String)>,
}

/// A running Postgres. Dropping it stops the server soon after; [`stop`](Self::stop) waits for that.
#[derive(Debug)]
pub struct LocalPostgres {
    socket_dir: PathBuf,
    postmaster: u32,
    /// None where another process owns it.
    owned: Option<server::Owned>,
}

impl LocalPostgres {
    /// Starts Postgres in the folder and waits until it takes connections, over crash recovery if
    /// there was a crash. One that is just being stopped is waited for.
    ///
    /// # Errors
    /// [`InUse`](LocalPostgresError::InUse) where somebody else's runs in the folder; see the others.
    pub async fn start(options: LocalPostgresOptions) -> Result<Self, LocalPostgresError> {
        blocking(move || server::start(&options, false)).await
    }

    /// As [`start`](Self::start), but one that runs in the folder already is shared. Only who
    /// started it owns it: for the others `stop` and dropping do nothing.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_or_join(options: LocalPostgresOptions) -> Result<Self, LocalPostgresError> {
        blocking(move || server::start(&options, true)).await
    }

    /// The folder of the socket `.s.PGSQL.5432`: the same at every start on the same data.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// A `DATABASE_URL` for the database, as the superuser `postgres`, understood by sqlx and psql.
    pub fn url(&self, database: &str) -> String {
        server::url(&self.socket_dir, database)
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.postmaster
    }

    /// Stops the server as `pg_ctl stop -m fast` does (running statements are cut off, nothing
    /// committed is lost) and waits until it is gone. The folder can be started again.
    ///
    /// # Errors
    /// [`StillRunning`](LocalPostgresError::StillRunning) after half a minute.
    pub async fn stop(self) -> Result<(), LocalPostgresError> {
        let Some(owned) = self.owned else {
            return Ok(());
        };
        blocking(move || owned.stop(self.postmaster)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LocalPostgresError> + Send + 'static,
) -> Result<T, LocalPostgresError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(LocalPostgresError::Io {
            doing: "starting or stopping the local Postgres".into(),
            source: io::Error::other(error),
        }),
    }
}

/// Why there is no local Postgres, and what to do.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)]
pub enum LocalPostgresError {
    #[error(
        "no Postgres server binaries of version {OLDEST_MAJOR} or later found (looked in {looked_in}): \
         install Debian's `postgresql` or Homebrew's `postgresql@17`, or set PG_BIN to their folder"
    )]
    NoBinaries { looked_in: String },
    #[error("PG_BIN is {}: {problem}", path.display())]
    BadPgBin { path: PathBuf, problem: String },
    #[error(
        "the data in {} was made by Postgres {data}, but no such server was found, only {found}: \
         set PG_BIN to the folder of its binaries, or start with fresh data", data_dir.display()
    )]
    OtherVersion {
        data_dir: PathBuf,
        data: u32,
        found: u32,
    },
    #[error("another `token-vendor dev` (process {pid}) is running on {}: stop it first", data_dir.display())]
    InUse { data_dir: PathBuf, pid: i32 },
    #[error("a Postgres of before is still running on {}: stop it first", data_dir.display())]
    StillRunning { data_dir: PathBuf },
    #[error(
        "{} was not made by token-vendor and is not empty: choose another folder, \
         or empty it yourself", path.display()
    )]
    NotOurs { path: PathBuf },
    #[error(
        "{} cannot be entered by the user `{user}`, whom Postgres runs as because it refuses root: \
         choose a data folder elsewhere", path.display()
    )]
    OutOfReach { path: PathBuf, user: String },
    #[error(
        "Postgres refuses to run as root, and there is no user `postgres` or `nobody`: run as another user"
    )]
    NoUser,
    #[error("{} is no UTF-8: choose another folder", path.display())]
    NotUtf8 { path: PathBuf },
    #[error("initdb failed: {output}")]
    InitFailed { output: String },
    #[error("Postgres did not start ({reason}); the end of its log {}:\n{tail}", log.display())]
    NotStarted {
        reason: String,
        log: PathBuf,
        tail: String,
    },
    #[error("{doing} failed: {source}")]
    Io { doing: String, source: io::Error },
}

/// Says what was being done when the operating system refused.
trait While<T> {
    fn or_while(self, doing: impl FnOnce() -> String) -> Result<T, LocalPostgresError>;
}

impl<T> While<T> for io::Result<T> {
    fn or_while(self, doing: impl FnOnce() -> String) -> Result<T, LocalPostgresError> {
        self.map_err(|source| LocalPostgresError::Io {
            doing: doing(),
            source,
        })
    }
}
