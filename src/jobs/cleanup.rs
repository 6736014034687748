//! Clearing away what has ended: the command, the schedule and the call are this one function.
//!
//! Late or cut off, it never makes an answer wrong: validity is computed at every reading. What it
//! does is true of the past already.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::db::cleanup::{
    abandon_mints, count_due, expire_tokens, find_last_run, has_recent_handouts, purge_mints,
    purge_slots, purge_tokens, record_run,
};
use crate::db::overview::{ROLL_UP, roll_up_minutes};
use crate::db::partitions::{create_partitions, drop_partition, list_expired_partitions};
use crate::db::{Database, DbError};
use crate::metrics::Metrics;
use crate::model::Origin;

/// How often the months of the audit ahead are looked after where the cleanup is left to others.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// How long records are kept; `None` is for ever.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Tokens, mints and combinations, counted from their end.
    pub tokens: Option<Duration>,
    /// Audit events.
    pub audit: Option<Duration>,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct CleanupOptions {
    /// Only count.
    pub dry_run: bool,
    /// Rows in a batch, 1…10000.
    pub batch_size: i64,
    /// It stops after this.
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

/// What a run did, or would do.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CleanupSummary {
    /// Tokens whose time was over, marked and wiped.
    pub expired: u64,
    /// Mints that nobody finished, marked as unknown.
    pub abandoned_mints: u64,
    /// Token records past retention, deleted.
    pub purged_tokens: u64,
    /// Mint records past retention, deleted.
    pub purged_mints: u64,
    /// Combinations past retention, deleted.
    pub purged_combinations: u64,
    /// Months of the audit made ahead.
    pub partitions_created: u64,
    /// Months of the audit past retention, dropped.
    pub partitions_dropped: u64,
    /// Nothing was changed.
    pub dry_run: bool,
    /// Nothing was left to do.
    pub complete: bool,
    /// Milliseconds it took.
    pub elapsed_ms: u64,
}

