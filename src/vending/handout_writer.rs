//! The handout writer: records handouts by group commit. Each caller is answered after the commit.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep};
use tokio_util::sync::CancellationToken;
use uuid::{NoContext, Timestamp, Uuid};

use super::cache::CachedToken;
use crate::db::clock::DatabaseClock;
use crate::db::handouts::{
    HandoutRow, WriterConnection, find_handouts, insert_handouts, replay_handouts,
};
use crate::db::{Database, DbError};
use crate::metrics::Metrics;
use crate::model::{Caller, Failure};

/// Maximum number of queued handouts. Further ones are rejected with 503 `overloaded`.
const QUEUE_CAPACITY: usize = 16_384;
/// Maximum number of handouts in one statement.
const MAX_BATCH: usize = 500;
/// Time limit of one statement. After it the outcome is unknown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of waiting callers from which mints are limited.
const BUSY: usize = 8;
/// Interval of the checks that the writer can commit.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A queued handout.
#[derive(Debug)]
struct Handout {
    event_id: Uuid,
    occurred_at: DateTime<Utc>,
    cached: Arc<CachedToken>,
    caller: Arc<Caller>,
    min_life: Duration,
    reply: oneshot::Sender<Result<bool, Failure>>,
}

impl Handout {
    fn row(&self) -> HandoutRow<'_> {
        let token = &self.cached.token;
        HandoutRow {
            event_id: self.event_id,
            occurred_at: self.occurred_at,
            user_id: &token.combination.user_id,
            token_id: token.id,
            caller: &self.caller,
            min_life: self.min_life,
        }
    }
}

/// A handle to the handout writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HandoutWriter {
    queue: mpsc::Sender<Handout>,
    /// The number of callers that wait for their handout.
    waiting: Arc<AtomicUsize>,
    /// The reason why the writer cannot commit.
    failure: watch::Receiver<Option<&'static str>>,
    /// The clock that dates the events.
    pub(super) clock: Arc<DatabaseClock>,
}

impl HandoutWriter {
    /// Opens the connection of the writer and starts it. Once `stop` is cancelled, it empties its queue and
    /// ends; the returned receiver then resolves.
    ///
    /// The writer has its own thread and single-threaded runtime. On a shared runtime each flush would
    /// wake several worker threads.
    ///
    /// # Errors
    /// Fails if the connection cannot be opened or its server must not be used.
    pub async fn start(
        db: Database,
        clock: Arc<DatabaseClock>,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Result<(Self, oneshot::Receiver<()>), DbError> {
        let (queue, queued) = mpsc::channel(QUEUE_CAPACITY);
        let (failure_sender, failure) = watch::channel(None);
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the system has another runtime");
        let ((open_sender, opened), (ended, end)) = (oneshot::channel(), oneshot::channel());
        let writer_clock = clock.clone();
        let run = async move {
            // The events of a connection belong to the runtime that opens it.
            let connection = match WriterConnection::open(db).await {
                Ok(connection) => connection,
                Err(error) => {
                    let _ = open_sender.send(Err(error));
                    return;
                }
            };
            let _ = open_sender.send(Ok(()));
            let task = WriterTask {
                connection,
                timeout: ReusableTimeout::new(),
                clock: writer_clock,
                metrics,
                failure: failure_sender,
            };
            task.run(queued, stop).await;
        };
        thread::Builder::new()
            .name("handout-writer".into())
            .spawn(move || {
                runtime.block_on(run);
                let _ = ended.send(());
            })
            .expect("the system has another thread");
        opened.await.unwrap_or(Err(DbError::ShuttingDown))?;
        let writer = HandoutWriter {
            queue,
            waiting: Arc::default(),
            failure,
            clock,
        };
        Ok((writer, end))
    }

    /// Records the handout if the token is valid at this moment and has at least `min_life` left.
    ///
    /// Returns true after the commit. If it returns false, the token must not be handed out.
    ///
    /// # Errors
    /// Returns `overloaded` if the queue is full, and `database-unavailable` if the outcome is unknown.
    pub async fn record(
        &self,
        cached: Arc<CachedToken>,
        min_life: Duration,
        caller: Arc<Caller>,
    ) -> Result<bool, Failure> {
        let _waiting = Waiting::enter(&self.waiting);
        let (reply, is_recorded) = oneshot::channel();
        let handout = Handout {
            event_id: new_event_id(),
            occurred_at: self.clock.lower_bound(),
            cached,
            caller,
            min_life,
            reply,
        };
        self.queue
            .try_send(handout)
            .map_err(|_| Failure::overloaded())?;
        is_recorded
            .await
            .unwrap_or_else(|_| Err(Failure::database()))
    }

    /// Returns true while many callers wait for their handout.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= BUSY
    }

    /// Returns the number of queued handouts.
    pub fn queue_depth(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Returns why handouts cannot be recorded: `stopped`, or the cause of the last failed flush or check. Checks run
    /// every 2 s.
    pub fn failure(&self) -> Option<&'static str> {
        if self.queue.is_closed() {
            return Some("stopped");
        }
        *self.failure.borrow()
    }
}

/// Returns a UUIDv7 with 74 random bits. `Uuid::now_v7` counts within a millisecond instead, so that its neighbours
/// would reveal most of an id that was erased with a person.
fn new_event_id() -> Uuid {
    Uuid::new_v7(Timestamp::now(NoContext))
}

