//! What the steps of an issue share, and how they query the database.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span};
use uuid::Uuid;

use super::cache::TokenCache;
use crate::crypto::KeyRing;
use crate::db::clock::DatabaseClock;
use crate::db::{Database, DbError, PgPool};
use crate::metrics::Metrics;
use crate::model::Failure;
use crate::upstream::Upstream;

/// What an answer may take beyond the upstream's time; the contract's 2 s less the way back.
const OVERHEAD: Duration = Duration::from_millis(1_700);

/// How long a step in the database may take while callers wait for it.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The numbers that decide; see the configuration for their meaning.
#[derive(Clone, Debug)]
pub struct VendingSettings {
    /// The time of one mint, all attempts together.
    pub upstream_timeout: Duration,
    /// Calls of one mint.
    pub upstream_max_attempts: u32,
    /// Calls in any rolling hour over all replicas; 0 for no limit.
    pub upstream_hourly_budget: u32,
    /// How long a failure is repeated.
    pub mint_cooldown: Duration,
    /// The life that a token must have left to be handed out again.
    pub min_remaining: Duration,
    /// Tokens in memory.
    pub cache_max_tokens: u64,
}

impl VendingSettings {
    /// How long a caller waits for a token.
    pub(super) fn max_wait(&self) -> Duration {
        self.upstream_timeout + OVERHEAD
    }
}

/// What a mint works with.
#[derive(Debug)]
pub(super) struct Context {
    pub db: Database,
    pub upstream: Upstream,
    pub keys: KeyRing,
    pub cache: TokenCache,
    pub clock: Arc<DatabaseClock>,
    pub settings: VendingSettings,
    pub metrics: Metrics,
    pub replica: Uuid,
    pub tracker: TaskTracker,
}

impl Context {
    /// One step of a mint in the database. One that takes long is given up, its outcome unknown,
    /// so that those who wait hear of it in time.
    pub async fn run_query<T, F, Fut>(&self, step: &'static str, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(PgPool) -> Fut,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        let span = error_span!(
            "database",
            otel.name = step,
            otel.kind = "client",
            db.system.name = "postgresql"
        );
        match timeout(QUERY_TIMEOUT, self.db.run(work))
            .instrument(span)
            .await
        {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                tracing::error!(%error, step, "the database failed");
                Err(Failure::database())
            }
            Err(_) => {
                tracing::error!(step, "the database did not answer within {QUERY_TIMEOUT:?}");
                Err(Failure::database())
            }
        }
    }
}
