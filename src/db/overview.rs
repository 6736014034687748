//! The figures of the overview: a row a minute, made from the trail, so that a look at a day costs
//! the same whatever happened in it.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::DbError;

/// Minutes that are counted in one statement.
pub const ROLL_UP: u64 = 30;

/// What happened in a minute.
#[derive(Clone, Copy, Default, Debug)]
pub struct Minute {
    /// Its beginning.
    pub minute: DateTime<Utc>,
    /// Tokens handed out that were minted for their request.
    pub minted: i64,
    /// Tokens handed out that were on record.
    pub reused: i64,
    /// Mints that failed.
    pub failed: i64,
    /// Mints whose outcome nobody knows.
    pub unknown: i64,
    /// The median of the upstream's latency, in milliseconds.
    pub latency_p50: Option<i32>,
    /// Its 95th percentile.
    pub latency_p95: Option<i32>,
}

/// Counts the next minutes of the last day that are not counted yet, at first those of an hour, up to
/// a minute ago, for later events may still be committing; returns how many, at most [`ROLL_UP`].
pub async fn roll_up_minutes(pool: &PgPool) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "WITH now AS (SELECT date_bin('1 minute', clock_timestamp(), 'epoch') AS now),
              next AS (SELECT greatest(n.now - interval '1 day', coalesce(
                             (SELECT max(minute) FROM handout_minutes) + interval '1 minute',
                             n.now - interval '1 hour')) AS first,
                              n.now - interval '1 minute' AS until
                       FROM now n),
              dropped AS (DELETE FROM handout_minutes USING now n WHERE minute < n.now - interval '1 day')
         INSERT INTO handout_minutes
         SELECT m.* FROM next n, count_minutes(n.first, least(n.until, n.first + make_interval(mins => $1))) m
         ON CONFLICT DO NOTHING",
        ROLL_UP as i32,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// The minutes of the last day, oldest first: those that are counted, and those since, which are
/// counted now, up to an hour of them. Where the cleanup has not run for longer some are missing.
pub async fn list_minutes(pool: &PgPool) -> Result<Vec<Minute>, DbError> {
    let minutes = sqlx::query_as!(
        Minute,
        r#"WITH now AS (SELECT date_bin('1 minute', clock_timestamp(), 'epoch') AS now),
                rest AS (SELECT greatest(n.now - interval '1 hour',
                                         (SELECT max(minute) FROM handout_minutes) + interval '1 minute') AS first,
                                n.now + interval '1 minute' AS until
                         FROM now n)
           SELECT minute AS "minute!", minted AS "minted!", reused AS "reused!", failed AS "failed!",
                  unknown AS "unknown!", latency_p50, latency_p95
           FROM (SELECT h.* FROM handout_minutes h, now n WHERE h.minute > n.now - interval '1 day'
                 UNION ALL
                 SELECT m.* FROM rest r, count_minutes(r.first, r.until) m) m
           ORDER BY minute"#
    )
    .fetch_all(pool)
    .await?;
    Ok(minutes)
}