/// Counts a caller while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct WriterTask {
    connection: WriterConnection,
    timeout: ReusableTimeout,
    clock: Arc<DatabaseClock>,
    metrics: Metrics,
    failure: watch::Sender<Option<&'static str>>,
}

impl WriterTask {
    /// Flushes the handouts that were queued during the previous flush, without waiting for more.
    async fn run(mut self, mut queued: mpsc::Receiver<Handout>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = check.tick() => self.check().await,
                received = queued.recv_many(&mut batch, MAX_BATCH) => if received == 0 { break },
                () = stop.cancelled(), if !queued.is_closed() => queued.close(),
            }
            // Skip handouts whose callers have given up.
            batch.retain(|handout| !handout.reply.is_closed());
            if !batch.is_empty() {
                self.metrics.audit_batch_size.observe(batch.len() as f64);
                let _flush_timer = self.metrics.audit_flush_seconds.start_timer();
                self.flush(std::mem::take(&mut batch)).await;
            }
        }
    }

    /// Checks that the server can be used and commits, and reads its clock. Opens the connection if there is none.
    async fn check(&mut self) {
        let checked = self.timeout.run(self.connection.check()).await;
        match &checked {
            Ok(database_time) => self.clock.observe(*database_time),
            Err(error) => self.give_up_connection(error),
        }
        self.note(checked.as_ref().err());
    }

    /// Closes the connection, or leaves it open if its statement may be in a COMMIT.
    fn give_up_connection(&mut self, error: &DbError) {
        match error {
            DbError::TimedOut(_) => self.connection.abandon(),
            _ => self.connection.close(),
        }
    }

    /// Publishes the failure of a flush or a check, and logs it if it is a new one.
    fn note(&self, error: Option<&DbError>) {
        let cause = error.map(DbError::cause);
        let has_changed = self
            .failure
            .send_if_modified(|known| std::mem::replace(known, cause) != cause);
        match error {
            Some(error) if has_changed => {
                tracing::error!(%error, "the handout writer cannot commit; readiness fails")
            }
            None if has_changed => tracing::info!("the handout writer can commit again"),
            _ => {}
        }
    }

    /// Records a batch and answers its callers. If one row breaks the statement, halves the batch
    /// until only the caller of that row fails.
    async fn flush(&mut self, batch: Vec<Handout>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            let rows: Vec<_> = part.iter().map(Handout::row).collect();
            match self.record_rows(&rows).await {
                Ok(recorded) => part.into_iter().for_each(|handout| {
                    let is_recorded = recorded.contains(&handout.event_id);
                    let _ = handout.reply.send(Ok(is_recorded));
                }),
                Err(error) if error.is_data_error() && part.len() > 1 => {
                    let second_half = part.split_off(part.len() / 2);
                    parts.extend([part, second_half]);
                }
                Err(error) => {
                    self.note(Some(&error));
                    tracing::error!(%error, handouts = part.len(), "recording handouts failed; their callers get 503");
                    part.into_iter().for_each(|handout| {
                        let _ = handout.reply.send(Err(Failure::database()));
                    });
                }
            }
        }
    }

    /// Records the rows and returns the event ids of those that are committed. Replaces the connection
    /// and replays the rows if the outcome is unknown.
    async fn record_rows(&mut self, rows: &[HandoutRow<'_>]) -> Result<HashSet<Uuid>, DbError> {
        match self.insert(rows).await {
            Err(error) if !error.is_data_error() => {
                tracing::warn!(%error, handouts = rows.len(), "the outcome of a flush is unknown; replaying it");
                self.give_up_connection(&error);
                let replayed = self.replay(rows).await;
                if let Err(error) = &replayed {
                    self.give_up_connection(error);
                }
                replayed
            }
            result => result,
        }
    }

    /// Inserts the rows again, then selects the recorded ones in a second statement. The insert comes
    /// first because it waits for a transaction of the lost connection that may still commit.
    async fn replay(&mut self, rows: &[HandoutRow<'_>]) -> Result<HashSet<Uuid>, DbError> {
        let lower_bound = self.clock.lower_bound();
        self.timeout
            .run(async { replay_handouts(self.connection.get().await?, rows, lower_bound).await })
            .await?;
        self.timeout
            .run(async { find_handouts(self.connection.get().await?, rows).await })
            .await
    }

    async fn insert(&mut self, rows: &[HandoutRow<'_>]) -> Result<HashSet<Uuid>, DbError> {
        let lower_bound = self.clock.lower_bound();
        self.timeout
            .run(async { insert_handouts(self.connection.get().await?, rows, lower_bound).await })
            .await
    }
}

/// A [`FLUSH_TIMEOUT`] that reuses one timer, because a new timer per statement wakes the writer's
/// runtime and costs a lone caller 3 % latency (docs/decisions/0009).
struct ReusableTimeout(Pin<Box<Sleep>>);

impl ReusableTimeout {
    fn new() -> Self {
        ReusableTimeout(Box::pin(sleep(FLUSH_TIMEOUT)))
    }

    async fn run<T>(
        &mut self,
        work: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        self.0.as_mut().reset(Instant::now() + FLUSH_TIMEOUT);
        tokio::select! {
            biased;
            result = work => result,
            () = &mut self.0 => Err(DbError::TimedOut(FLUSH_TIMEOUT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_events_are_random_within_a_millisecond() {
        let ids: Vec<_> = (0..100).map(|_| new_event_id()).collect();
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
        // The ids of a counter are in order.
        assert!(!ids.is_sorted());
    }
}
