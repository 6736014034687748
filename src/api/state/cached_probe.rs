//! A cached database probe for unauthenticated endpoints.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::db::DbError;

/// A database that answers later than this counts as down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The last result of a probe and its time. A result of `None` means that the database was down.
#[derive(Debug)]
pub struct CachedProbe<T>(Mutex<Option<(Instant, Option<T>)>>);

impl<T> Default for CachedProbe<T> {
    fn default() -> Self {
        CachedProbe(Mutex::default())
    }
}

impl<T: Clone> CachedProbe<T> {
    /// Returns the last result if it is younger than `max_age`, or runs the probe.
    ///
    /// Concurrent callers wait for the same probe. Returns `None` if the database is down.
    pub async fn latest(
        &self,
        max_age: Duration,
        probe: impl Future<Output = Result<T, DbError>>,
    ) -> Option<T> {
        let mut last = self.0.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < max_age
        {
            return result.clone();
        }
        let outcome = timeout(PROBE_TIMEOUT, probe).await;
        let outcome = outcome.unwrap_or(Err(DbError::TimedOut(PROBE_TIMEOUT)));
        let result = outcome
            .inspect_err(|cause| tracing::warn!(%cause, "the database probe failed"))
            .ok();
        *last = Some((Instant::now(), result.clone()));
        result
    }
}
