//! Clearing away what has ended, batch by batch. Each batch is a statement of its own, skips what
//! others hold, and may be cut off at any time.
//!
//! What is due is so at `now()`, which an index can be searched for; `clock_timestamp()`, which may
//! differ from row to row, would be compared to each.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{EventKind, Origin};

/// No mint is under way for longer: the longest `UPSTREAM_TIMEOUT` and the margin of its lease come
/// to far less.
const ABANDONED_AFTER: Duration = Duration::from_secs(300);
/// A slot stays at least so long after its last claim, whatever the retention: a late finish looks
/// at it.
const SLOT_GRACE: Duration = Duration::from_secs(86_400);

/// Marks tokens whose time is over, wipes their secrets and tells the audit; returns how many.
pub async fn expire_tokens(pool: &PgPool, limit: i64) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "WITH due AS (
             SELECT user_id, id FROM tokens WHERE is_valid AND ends_at <= now()
             ORDER BY ends_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), ended AS (
             UPDATE tokens t SET is_valid = false, ciphertext = ''
             FROM due d WHERE t.user_id = d.user_id AND t.id = d.id
             RETURNING t.*
         )
         INSERT INTO audit_events (id, occurred_at, kind, user_id, country, bank, access, token_id, fingerprint, detail)
         SELECT gen_random_uuid(), clock_timestamp(), $2, e.user_id, nullif(e.country, ''), nullif(e.bank, ''),
                e.access, e.id, e.fingerprint, jsonb_build_object('endedAt', e.ends_at)
         FROM ended e",
        limit,
        EventKind::TokenExpired.name(),
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Marks mints that nobody will finish as unknown and tells the audit; returns how many.
pub async fn abandon_mints(pool: &PgPool, limit: i64) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "WITH due AS (
             SELECT user_id, id FROM mints
             WHERE outcome = 'open' AND started_at <= now() - make_interval(secs => $3)
             ORDER BY started_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), abandoned AS (
             UPDATE mints m SET outcome = 'unknown', finished_at = clock_timestamp()
             FROM due d WHERE m.user_id = d.user_id AND m.id = d.id
             RETURNING m.*
         )
         INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, detail)
         SELECT gen_random_uuid(), a.finished_at, $2, a.user_id, a.client, a.request_id, a.source_ip,
                nullif(a.country, ''), nullif(a.bank, ''), a.access, a.id,
                jsonb_build_object('reason', 'nobody finished it', 'startedAt', a.started_at)
         FROM abandoned a",
        limit,
        EventKind::TokenMintUnknown.name(),
        ABANDONED_AFTER.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes records of tokens that ended longer ago than the retention; returns how many.
pub async fn purge_tokens(pool: &PgPool, retention: Duration, limit: i64) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "DELETE FROM tokens t USING (
             SELECT user_id, id FROM tokens
             WHERE NOT is_valid
               AND coalesce(invalidated_at, ends_at) <= now() - make_interval(secs => $1)
             ORDER BY coalesce(invalidated_at, ends_at) LIMIT $2 FOR UPDATE SKIP LOCKED
         ) d WHERE t.user_id = d.user_id AND t.id = d.id",
        retention.as_secs_f64(),
        limit,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes records of mints that ended longer ago than the retention; returns how many.
