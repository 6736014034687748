//! Ends of months, and partitions of the audit log that are missing.

use std::time::Duration;

use chrono::{DateTime, Datelike, Months, NaiveTime, Utc};
use sqlx::{AssertSqlSafe, Executor};

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn month_ends_without_partitions_break_no_promise() {
    pass_month_ends(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn month_ends_without_partitions_for_a_minute_break_no_promise() {
    pass_month_ends(LONG).await;
}

async fn pass_month_ends(duration: Duration) {
    let mut attack = Attack::new("month ends", duration).await;
    // The clock of a lease and of the database jumps by a month.
    attack.rules.min_takeover = Duration::ZERO;
    attack.world.shift_clock("0").await;
    let interval = [("CLEANUP_INTERVAL", "1s")];
    let replicas = attack.start_replicas(2, &interval).await;
    let clients = attack.start_clients(&Load::default());
    let (mut ends, mut dropped) = (0, 0);
    while attack.needs(2, ends) {
        ends += 1;
        let end = month_start(ends);
        // The first month has no partition, so that there is at least one such month.
        let is_missing = ends == 1 || attack.rng.u8(0..3) > 0;
        if is_missing {
            dropped += drop_partitions_from(&attack, end).await;
        }
        // The month ends within half a second.
        let before = attack.rng.i64(0..500);
        let shift = (end - Utc::now()).num_milliseconds() - before;
        attack.world.shift_clock(&format!("{shift} ms")).await;
        let events = format!(
            "SELECT count(*) FROM audit_events WHERE kind = 'token.reused' AND occurred_at >= '{}'",
            end.to_rfc3339()
        );
        eventually("handouts in the new month", async || {
            let events = sqlx::query_scalar(AssertSqlSafe(events.clone()));
            let count: i64 = events.fetch_one(&attack.world.db).await.unwrap();
            count > 20
        })
        .await;
    }
    assert!(
        ends > 1 && dropped > 0,
        "{ends} month ends, {dropped} partitions"
    );
    let promises = [
        Promise::I1Recorded,
        Promise::I2MintRecorded,
        Promise::I4NotExpired,
        Promise::I5NotInvalidated,
        Promise::I7ClearErrors,
        Promise::Consistent,
    ];
    let faults = format!("{ends} month ends, {dropped} dropped partitions");
    attack.finish(clients, replicas, faults, &promises).await;
}

/// Returns the start of the month that is this number of months after the current one.
fn month_start(months: usize) -> DateTime<Utc> {
    let first = Utc::now().date_naive().with_day(1).expect("a first day");
    (first + Months::new(u32::try_from(months).unwrap()))
        .and_time(NaiveTime::MIN)
        .and_utc()
}

/// Drops the partitions of this month and the later ones, which are empty. Returns their number.
async fn drop_partitions_from(attack: &Attack, month: DateTime<Utc>) -> usize {
    let first = format!("audit_events_{}", month.format("%Y_%m"));
    let partitions = "SELECT inhrelid::regclass::text FROM pg_inherits
                      WHERE inhparent = 'audit_events'::regclass AND inhrelid::regclass::text >= $1";
    let partitions: Vec<String> = sqlx::query_scalar(partitions)
        .bind(first)
        .fetch_all(&attack.world.db)
        .await
        .unwrap();
    for partition in &partitions {
        // A deadlock with a statement of the load ends one of the two.
        eventually("the partition is dropped", async || {
            let statement = AssertSqlSafe(format!("DROP TABLE IF EXISTS {partition}"));
            attack.world.db.execute(statement).await.is_ok()
        })
        .await;
    }
    partitions.len()
}
