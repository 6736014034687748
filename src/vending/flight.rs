//! One flight per combination and demand in this process: the first caller starts it, those who ask
//! the same join.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::resolve::Landed;
use crate::model::{Combination, Failure};

/// Who may share a flight. A token on record that does for one order may not do for another, whose
/// mint the first must not be made to wait for: the lease sees to it that there is one mint for both.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Demand {
    /// Of this combination.
    pub combination: Combination,
    /// With more life than this.
    pub min_life: Duration,
    /// A new one.
    pub renew: bool,
}

/// What a flight ends in, for all who joined it.
pub type Landing = Result<Landed, Failure>;
type Flight = Shared<BoxFuture<'static, Landing>>;

/// The flights under way. They run on the main runtime, and to their end whoever hangs up.
#[derive(Clone, Debug)]
pub struct Flights {
    under_way: Arc<Mutex<HashMap<Demand, Flight>>>,
    runtime: Handle,
    tracker: TaskTracker,
}

impl Flights {
    /// No flights yet; call it on the main runtime.
    pub fn new(tracker: TaskTracker) -> Self {
        Flights {
            under_way: Arc::default(),
            runtime: Handle::current(),
            tracker,
        }
    }

    /// Joins the flight, or starts it; true for who started it.
    pub fn join<F>(&self, demand: &Demand, start: impl FnOnce() -> F) -> (Flight, bool)
    where
        F: Future<Output = Landing> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(flight) = under_way.get(demand) {
            return (flight.clone(), false);
        }
        let ending = Ending {
            under_way: self.under_way.clone(),
            demand: demand.clone(),
        };
        let work = start().in_current_span();
        let task = self.tracker.spawn_on(
            async move {
                let _ending = ending;
                work.await
            },
            &self.runtime,
        );
        let flight = async move { task.await.unwrap_or_else(|_| Err(Failure::internal())) };
        let flight = flight.boxed().shared();
        under_way.insert(demand.clone(), flight.clone());
        (flight, true)
    }
}

/// Takes the flight off the list when it ends, in a panic too.
struct Ending {
    under_way: Arc<Mutex<HashMap<Demand, Flight>>>,
    demand: Demand,
}

impl Drop for Ending {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.demand);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
