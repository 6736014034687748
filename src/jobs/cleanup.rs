//! Cleanup: marks expired tokens and abandoned mints, purges old records, and maintains the audit
//! partitions. The command, the schedule and `POST /maintenance/cleanup` run the same pass.
//!
//! A late or interrupted pass never makes a response wrong, because validity is computed at every
//! handout. Any number of passes may run at once, and each may be killed at any time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::db::cleanup::{
    abandon_mints, count_due, expire_tokens, find_last_run, find_pass_time, has_recent_handouts,
    purge_mints, purge_slots, purge_tokens, record_run,
};
use crate::db::overview::{ROLL_UP, roll_up_minutes};
use crate::db::partitions::{create_partitions, drop_partition, list_expired_partitions};
use crate::db::{Checkout, Database, DbError, Lane};
use crate::metrics::Metrics;
use crate::model::Origin;

/// Time between two creations of audit partitions in a replica with `CLEANUP_INTERVAL=off`.
const PARTITION_INTERVAL: Duration = Duration::from_secs(3600);

/// The retention of records. `None` keeps them forever.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Retention of tokens, mints and combinations, counted from their end.
    pub tokens: Option<Duration>,
    /// Retention of audit events.
    pub audit: Option<Duration>,
}

/// The options of one pass.
#[derive(Clone, Copy, Debug)]
pub struct CleanupOptions {
    /// Only count the rows that are due.
    pub dry_run: bool,
    /// Maximum number of rows in a batch, 1 to 10000.
    pub batch_size: i64,
    /// Time after which the pass starts no further batch.
    pub max_runtime: Duration,
}

impl Default for CleanupOptions {
    fn default() -> Self {
        CleanupOptions {
            dry_run: false,
            batch_size: 1000,
            max_runtime: Duration::from_secs(30),
        }
    }
}

/// The result of a pass. In a dry run the counters are the rows that are due.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CleanupSummary {
    /// Expired tokens that were marked and whose secrets were wiped.
    pub expired: u64,
    /// Mints that no replica finished, closed as failed (not called) or unknown.
    pub abandoned_mints: u64,
    /// Deleted token records.
    pub purged_tokens: u64,
    /// Deleted mint records.
    pub purged_mints: u64,
    /// Deleted combinations.
    pub purged_combinations: u64,
    /// Audit partitions created ahead.
    pub partitions_created: u64,
    /// Audit partitions dropped.
    pub partitions_dropped: u64,
    /// True if nothing was changed.
    pub dry_run: bool,
    /// True if no work was left.
    pub complete: bool,
    /// False if the clocks or the newest event differ by more than a day. The pass then deletes nothing.
    pub clocks_agree: bool,
    /// Duration in milliseconds.
    pub elapsed_ms: u64,
}

impl CleanupSummary {
    /// Returns the counters with their `kind` label in `cleanup_rows_total`.
    fn counters(&self) -> [(&'static str, u64); 7] {
        [
            ("expired", self.expired),
            ("abandoned_mints", self.abandoned_mints),
            ("purged_tokens", self.purged_tokens),
            ("purged_mints", self.purged_mints),
            ("purged_combinations", self.purged_combinations),
            ("partitions_created", self.partitions_created),
            ("partitions_dropped", self.partitions_dropped),
        ]
    }
}

/// The backlog of the cleanup and the last pass of any replica.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backlog {
    /// Expired tokens still marked valid.
    pub overdue_tokens: i64,
    /// Expiry of the oldest of them.
    pub oldest_overdue: Option<DateTime<Utc>>,
    /// End of the last pass.
    pub last_run_at: Option<DateTime<Utc>>,
    /// End of the last pass that left no work.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Summary of the last pass.
    pub last_run: Option<serde_json::Value>,
    /// Time of the next pass; null with an external scheduler.
    pub next_due: Option<DateTime<Utc>>,
}

/// Runs cleanup passes in this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cleaner {
    db: Database,
    retention: Retention,
    interval: Option<Duration>,
    metrics: Metrics,
    stop: CancellationToken,
    runtime: Handle,
}

impl Cleaner {
    /// Creates a cleaner whose passes run on the current runtime. `interval` is the time between scheduled passes, `None` for no schedule.
    /// Once `stop` is cancelled, a pass ends after its current batch.
    pub fn new(
        db: Database,
        retention: Retention,
        interval: Option<Duration>,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        Cleaner {
            db,
            retention,
            interval,
            metrics,
            stop,
            runtime: Handle::current(),
        }
    }

    /// Reads the backlog from the primary.
    pub async fn find_backlog(&self) -> Result<Backlog, DbError> {
        let due = self
            .db
            .run(Lane::Upkeep, async move |mut connection| {
                count_due(&mut connection, None).await
            })
            .await?;
        let last = self
            .db
            .run(Lane::Upkeep, async move |mut connection| {
                find_last_run(&mut connection).await
            })
            .await?;
        Ok(Backlog {
            overdue_tokens: due.expired,
            oldest_overdue: due.oldest,
            next_due: last
                .at
                .zip(self.interval)
                .map(|(at, interval)| at + interval),
            last_run_at: last.at,
            last_success_at: last.succeeded_at,
            last_run: last.summary,
        })
    }

