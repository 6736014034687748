//! The components that the steps of an issue request share, and their access to the database.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::DefaultDirectRateLimiter;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, error_span};
use uuid::Uuid;

use super::cache::TokenCache;
use super::handout_writer::HandoutWriter;
use crate::crypto::KeyRing;
use crate::db::clock::DatabaseClock;
use crate::db::{Checkout, Database, DbError, Lane};
use crate::metrics::Metrics;
use crate::model::Failure;
use crate::upstream::Upstream;

/// Time that an issue request may take beyond `UPSTREAM_TIMEOUT`. The contract promises 2 s; the
/// remaining 300 ms are for writing the response.
const OVERHEAD: Duration = Duration::from_millis(1_700);

/// Time limit of one database step while callers wait for it.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Mints per second while the handout writer is busy. It is a hundred times the rate that the provider's budget
/// allows for long, and leaves the database to the handouts.
pub(super) const MAX_MINTS_BESIDE_HANDOUTS: NonZeroU32 = NonZeroU32::new(250).unwrap();

/// Settings of the decisions about tokens. `config/settings.rs` has their defaults and limits.
#[derive(Clone, Debug)]
pub struct VendingSettings {
    /// Time limit of one mint, all attempts together.
    pub upstream_timeout: Duration,
    /// Maximum number of attempts of one mint.
    pub upstream_max_attempts: u32,
    /// Maximum number of attempts in a rolling hour over all replicas; 0 for no limit.
    pub upstream_hourly_budget: u32,
    /// Time for which a combination repeats the failure of its last mint.
    pub mint_cooldown: Duration,
    /// Life that a token must have left to be reused.
    pub min_remaining: Duration,
    /// Maximum number of cached tokens.
    pub cache_max_tokens: u64,
}

impl VendingSettings {
    /// Returns the time limit of an issue request.
    pub(super) fn max_wait(&self) -> Duration {
        self.upstream_timeout + OVERHEAD
    }
}

/// The components that flights and mints share.
#[derive(Debug)]
pub(super) struct Context {
    pub db: Database,
    pub upstream: Upstream,
    pub keys: KeyRing,
    pub cache: TokenCache,
    pub handouts: HandoutWriter,
    pub clock: Arc<DatabaseClock>,
    pub settings: VendingSettings,
    pub metrics: Metrics,
    /// The id of this replica, for the mint records.
    pub replica: Uuid,
    pub tracker: TaskTracker,
    /// Limits the mints that start while the handout writer is busy.
    pub mint_limit: DefaultDirectRateLimiter,
}

impl Context {
    /// Refuses a mint while the handout writer is busy and [`MAX_MINTS_BESIDE_HANDOUTS`] started within a second.
    ///
    /// # Errors
    /// Returns `overloaded`.
    pub fn admit_mint(&self) -> Result<(), Failure> {
        admit_mint(self.handouts.is_busy(), &self.mint_limit)
    }

    /// Runs one database step in its lane, in a span named `step`.
    ///
    /// # Errors
    /// Returns `overloaded` if the lane is full, and `database-unavailable` if the step fails or takes longer than
    /// [`QUERY_TIMEOUT`]. After a timeout the step may still end well, so its outcome is unknown.
    pub async fn run_query<T, F, Fut>(
        &self,
        lane: Lane,
        step: &'static str,
        work: F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(Checkout) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        let result = timeout(QUERY_TIMEOUT, self.db.run(lane, work))
            .instrument(database_span(step))
            .await;
        result
            .unwrap_or(Err(DbError::TimedOut(QUERY_TIMEOUT)))
            .map_err(|error| {
                // The log of the request shows that it was shed.
                if !matches!(error, DbError::Overloaded) {
                    tracing::error!(%error, step, "a database step failed");
                }
                Failure::from(&error)
            })
    }
}

fn admit_mint(is_writer_busy: bool, limit: &DefaultDirectRateLimiter) -> Result<(), Failure> {
    if is_writer_busy && limit.check().is_err() {
        return Err(Failure::overloaded());
    }
    Ok(())
}

/// Creates the span of a database step.
pub(super) fn database_span(step: &'static str) -> Span {
    error_span!(
        "database",
        otel.name = step,
        otel.kind = "client",
        db.system.name = "postgresql"
    )
}

#[cfg(test)]
mod tests {
    use governor::{Quota, RateLimiter};

    use super::*;

    #[test]
    fn mints_are_limited_only_while_the_handout_writer_is_busy() {
        let limit = RateLimiter::direct(Quota::per_second(MAX_MINTS_BESIDE_HANDOUTS));
        assert!((0..1_000).all(|_| admit_mint(false, &limit).is_ok()));
        let admitted = (0..1_000).filter(|_| admit_mint(true, &limit).is_ok());
        // The limit may allow some more while the test runs.
        assert!((250..900).contains(&admitted.count()));
    }
}
