//! One flight per combination in this process: the first caller starts it, the others join.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::{BoxFuture, FutureExt, Shared};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::resolve::Landed;
use crate::model::{Combination, Failure};

/// What a flight ends in, for all who joined it.
pub type Landing = Result<Landed, Failure>;
type Flight = Shared<BoxFuture<'static, Landing>>;

/// The flights under way. They run on the main runtime, and to their end whoever hangs up.
#[derive(Clone, Debug)]
pub struct Flights {
    under_way: Arc<Mutex<HashMap<Combination, Flight>>>,
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

    /// Joins the flight of the combination, or starts it; true for who started it.
    pub fn join<F>(&self, combination: &Combination, start: impl FnOnce() -> F) -> (Flight, bool)
    where
        F: Future<Output = Landing> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(flight) = under_way.get(combination) {
            return (flight.clone(), false);
        }
        let ending = Ending {
            under_way: self.under_way.clone(),
            combination: combination.clone(),
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
        under_way.insert(combination.clone(), flight.clone());
        (flight, true)
    }
}

/// Takes the flight off the list when it ends, in a panic too.
struct Ending {
    under_way: Arc<Mutex<HashMap<Combination, Flight>>>,
    combination: Combination,
}

impl Drop for Ending {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.combination);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