    /// Runs one pass and records its summary. A dry run only counts, and records nothing.
    ///
    /// The pass ends when no work is left, after `max_runtime`, or when it is stopped. It runs in a task of its own, so a
    /// caller that hangs up does not end it.
    pub async fn run(
        &self,
        options: CleanupOptions,
        origin: Origin,
    ) -> Result<CleanupSummary, DbError> {
        let cleaner = self.clone();
        let pass = self.runtime.spawn(async move {
            if options.dry_run {
                return cleaner.count_due_rows(Instant::now()).await;
            }
            cleaner.run_pass(options, origin).await
        });
        pass.await
            .unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(DbError::ShuttingDown),
            })
    }

    /// Runs one pass. Records what it changed even if it fails.
    async fn run_pass(
        self,
        options: CleanupOptions,
        origin: Origin,
    ) -> Result<CleanupSummary, DbError> {
        let (started, origin) = (Instant::now(), Arc::new(origin));
        let mut pass = Pass {
            cleaner: &self,
            batch_size: options.batch_size,
            deadline: started + options.max_runtime,
            origin: origin.clone(),
            is_complete: true,
            summary: CleanupSummary::default(),
        };
        let result = pass.run().await;
        let mut summary = pass.summary;
        summary.complete = pass.is_complete && summary.clocks_agree && result.is_ok();
        summary.elapsed_ms = elapsed_ms(started);
        for (kind, rows) in summary.counters() {
            let counter = &self.metrics.cleanup_rows_total;
            counter.with_label_values(&[kind]).inc_by(rows);
        }
        if summary.clocks_agree {
            let json = serde_json::to_value(summary).expect("a summary serializes");
            // The deletions are recorded already.
            let other_changes = json!({
                "expired": summary.expired,
                "abandonedMints": summary.abandoned_mints,
                "partitionsCreated": summary.partitions_created,
            });
            let has_others =
                summary.expired + summary.abandoned_mints + summary.partitions_created > 0;
            let other_changes = has_others.then_some(other_changes);
            let recorded = self.db.run(Lane::Upkeep, async move |mut connection| {
                record_run(
                    &mut connection,
                    &json,
                    summary.complete,
                    other_changes,
                    &origin,
                )
                .await
            });
            recorded.await?;
        }
        result.map(|()| summary)
    }

    /// Runs a pass per interval until stopped. Each wait varies by 10 %, so that the passes of the
    /// replicas spread. Without an interval only creates audit partitions, about once an hour.
    pub async fn run_on_schedule(self) {
        loop {
            let interval = self.interval.unwrap_or(PARTITION_INTERVAL);
            let wait = interval.mul_f64(0.9 + 0.2 * fastrand::f64());
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stop.cancelled() => return,
            }
            let result = match self.interval {
                Some(_) => self
                    .run(CleanupOptions::default(), Origin::Actor("schedule".into()))
                    .await
                    .map(|_| ()),
                None => self.create_partitions().await.map(|_| ()),
            };
            if let Err(error) = result {
                tracing::error!(%error, "a scheduled cleanup failed");
            }
        }
    }

    /// Returns the summary of a dry run.
    async fn count_due_rows(&self, started: Instant) -> Result<CleanupSummary, DbError> {
        let retention = self.retention.tokens;
        let Some(now) = self.find_time().await? else {
            return Ok(CleanupSummary {
                dry_run: true,
                elapsed_ms: elapsed_ms(started),
                ..CleanupSummary::default()
            });
        };
        let due = self
            .db
            .run(Lane::Upkeep, async move |mut connection| {
                count_due(&mut connection, retention).await
            })
            .await?;
        Ok(CleanupSummary {
            expired: due.expired.unsigned_abs(),
            abandoned_mints: due.abandoned_mints.unsigned_abs(),
            purged_tokens: due.tokens.unsigned_abs(),
            purged_mints: due.mints.unsigned_abs(),
            purged_combinations: due.slots.unsigned_abs(),
            partitions_dropped: self.list_expired_partitions(now).await?.len() as u64,
            dry_run: true,
            complete: true,
            clocks_agree: true,
            elapsed_ms: elapsed_ms(started),
            ..CleanupSummary::default()
        })
    }

    /// Returns the time of a pass, or `None` if a clock is wrong.
    async fn find_time(&self) -> Result<Option<DateTime<Utc>>, DbError> {
        self.db
            .run(Lane::Upkeep, async move |mut connection| {
                find_pass_time(&mut connection).await
            })
            .await
    }

    async fn create_partitions(&self) -> Result<u64, DbError> {
        self.db
            .run(Lane::Upkeep, async move |mut connection| {
                create_partitions(&mut connection).await
            })
            .await
    }

    async fn list_expired_partitions(&self, now: DateTime<Utc>) -> Result<Vec<String>, DbError> {
        let Some(age) = self.retention.audit else {
            return Ok(Vec::new());
        };
        self.db
            .run(Lane::Upkeep, async move |mut connection| {
                list_expired_partitions(&mut connection, now, age).await
            })
            .await
    }
}

