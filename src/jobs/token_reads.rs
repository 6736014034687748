//! Records reads of token records as events, by group commit. Each reader is answered after the commit.

use tokio::sync::{mpsc, oneshot};

use crate::db::audit_events::{TokenReadRow, insert_token_reads};
use crate::db::{Database, Lane};
use crate::model::Failure;

/// Maximum number of queued reads. Further ones are rejected with 503 `overloaded`.
const QUEUE_CAPACITY: usize = 4_096;
/// Maximum number of reads in one statement.
const MAX_BATCH: usize = 500;

/// A queued read, and the reader that waits for its commit.
type Queued = (TokenReadRow, oneshot::Sender<Result<(), Failure>>);

/// Records reads of token records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TokenReads(mpsc::Sender<Queued>);

impl TokenReads {
    /// Starts a task that records the reads. It ends after the last clone is dropped.
    pub fn start(db: Database) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE_CAPACITY);
        tokio::spawn(run(db, queued));
        TokenReads(queue)
    }

    /// Records a read. The record may be shown after the event is committed.
    ///
    /// # Errors
    /// Returns `overloaded` if the queue is full, and `database-unavailable` if the event may not be recorded.
    pub async fn record(&self, read: TokenReadRow) -> Result<(), Failure> {
        let (reply, recorded) = oneshot::channel();
        self.0
            .try_send((read, reply))
            .map_err(|_| Failure::overloaded())?;
        recorded.await.unwrap_or_else(|_| Err(Failure::database()))
    }
}

/// Records the reads that were queued during the previous statement, without waiting for more.
async fn run(db: Database, mut queued: mpsc::Receiver<Queued>) {
    let mut batch = Vec::new();
    while queued.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (rows, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let inserted = db.run(Lane::Reads, async move |mut connection| {
            insert_token_reads(&mut connection, &rows).await
        });
        let inserted = inserted.await.map_err(|error| {
            tracing::error!(%error, reads = replies.len(), "reads of tokens could not be recorded; their callers get 503");
            Failure::from(&error)
        });
        for reply in replies {
            let _ = reply.send(inserted.clone());
        }
    }
}
