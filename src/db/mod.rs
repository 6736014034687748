//! Postgres: the only folder with SQL.

pub mod tokens;

use std::future::Future;
use std::time::Duration;

use sqlx::PgPool;
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

/// No single piece of database work outside the handouts takes longer than this.
const WORK_TIMEOUT: Duration = Duration::from_secs(10);

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

    /// Runs the work to its end on the main runtime, even if the caller stops waiting.
    pub async fn run<T, F, Fut>(&self, work: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(PgPool) -> Fut,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        let work = tokio::time::timeout(WORK_TIMEOUT, work(self.pool.clone()));
        match self.runtime.spawn(work).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(DbError::TimedOut(WORK_TIMEOUT)),
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(DbError::TimedOut(WORK_TIMEOUT)),
            },
        }
    }
}
