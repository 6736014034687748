//! Lanes: the kinds of database work, each with its own limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::DbError;

/// The time limit of a wait for a lane, and of a wait for a connection.
pub const MAX_QUEUE_WAIT: Duration = Duration::from_millis(500);

/// The wait from which a lane is saturated.
const SATURATED_WAIT: Duration = Duration::from_millis(100);

/// A kind of work, with its own limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Refreshes known clients, and probes the health. It has a connection of its own.
    Authentication,
    /// Looks up unknown keys and wrong secrets, which anyone can send.
    UnknownKeys,
    /// Runs the steps of mints.
    Mints,
    /// Reads records and the audit log.
    Reads,
    /// Invalidates tokens, cleans up, rotates keys and counts.
    Upkeep,
}

/// All lanes, in the order of their discriminants.
pub const LANES: [Lane; 5] = [
    Lane::Authentication,
    Lane::UnknownKeys,
    Lane::Mints,
    Lane::Reads,
    Lane::Upkeep,
];

impl Lane {
    /// The time limit of one piece of work.
    pub fn deadline(self) -> Duration {
        match self {
            Lane::Authentication | Lane::UnknownKeys => Duration::from_secs(1),
            // Longer than `lock_timeout`, so that a statement that waits for a lock ends with a known outcome.
            Lane::Mints => Duration::from_millis(2_500),
            Lane::Reads | Lane::Upkeep => Duration::from_secs(5),
        }
    }

    /// Returns true if dropping the work leaves no outcome unknown.
    pub fn is_read_only(self) -> bool {
        matches!(self, Lane::Authentication | Lane::UnknownKeys)
    }

    /// The maximum number of pieces of work in progress, on a number of `shared` connections.
    ///
    /// No lane takes all connections. On a server with few cores, mints are also faster with few connections.
    fn max_in_progress(self, shared: usize) -> usize {
        match self {
            Lane::Authentication => 1,
            Lane::Mints | Lane::Reads => shared.div_ceil(2).max(2).min(shared),
            Lane::UnknownKeys => shared.div_ceil(4),
            Lane::Upkeep => shared.div_ceil(4).max(2).min(shared),
        }
    }

    /// The maximum number of pieces of work that wait.
    fn max_waiting(self, in_progress: usize) -> usize {
        match self {
            Lane::Authentication => 1_000,
            // Only new flights are refused early: see `is_saturated`.
            Lane::Mints => 64 * in_progress,
            Lane::UnknownKeys | Lane::Reads | Lane::Upkeep => 16 * in_progress,
        }
    }
}

/// The limits of a lane.
#[derive(Debug)]
pub struct Queue {
    in_progress: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
    /// The time that the last piece of work waited, in milliseconds.
    last_wait: AtomicU64,
}

impl Queue {
    /// Creates the limits of a lane, on a number of `shared` connections.
    pub fn new(lane: Lane, shared: usize) -> Self {
        let in_progress = lane.max_in_progress(shared);
        Queue {
            in_progress: Arc::new(Semaphore::new(in_progress)),
            waiting: AtomicUsize::new(0),
            max_waiting: lane.max_waiting(in_progress),
            last_wait: AtomicU64::new(0),
        }
    }

    /// Returns true if work waits, and the last piece of work waited over 100 ms.
    pub fn is_saturated(&self) -> bool {
        let last_wait = Duration::from_millis(self.last_wait.load(Ordering::Relaxed));
        self.waiting.load(Ordering::Relaxed) > 0 && last_wait >= SATURATED_WAIT
    }

    /// Waits for a place in the lane.
    ///
    /// # Errors
    /// Returns [`DbError::Overloaded`] if too much work waits, and after 500 ms.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit, DbError> {
        let in_progress = self.in_progress.clone();
        if let Ok(permit) = in_progress.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::enter(&self.waiting, self.max_waiting)?;
        let started = Instant::now();
        let entered = timeout(MAX_QUEUE_WAIT, in_progress.acquire_owned()).await;
        let waited = started.elapsed().as_millis() as u64;
        self.last_wait.store(waited, Ordering::Relaxed);
        match entered {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(DbError::Overloaded),
        }
    }
}

/// Counts a piece of work while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, max: usize) -> Result<Self, DbError> {
        let waiting = Waiting(count);
        match count.fetch_add(1, Ordering::Relaxed) < max {
            true => Ok(waiting),
            false => Err(DbError::Overloaded),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
