//! What those who may not be let at the database as often as they like see of it.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::db::DbError;

/// A database that takes longer to answer counts as down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the last look showed, and when; `None` = the database was down.
#[derive(Debug)]
pub struct CachedProbe<T>(Mutex<Option<(Instant, Option<T>)>>);

impl<T> Default for CachedProbe<T> {
    fn default() -> Self {
        CachedProbe(Mutex::default())
    }
}

impl<T: Clone> CachedProbe<T> {
    /// What a look at most `age` ago showed. Those who ask during a look wait for it.
    pub async fn latest(
        &self,
        age: Duration,
        probe: impl Future<Output = Result<T, DbError>>,
    ) -> Option<T> {
        let mut last = self.0.lock().await;
        if let Some((at, seen)) = &*last
            && at.elapsed() < age
        {
            return seen.clone();
        }
        let outcome = timeout(PROBE_TIMEOUT, probe).await;
        let outcome = outcome.unwrap_or(Err(DbError::TimedOut(PROBE_TIMEOUT)));
        let seen = outcome
            .inspect_err(|cause| tracing::warn!(%cause, "a look at the database failed"))
            .ok();
        *last = Some((Instant::now(), seen.clone()));
        seen
    }
}