impl CleanupSummary {
    /// What was done, by kind.
    fn rows(&self) -> [(&'static str, u64); 7] {
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

/// Whether the cleanup keeps up.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backlog {
    /// Expired tokens still marked valid.
    pub overdue_tokens: i64,
    /// When the oldest of them expired.
    pub oldest_overdue: Option<DateTime<Utc>>,
    /// When the last run ended, on whichever replica.
    pub last_run_at: Option<DateTime<Utc>>,
    /// When one last left nothing to do.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Its summary.
    pub last_run: Option<serde_json::Value>,
    /// When the next one is due; null where an outside scheduler has it.
    pub next_due: Option<DateTime<Utc>>,
}

/// The cleanup of this process.
#[derive(Clone, Debug)]
pub struct Cleaner {
    db: Database,
    retention: Retention,
    /// How often it runs by itself.
    interval: Option<Duration>,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Cleaner {
    /// A cleanup that ends its run at the next batch once `stop` comes.
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
        }
    }

    /// Reads the backlog from the primary.
    pub async fn find_backlog(&self) -> Result<Backlog, DbError> {
        let due = self
            .db
            .run(|pool| async move { count_due(&pool, None).await })
            .await?;
        let last = self
            .db
            .run(|pool| async move { find_last_run(&pool).await })
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

    /// Clears away what has ended, in batches, until nothing is left, its time is over or it is
    /// told to stop. Any number of them may run at once; each may be killed at any time.
    pub async fn run(
        &self,
        run: CleanupOptions,
        origin: Origin,
    ) -> Result<CleanupSummary, DbError> {
        let started = Instant::now();
        let mut summary = if run.dry_run {
            count_work(&self.db, self.retention).await?
        } else {
            clean_up(
                &self.db,
                self.retention,
                run,
                started + run.max_runtime,
                &self.stop,
            )
            .await?
        };
        summary.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !run.dry_run {
            let told = serde_json::to_value(summary).expect("a summary is plain data");
            for (kind, rows) in summary.rows() {
                let counted = &self.metrics.cleanup_rows_total;
                counted.with_label_values(&[kind]).inc_by(rows);
            }
            let is_complete = summary.complete;
            let did_something = summary.rows().iter().any(|(_, rows)| *rows > 0);
            self.db
                .run(move |pool| async move {
                    record_run(&pool, &told, is_complete, did_something, &origin).await
                })
                .await?;
        }
        Ok(summary)
    }

    /// Runs now and then until told to stop, a little off the interval so that replicas spread.
    /// Without an interval only the months of the audit ahead are looked after.
    pub async fn keep_running(self) {
        loop {
            let interval = self.interval.unwrap_or(UPKEEP_INTERVAL);
            let pause = interval.mul_f64(0.9 + 0.2 * fastrand::f64());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            let done = match self.interval {
                Some(_) => self
                    .run(CleanupOptions::default(), Origin::Actor("schedule".into()))
                    .await
                    .map(|_| ()),
                None => self
                    .db
                    .run(|pool| async move { create_partitions(&pool).await })
                    .await
                    .map(|_| ()),
            };
            if let Err(error) = done {
                tracing::error!(%error, "a cleanup failed");
            }
        }
    }
}

async fn count_work(db: &Database, retention: Retention) -> Result<CleanupSummary, DbError> {
    let due = db
        .run(move |pool| async move { count_due(&pool, retention.tokens).await })
        .await?;
    let partitions = expired_partitions(db, retention).await?;
    Ok(CleanupSummary {
        expired: due.expired.unsigned_abs(),
        abandoned_mints: due.abandoned_mints.unsigned_abs(),
        purged_tokens: due.tokens.unsigned_abs(),
        purged_mints: due.mints.unsigned_abs(),
        purged_combinations: due.slots.unsigned_abs(),
        partitions_dropped: partitions.len() as u64,
        dry_run: true,
        complete: true,
        ..CleanupSummary::default()
    })
}

async fn clean_up(
    db: &Database,
    retention: Retention,
    run: CleanupOptions,
    ends: Instant,
    stop: &CancellationToken,
) -> Result<CleanupSummary, DbError> {
    let mut summary = CleanupSummary {
        complete: true,
        ..CleanupSummary::default()
    };
    summary.partitions_created = db
        .run(|pool| async move { create_partitions(&pool).await })
        .await?;
    let limit = run.batch_size;
    let mut batches = Batches {
        db,
        ends,
        stop,
        limit,
        is_complete: true,
    };
    summary.expired = batches
        .run(|pool| async move { expire_tokens(&pool, limit).await })
        .await?;
    summary.abandoned_mints = batches
        .run(|pool| async move { abandon_mints(&pool, limit).await })
        .await?;
    if let Some(age) = retention.tokens {
        summary.purged_tokens = batches
            .run(|pool| async move { purge_tokens(&pool, age, limit).await })
            .await?;
        summary.purged_mints = batches
            .run(|pool| async move { purge_mints(&pool, age, limit).await })
            .await?;
        summary.purged_combinations = batches
            .run(|pool| async move { purge_slots(&pool, age, limit).await })
            .await?;
    }
    for partition in expired_partitions(db, retention).await? {
        if batches.is_over() {
            break;
        }
        match db
            .run(|pool| async move { drop_partition(&pool, &partition).await })
            .await
        {
            Ok(()) => summary.partitions_dropped += 1,
            // A long reader is in the way, or another run has it: the next run takes it up.
            Err(error) => {
                tracing::warn!(%error, "an audit partition past retention could not be dropped yet");
                batches.is_complete = false;
            }
        }
    }
    summary.complete = batches.is_complete;
    batches.count_minutes().await;
    Ok(summary)
}

async fn expired_partitions(
    db: &Database,
    retention: Retention,
) -> Result<Vec<crate::db::partitions::ExpiredPartition>, DbError> {
    match retention.audit {
        None => Ok(Vec::new()),
        Some(age) => {
            db.run(move |pool| async move { list_expired_partitions(&pool, age).await })
                .await
        }
    }
}

/// The batches of one run.
struct Batches<'a> {
    db: &'a Database,
    ends: Instant,
    stop: &'a CancellationToken,
    limit: i64,
    is_complete: bool,
}

impl Batches<'_> {
    /// Repeats a batch until one is not full; returns how many rows there were in all.
    async fn run<F, Fut>(&mut self, batch: F) -> Result<u64, DbError>
    where
        F: Fn(crate::db::PgPool) -> Fut,
        Fut: Future<Output = Result<u64, DbError>> + Send + 'static,
    {
        let mut rows = 0;
        while !self.is_over() {
            let began = Instant::now();
            let done = self.db.run(&batch).await?;
            rows += done;
            if done < self.limit.unsigned_abs() {
                break;
            }
            self.pause_between_batches(began.elapsed()).await?;
        }
        Ok(rows)
    }

    /// Waits after a batch that took so long: twice as long where tokens were handed out meanwhile,
    /// so that handouts keep most of their rate, and an eighth of it otherwise.
    async fn pause_between_batches(&self, took: Duration) -> Result<(), DbError> {
        let is_busy = self
            .db
            .run(move |pool| async move { has_recent_handouts(&pool, took).await });
        let pause = if is_busy.await? { took * 2 } else { took / 8 };
        sleep(pause).await;
        Ok(())
    }

    /// Brings the figures of the overview up to date. They are for the eye alone: where that fails,
    /// or the time is over, the run is as good without.
    async fn count_minutes(&mut self) {
        while !self.is_over() {
            let began = Instant::now();
            match self
                .db
                .run(|pool| async move { roll_up_minutes(&pool).await })
                .await
            {
                Ok(ROLL_UP) => sleep(began.elapsed()).await,
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "the figures of the overview could not be counted");
                    return;
                }
            }
        }
    }

    fn is_over(&mut self) -> bool {
        let is_over = self.stop.is_cancelled() || Instant::now() >= self.ends;
        self.is_complete &= !is_over;
        is_over
    }
}
