//! Figures per minute for the console's overview. They make the cost of a page view independent of the number of
//! events.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::DbError;

/// The maximum number of minutes that one statement counts.
pub const ROLL_UP: u64 = 30;

/// The figures of one minute.
#[derive(Clone, Copy, Default, Debug)]
pub struct Minute {
    /// The start of the minute.
    pub minute: DateTime<Utc>,
    /// Handouts of tokens that were minted for the request.
    pub minted: i64,
    /// Handouts of tokens that were reused.
    pub reused: i64,
    /// Failed mints.
    pub failed: i64,
    /// Mints with an unknown outcome.
    pub unknown: i64,
    /// The median latency of the provider, in milliseconds.
    pub latency_p50: Option<i32>,
    /// The 95th percentile of the latency, in milliseconds.
    pub latency_p95: Option<i32>,
}

/// Counts the next minutes of the last day and stores them. Returns how many, at most [`ROLL_UP`].
///
/// The first run starts an hour ago. The newest counted minute ends before the horizon of the audit log, because later
/// events may still be committing. Also deletes minutes that are over a day old.
pub async fn roll_up_minutes(connection: &mut PgConnection) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "WITH now AS (SELECT c.now, c.now - interval '1 day' AS day_ago
                      FROM (SELECT date_bin('1 minute', clock_timestamp(), 'epoch') AS now) c),
              next AS (SELECT greatest(n.day_ago, coalesce(
                             (SELECT max(minute) FROM handout_minutes) + interval '1 minute',
                             n.now - interval '1 hour')) AS first,
                              date_bin('1 minute', greatest(h.complete_until, n.now - interval '1 hour'), 'epoch') AS until
                       FROM now n, audit_horizon h),
              dropped AS (DELETE FROM handout_minutes USING now n WHERE minute < n.day_ago)
         INSERT INTO handout_minutes (minute, minted, reused, failed, unknown, latency_p50, latency_p95)
         SELECT m.* FROM next n, count_handout_minutes(n.first, least(n.until, n.first + make_interval(mins => $1))) m
         ON CONFLICT DO NOTHING",
        ROLL_UP as i32,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Lists the minutes of the last day, oldest first.
///
/// Reads the stored minutes and counts the minutes since, up to an hour. If the cleanup did not run for longer, some
/// minutes are missing.
pub async fn list_minutes(connection: &mut PgConnection) -> Result<Vec<Minute>, DbError> {
    let minutes = sqlx::query_as!(
        Minute,
        r#"WITH now AS (SELECT date_bin('1 minute', clock_timestamp(), 'epoch') AS now),
                rest AS (SELECT greatest(n.now - interval '1 hour',
                                         (SELECT max(minute) FROM handout_minutes) + interval '1 minute') AS first,
                                n.now + interval '1 minute' AS until
                         FROM now n)
           SELECT minute AS "minute!", minted AS "minted!", reused AS "reused!", failed AS "failed!",
                  unknown AS "unknown!", latency_p50, latency_p95
           FROM (SELECT minute, minted, reused, failed, unknown, latency_p50, latency_p95
                 FROM handout_minutes h, now n WHERE h.minute > n.now - interval '1 day'
                 UNION ALL
                 SELECT m.* FROM rest r, count_handout_minutes(r.first, r.until) m) m
           ORDER BY minute"#
    )
    .fetch_all(connection)
    .await?;
    Ok(minutes)
}
