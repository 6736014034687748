//! One flight per combination and demand in this process: the first caller starts it, those who ask
//! the same join.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::resolve::FlightResult;
use crate::model::{Combination, Failure};

/// Who may share a flight. A token on record that does for one order may not do for another, whose
/// mint the first must not be made to wait for: the lease sees to it that there is one mint for both.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FlightKey {
    /// Of this combination.
    pub combination: Combination,
    /// With more life than this.
    pub min_life: Duration,
    /// A new one.
    pub renew: bool,
}

/// What a flight ends in, for all who joined it.
pub type FlightOutcome = Result<FlightResult, Failure>;
type Flight = Shared<BoxFuture<'static, FlightOutcome>>;

/// The flights under way. They run on the main runtime, and to their end whoever hangs up.
#[derive(Clone, Debug)]
pub struct Flights {
    in_flight: Arc<Mutex<HashMap<FlightKey, Flight>>>,
    runtime: Handle,
    tracker: TaskTracker,
}

impl Flights {
    /// No flights yet; call it on the main runtime.
    pub fn new(tracker: TaskTracker) -> Self {
        Flights {
            in_flight: Arc::default(),
            runtime: Handle::current(),
            tracker,
        }
    }

    /// Joins the flight, or starts it; true for who started it.
    pub fn join<F>(&self, key: &FlightKey, start: impl FnOnce() -> F) -> (Flight, bool)
    where
        F: Future<Output = FlightOutcome> + Send + 'static,
    {
        let mut in_flight = lock(&self.in_flight);
        if let Some(flight) = in_flight.get(key) {
            return (flight.clone(), false);
        }
        let guard = FlightGuard {
            in_flight: self.in_flight.clone(),
            key: key.clone(),
        };
        let work = start().in_current_span();
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
        (flight, true)
    }
}

/// Takes the flight off the list when it ends, in a panic too.
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
