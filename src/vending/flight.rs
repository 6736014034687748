//! Single-flight of cache misses in this process. The first request starts the flight, and requests
//! with the same needs join it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::resolve::ResolvedToken;
use crate::model::{Combination, Failure};

/// The needs of a request that misses the cache. Requests share a flight only if all of them match.
///
/// A stored token may suffice for one request and not for another. With a shared flight, the first
/// would wait for the mint of the second. The lease still limits both flights to one mint.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FlightKey {
    /// The combination.
    pub combination: Combination,
    /// The life that a stored token must have left.
    pub min_life: Duration,
    /// True if only a token minted after the start of the request is accepted.
    pub renew: bool,
    /// The client, if it has a quota of mints. Another client must not fail because this quota is spent.
    pub quota_of: Option<String>,
}

/// The result that all requests of a flight share.
pub type FlightResult = Result<ResolvedToken, Failure>;
type Flight = Shared<BoxFuture<'static, FlightResult>>;

/// The flights in progress.
///
/// Each runs as a task on the main runtime, and runs to its end even if every caller hangs up.
#[derive(Clone, Debug)]
pub struct Flights {
    in_flight: Arc<Mutex<HashMap<FlightKey, Flight>>>,
    runtime: Handle,
    tracker: TaskTracker,
}

impl Flights {
    /// Creates an empty set whose flights run on the current runtime and are tracked by `tracker`.
    pub fn new(tracker: TaskTracker) -> Self {
        Flights {
            in_flight: Arc::default(),
            runtime: Handle::current(),
            tracker,
        }
    }

    /// Joins the flight of this key. If there is none, starts it with `start` and returns true.
    ///
    /// # Errors
    /// Returns the failure of `start`, which refuses a new flight.
    pub fn join<F>(
        &self,
        key: &FlightKey,
        start: impl FnOnce() -> Result<F, Failure>,
    ) -> Result<(Flight, bool), Failure>
    where
        F: Future<Output = FlightResult> + Send + 'static,
    {
        let mut in_flight = lock(&self.in_flight);
        if let Some(flight) = in_flight.get(key) {
            return Ok((flight.clone(), false));
        }
        let work = start()?.in_current_span();
        let guard = FlightGuard {
            in_flight: self.in_flight.clone(),
            key: key.clone(),
        };
        let task = self.tracker.spawn_on(
            async move {
                let _guard = guard;
                work.await
            },
            &self.runtime,
        );
        let flight = async move { task.await.unwrap_or_else(|_| Err(Failure::internal())) };
        let flight = flight.boxed().shared();
        in_flight.insert(key.clone(), flight.clone());
        Ok((flight, true))
    }
}

/// Removes the flight from the map when its task ends, also after a panic.
struct FlightGuard {
    in_flight: Arc<Mutex<HashMap<FlightKey, Flight>>>,
    key: FlightKey,
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        lock(&self.in_flight).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
