//! The group commit: many handouts, one statement, each caller answered after the commit.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cache::CachedToken;
use crate::db::DbError;
use crate::db::clock::DatabaseClock;
use crate::db::handouts::{
    HandoutRow, WriterConnection, find_handouts, insert_handouts, replay_handouts,
};
use crate::metrics::Metrics;
use crate::model::{Caller, Failure};

/// Handouts that may wait for the writer before more are refused.
const QUEUE: usize = 16_384;
/// Handouts in one statement.
const BATCH: usize = 500;
/// A statement that takes longer is given up, its outcome unknown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A handout on its way to the writer.
#[derive(Debug)]
struct Handout {
    event_id: Uuid,
    occurred_at: DateTime<Utc>,
    token: Arc<CachedToken>,
    caller: Arc<Caller>,
    min_life: Duration,
    reply: oneshot::Sender<Result<bool, Failure>>,
}

impl Handout {
    fn row(&self) -> HandoutRow<'_> {
        let token = &self.token.issued;
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

/// The way to the writer.
#[derive(Clone, Debug)]
pub struct HandoutWriter {
    queue: mpsc::Sender<Handout>,
    /// The clock that its events are dated by.
    pub(super) clock: Arc<DatabaseClock>,
}

impl HandoutWriter {
    /// Starts the writer; it ends, with nothing left in its queue, once `stop` is cancelled. What is
    /// returned beside it resolves then.
    ///
    /// It has a thread and a runtime to itself: among the workers of a larger one each flush would
    /// wake several of them.
    pub fn start(
        connection: WriterConnection,
        clock: Arc<DatabaseClock>,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> std::io::Result<(Self, oneshot::Receiver<()>)> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = oneshot::channel();
        let its_clock = clock.clone();
        let run = async move {
            let writer = WriterTask {
                connection,
                deadline: ReusableTimeout::new(),
                clock: its_clock,
                metrics,
            };
            writer.run(waiting, stop).await;
        };
        thread::Builder::new()
            .name("audit-writer".into())
            .spawn(move || {
                runtime.block_on(run);
                let _ = ended.send(());
            })?;
        Ok((HandoutWriter { queue, clock }, end))
    }

    /// Puts the handout on record if the token may be handed out at this moment: true, and it is
    /// durable; false, and the token must not be used.
    pub async fn record(
        &self,
        token: Arc<CachedToken>,
        min_life: Duration,
        caller: Arc<Caller>,
    ) -> Result<bool, Failure> {
        let (reply, answer) = oneshot::channel();
        let handout = Handout {
            event_id: Uuid::now_v7(),
            occurred_at: self.clock.estimate(),
            token,
            caller,
            min_life,
            reply,
        };
        self.queue
            .try_send(handout)
            .map_err(|_| Failure::overloaded())?;
        answer.await.unwrap_or_else(|_| Err(Failure::database()))
    }

    /// Handouts that wait for the writer.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Whether the writer runs.
    pub fn is_running(&self) -> bool {
        !self.queue.is_closed()
    }
}

struct WriterTask {
    connection: WriterConnection,
    deadline: ReusableTimeout,
    clock: Arc<DatabaseClock>,
    metrics: Metrics,
}

impl WriterTask {
    /// Takes what has gathered while the last flush ran; there is no timer.
    async fn run(mut self, mut waiting: mpsc::Receiver<Handout>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                taken = waiting.recv_many(&mut batch, BATCH) => if taken == 0 { break },
                () = stop.cancelled(), if !waiting.is_closed() => waiting.close(),
            }
            // Nobody waits for these any more.
            batch.retain(|handout| !handout.reply.is_closed());
            if !batch.is_empty() {
                self.metrics.audit_batch_size.observe(batch.len() as f64);
                let _flush = self.metrics.audit_flush_seconds.start_timer();
                self.flush(std::mem::take(&mut batch)).await;
            }
        }
    }

    /// Decides a batch and answers it. A row that poisons it is found by halving; only its caller
    /// fails.
    async fn flush(&mut self, batch: Vec<Handout>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            let rows: Vec<_> = part.iter().map(Handout::row).collect();
            match self.decide(&rows).await {
                Ok(on_record) => part.into_iter().for_each(|handout| {
                    let is_on_record = on_record.contains(&handout.event_id);
                    let _ = handout.reply.send(Ok(is_on_record));
                }),
                Err(error) if error.is_data_error() && part.len() > 1 => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([part, rest]);
                }
                Err(error) => {
                    tracing::error!(%error, handouts = part.len(), "handouts could not be put on record");
                    part.into_iter().for_each(|handout| {
                        let _ = handout.reply.send(Err(Failure::database()));
                    });
                }
            }
        }
    }

    /// The ids of those handouts that are on record after this.
    async fn decide(&mut self, rows: &[HandoutRow<'_>]) -> Result<HashSet<Uuid>, DbError> {
        match self.insert(rows).await {
            Err(error) if !error.is_data_error() => {
                tracing::warn!(%error, handouts = rows.len(), "a flush was lost; replaying it");
                self.connection.abandon();
                let replay = self.replay(rows).await;
                if replay.is_err() {
                    self.connection.abandon();
                }
                replay
            }
            decided => decided,
        }
    }

    /// After a flush of unknown outcome: the same again, and then, in a statement of its own, what
    /// is on record. Asking first could miss a transaction still under way; inserting waits for it.
    async fn replay(&mut self, rows: &[HandoutRow<'_>]) -> Result<HashSet<Uuid>, DbError> {
        let lower_bound = self.clock.lower_bound();
        self.deadline
            .within(async {
                replay_handouts(self.connection.get().await?, rows, lower_bound).await
            })
            .await?;
        self.deadline
            .within(async { find_handouts(self.connection.get().await?, rows).await })
            .await
    }

    async fn insert(&mut self, rows: &[HandoutRow<'_>]) -> Result<HashSet<Uuid>, DbError> {
        let lower_bound = self.clock.lower_bound();
        self.deadline
            .within(async {
                insert_handouts(self.connection.get().await?, rows, lower_bound).await
            })
            .await
    }
}

/// The end of the time that a statement has. One for all of them: to put off a timer costs nothing,
/// a new one each time would wake the writer's own runtime.
struct ReusableTimeout(Pin<Box<Sleep>>);

impl ReusableTimeout {
    fn new() -> Self {
        ReusableTimeout(Box::pin(sleep(FLUSH_TIMEOUT)))
    }

    async fn within<T>(
        &mut self,
        work: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        self.0.as_mut().reset(Instant::now() + FLUSH_TIMEOUT);
        tokio::select! {
            biased;
            done = work => done,
            () = &mut self.0 => Err(DbError::TimedOut(FLUSH_TIMEOUT)),
        }
    }
}