fn elapsed_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One pass in progress.
struct Pass<'a> {
    cleaner: &'a Cleaner,
    batch_size: i64,
    deadline: Instant,
    origin: Arc<Origin>,
    is_complete: bool,
    /// The changes so far.
    summary: CleanupSummary,
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<(), DbError> {
        let limit = self.batch_size;
        // First, because the other steps write events.
        self.summary.partitions_created = self.cleaner.create_partitions().await?;
        let Some(now) = self.cleaner.find_time().await? else {
            return Ok(());
        };
        self.summary.clocks_agree = true;
        self.repeat(
            async move |mut connection: Checkout, _| {
                expire_tokens(&mut connection, now, limit).await
            },
            |summary, rows| {
                summary.expired += rows;
                rows
            },
        )
        .await?;
        self.repeat(
            async move |mut connection: Checkout, _| {
                abandon_mints(&mut connection, now, limit).await
            },
            |summary, rows| {
                summary.abandoned_mints += rows;
                rows
            },
        )
        .await?;
        if let Some(age) = self.cleaner.retention.tokens {
            self.repeat(
                async move |mut connection: Checkout, origin: Arc<Origin>| {
                    purge_tokens(&mut connection, now, age, limit, &origin).await
                },
                |summary, (tokens, mints)| {
                    summary.purged_tokens += tokens;
                    summary.purged_mints += mints;
                    tokens
                },
            )
            .await?;
            self.repeat(
                async move |mut connection: Checkout, origin: Arc<Origin>| {
                    purge_mints(&mut connection, now, age, limit, &origin).await
                },
                |summary, rows| {
                    summary.purged_mints += rows;
                    rows
                },
            )
            .await?;
            self.repeat(
                async move |mut connection: Checkout, origin: Arc<Origin>| {
                    purge_slots(&mut connection, now, age, limit, &origin).await
                },
                |summary, rows| {
                    summary.purged_combinations += rows;
                    rows
                },
            )
            .await?;
        }
        self.drop_partitions(now).await?;
        self.roll_up_overview().await;
        Ok(())
    }

    /// Repeats a batch until one is not full. `add` adds its rows to the summary and returns their number.
    async fn repeat<T, F, Fut>(
        &mut self,
        batch: F,
        add: fn(&mut CleanupSummary, T) -> u64,
    ) -> Result<(), DbError>
    where
        T: Send + 'static,
        F: FnOnce(Checkout, Arc<Origin>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        while !self.is_over() {
            let started = Instant::now();
            let (batch, origin) = (batch.clone(), self.origin.clone());
            let db = &self.cleaner.db;
            let rows = match db
                .run(Lane::Upkeep, |connection| batch(connection, origin))
                .await
            {
                // On Citus, passes wait for each other's rows.
                Err(error) if error.is_deadlock() => continue,
                rows => rows?,
            };
            if add(&mut self.summary, rows) < self.batch_size.unsigned_abs() {
                break;
            }
            self.pause(started.elapsed()).await?;
        }
        Ok(())
    }

    /// Waits after a full batch: twice its duration if tokens were handed out meanwhile, so that
    /// handouts keep most of their rate, otherwise an eighth of it.
    async fn pause(&self, batch_duration: Duration) -> Result<(), DbError> {
        let is_busy = self
            .cleaner
            .db
            .run(Lane::Upkeep, async move |mut connection| {
                has_recent_handouts(&mut connection, batch_duration).await
            })
            .await?;
        let wait = if is_busy {
            batch_duration * 2
        } else {
            batch_duration / 8
        };
        sleep(wait).await;
        Ok(())
    }

    async fn drop_partitions(&mut self, now: DateTime<Utc>) -> Result<(), DbError> {
        for partition in self.cleaner.list_expired_partitions(now).await? {
            if self.is_over() {
                break;
            }
            let origin = self.origin.clone();
            let result = self
                .cleaner
                .db
                .run(Lane::Upkeep, async move |mut connection| {
                    drop_partition(&mut connection, &partition, &origin).await
                });
            match result.await {
                Ok(is_dropped) => self.summary.partitions_dropped += u64::from(is_dropped),
                // A long read of the audit log or another pass holds a lock.
                Err(error) => {
                    tracing::warn!(%error, "an audit partition could not be dropped; the next pass retries");
                    self.is_complete = false;
                }
            }
        }
        Ok(())
    }

    /// Counts the handouts per minute for the console. A failure does not fail the pass.
    async fn roll_up_overview(&mut self) {
        while !self.is_over() {
            let started = Instant::now();
            let result = self
                .cleaner
                .db
                .run(Lane::Upkeep, async move |mut connection| {
                    roll_up_minutes(&mut connection).await
                });
            match result.await {
                Ok(ROLL_UP) => sleep(started.elapsed()).await,
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "counting handouts per minute for the console failed");
                    return;
                }
            }
        }
    }

    /// Returns whether the pass must end now, and marks it as incomplete if so.
    fn is_over(&mut self) -> bool {
        let is_over = self.cleaner.stop.is_cancelled() || Instant::now() >= self.deadline;
        self.is_complete &= !is_over;
        is_over
    }
}