pub async fn purge_mints(pool: &PgPool, retention: Duration, limit: i64) -> Result<u64, DbError> {
    let done = sqlx::query!(
        "DELETE FROM mints m USING (
             SELECT user_id, id FROM mints
             WHERE outcome <> 'open' AND finished_at <= now() - make_interval(secs => $1)
             ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED
         ) d WHERE m.user_id = d.user_id AND m.id = d.id",
        retention.as_secs_f64(),
        limit,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes slots of combinations that nobody asked for, and whose token ended, longer ago than the
/// retention; returns how many.
pub async fn purge_slots(pool: &PgPool, retention: Duration, limit: i64) -> Result<u64, DbError> {
    let age = retention.max(SLOT_GRACE).as_secs_f64();
    let done = sqlx::query!(
        "DELETE FROM slots s USING (
             SELECT user_id, country, bank, access FROM slots
             WHERE claimed_at <= now() - make_interval(secs => $1)
               AND usable_until <= now() - make_interval(secs => $1)
               AND lease_until <= now() - make_interval(secs => $1)
             ORDER BY claimed_at LIMIT $2 FOR UPDATE SKIP LOCKED
         ) d WHERE s.user_id = d.user_id AND s.country = d.country AND s.bank = d.bank AND s.access = d.access",
        age,
        limit,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Whether a token on record was handed out within the time before now, by whichever replica.
pub async fn was_handing_out(pool: &PgPool, within: Duration) -> Result<bool, DbError> {
    // In order, so that it is the index by time that is looked at, from its end.
    let newest = sqlx::query_scalar!(
        "SELECT occurred_at FROM audit_events
         WHERE occurred_at > now() - make_interval(secs => $1) AND kind = $2
         ORDER BY occurred_at DESC, id DESC LIMIT 1",
        within.as_secs_f64(),
        EventKind::TokenReused.name(),
    );
    Ok(newest.fetch_optional(pool).await?.is_some())
}

/// What a run would find to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct DueCounts {
    /// Tokens that have expired and are still marked valid.
    pub expired: i64,
    /// When the oldest of them expired.
    pub oldest: Option<DateTime<Utc>>,
    /// Mints that nobody will finish.
    pub abandoned_mints: i64,
    /// Tokens past retention.
    pub tokens: i64,
    /// Mints past retention.
    pub mints: i64,
    /// Combinations past retention.
    pub slots: i64,
}

/// Counts what is due; nothing is past a retention of `None`.
pub async fn count_due(pool: &PgPool, retention: Option<Duration>) -> Result<DueCounts, DbError> {
    let retention = retention.map(|retention| retention.as_secs_f64());
    let age = retention.map(|seconds| seconds.max(SLOT_GRACE.as_secs_f64()));
    let due = sqlx::query_as!(
        DueCounts,
        r#"SELECT e.expired AS "expired!", e.oldest,
                  (SELECT count(*) FROM mints WHERE outcome = 'open'
                     AND started_at <= now() - make_interval(secs => $3)) AS "abandoned_mints!",
                  (SELECT count(*) FROM tokens WHERE NOT is_valid
                     AND coalesce(invalidated_at, ends_at) <= now() - make_interval(secs => $1)) AS "tokens!",
                  (SELECT count(*) FROM mints WHERE outcome <> 'open'
                     AND finished_at <= now() - make_interval(secs => $1)) AS "mints!",
                  (SELECT count(*) FROM slots WHERE claimed_at <= now() - make_interval(secs => $2)
                     AND usable_until <= now() - make_interval(secs => $2)
                     AND lease_until <= now() - make_interval(secs => $2)) AS "slots!"
           FROM (SELECT count(*) AS expired, min(ends_at) AS oldest
                 FROM tokens WHERE is_valid AND ends_at <= now()) e"#,
        retention,
        age,
        ABANDONED_AFTER.as_secs_f64(),
    )
    .fetch_one(pool)
    .await?;
    Ok(due)
}

/// How the last run of any replica went.
#[derive(Clone, Debug, Default)]
pub struct LastRun {
    /// When it ended.
    pub at: Option<DateTime<Utc>>,
    /// When one last did all there was to do.
    pub succeeded_at: Option<DateTime<Utc>>,
    /// Its summary.
    pub summary: Option<serde_json::Value>,
}

/// Reads it.
pub async fn find_last_run(pool: &PgPool) -> Result<LastRun, DbError> {
    let run = sqlx::query_as!(
        LastRun,
        "SELECT last_run_at AS at, last_success_at AS succeeded_at, last_summary AS summary
         FROM maintenance WHERE id = 1"
    )
    .fetch_optional(pool)
    .await?;
    Ok(run.unwrap_or_default())
}

/// Keeps the summary of a run, and tells the audit if it did something.
pub async fn record_run(
    pool: &PgPool,
    summary: &serde_json::Value,
    is_complete: bool,
    did_something: bool,
    origin: &Origin,
) -> Result<(), DbError> {
    let (caller, actor) = match origin {
        Origin::Request(caller) => (Some(caller), None),
        Origin::Actor(actor) => (None, Some(actor)),
    };
    let mut detail = summary.clone();
    if let Some(actor) = actor {
        detail["actor"] = actor.as_str().into();
    }
    sqlx::query!(
        "WITH run AS (
             UPDATE maintenance
             SET last_run_at = clock_timestamp(), last_summary = $1,
                 last_success_at = CASE WHEN $2 THEN clock_timestamp() ELSE last_success_at END
             WHERE id = 1
         )
         INSERT INTO audit_events (id, occurred_at, kind, client, request_id, source_ip, detail)
         SELECT $3, clock_timestamp(), $4, $5, $6, $7, $8 WHERE $9",
        summary,
        is_complete,
        Uuid::now_v7(),
        EventKind::CleanupRan.name(),
        caller.map(|caller| &*caller.client),
        caller.map(|caller| &*caller.request_id),
        caller.and_then(|caller| caller.source_ip.as_deref()),
        detail,
        did_something,
    )
    .execute(pool)
    .await?;
    Ok(())
}
