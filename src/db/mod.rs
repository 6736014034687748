//! Postgres: the only folder with SQL.

pub mod audit_events;
pub mod budget;
pub mod cleanup;
pub mod clients;
pub mod clock;
pub mod event_page;
pub mod handouts;
pub mod invalidation;
pub mod keys;
pub mod mints;
pub mod overview;
pub mod partitions;
pub mod schema;
pub mod slots;
mod standalone_event;
pub mod tokens;

use std::future::Future;
use std::time::Duration;

pub use sqlx::PgPool;
pub use sqlx::postgres::PgConnectOptions;
use tokio::runtime::Handle;

/// A statement did not do its work, or nobody knows whether it did.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Postgres or the way to it failed.
    #[error(transparent)]
    Sqlx(#[from] sqlx::Error),
    /// No answer within the time allowed: the outcome is unknown.
    #[error("no answer from the database within {0:?}")]
    TimedOut(Duration),
    /// The runtime ended under the work: the outcome is unknown.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// A row holds what this version cannot read.
    #[error("a row of {table} is not readable: {what}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// The value.
        what: String,
    },
}

impl DbError {
    /// What mends it where not even a connection came about.
    pub fn hint(&self) -> &'static str {
        let code = match self {
            DbError::Sqlx(sqlx::Error::Database(error)) => error.code().unwrap_or_default(),
            _ => Default::default(),
        };
        match code.get(..2) {
            Some("28") => {
                "mend role and password in its URL, or let this machine in by pg_hba.conf"
            }
            Some("3D") => "create that database, or mend the name in its URL",
            Some("53") => "raise max_connections there, or lower DATABASE_MAX_CONNECTIONS here",
            Some("57") => "it is starting or stopping: wait",
            _ => {
                "see that it runs, that host, port and sslmode in its URL are right, and that no firewall or network policy is between"
            }
        }
    }

    /// The error is in the data of one row, not in the database: SQLSTATE classes 22 and 23, but
    /// for 23514, which is what a missing partition gives.
    pub fn is_data_error(&self) -> bool {
        let DbError::Sqlx(sqlx::Error::Database(error)) = self else {
            return false;
        };
        let code = error.code().unwrap_or_default();
        (code.starts_with("22") || code.starts_with("23")) && code != "23514"
    }
}

/// A pool, and the runtime that its connections live on.
///
/// Requests run on HTTP workers, whose runtimes end with them and whose futures are dropped when
/// a caller hangs up. Statements run on the main runtime instead, in a task nobody cancels: no
/// connection is left in the middle of a transaction.
#[derive(Clone, Debug)]
pub struct Database {
    pool: PgPool,
    runtime: Handle,
}

/// No single piece of database work outside the handouts is waited for longer than this.
const WORK_TIMEOUT: Duration = Duration::from_secs(5);

impl Database {
    /// Wraps a pool; call it on the runtime that the connections shall live on.
    pub fn new(pool: PgPool) -> Self {
        Database {
            pool,
            runtime: Handle::current(),
        }
    }

    /// The pool itself, for work that already runs on the main runtime.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Starts the work on the main runtime at once, where it runs to its end even if nobody waits
    /// for it any more.
    pub fn run<T, F, Fut>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T, DbError>> + use<T, F, Fut>
    where
        T: Send + 'static,
        F: FnOnce(PgPool) -> Fut,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        let work = self.runtime.spawn(work(self.pool.clone()));
        async {
            match tokio::time::timeout(WORK_TIMEOUT, work).await {
                Ok(Ok(result)) => result,
                Ok(Err(join)) => match join.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(DbError::ShuttingDown),
                },
                Err(_) => Err(DbError::TimedOut(WORK_TIMEOUT)),
            }
        }
    }
}
