//! The statements of the cleanup. Each one handles a batch, skips rows that others lock, and may be killed at any time.
//! A batch that deletes rows records their number in the same transaction.
//!
//! They take the time of the pass as an argument, so that a clock that jumps during the pass deletes nothing. The counts
//! compare with `now()`, which is stable within a statement, so that an index applies.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use super::DbError;
use super::clock::{MAX_LEAD, service_time};
use super::distribution::change_unlocked;
use super::schema::find_newest_time;
use super::standalone_event::record_changes;
use crate::model::{EventKind, Origin};

/// The age after which an open mint is abandoned. It is far more than the longest `UPSTREAM_TIMEOUT` plus the margin of
/// the lease.
const ABANDONED_AFTER: Duration = Duration::from_secs(300);
/// The minimum time to keep a slot after its last claim, whatever the retention. A late finish of the mint reads the
/// slot.
const SLOT_GRACE: Duration = Duration::from_secs(86_400);

/// Returns the time of a pass: the earlier of the database's and the service's clock. Returns `None` if a clock is wrong,
/// so that nothing may be deleted.
///
/// The clocks must agree within a day, and the newest event may be at most a day ahead of both.
pub async fn find_pass_time(
    connection: &mut PgConnection,
) -> Result<Option<DateTime<Utc>>, DbError> {
    let (database_time, newest_event) = find_newest_time(connection).await?;
    let service_time = service_time();
    let now = database_time.min(service_time);
    let agree = database_time.max(service_time).max(newest_event) - now <= MAX_LEAD;
    if !agree {
        tracing::error!(
            %database_time, %service_time, %newest_event,
            "the cleanup deletes nothing: the clocks or the newest event differ by more than a day"
        );
    }
    Ok(agree.then_some(now))
}

/// Marks expired tokens, empties their ciphertexts and inserts an event for each. Returns how many.
pub async fn expire_tokens(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<u64, DbError> {
    let done = change_unlocked!(
        connection,
        query,
        execute,
        "WITH due AS (
             SELECT user_id, id FROM tokens WHERE is_valid AND ends_at <= $3
             ORDER BY ends_at LIMIT $1",
        "), expired AS (
             UPDATE tokens t SET is_valid = false, ciphertext = ''
             FROM due d WHERE t.user_id = d.user_id AND t.id = d.id AND t.is_valid
             RETURNING t.*
         )
         INSERT INTO audit_events (kind, user_id, country, bank, access, token_id, fingerprint, detail)
         SELECT $2, e.user_id, nullif(e.country, ''), nullif(e.bank, ''),
                e.access, e.id, e.fingerprint, jsonb_build_object('endedAt', e.ends_at)
         FROM expired e",
        limit,
        EventKind::TokenExpired.name(),
        now,
    );
    Ok(done.rows_affected())
}

/// Closes abandoned mints and inserts an event for each. Returns how many.
///
/// A mint that started no call failed. The outcome of the others is unknown.
pub async fn abandon_mints(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<u64, DbError> {
    let done = change_unlocked!(
        connection,
        query,
        execute,
        "WITH due AS (
             SELECT user_id, id FROM mints
             WHERE outcome = 'open' AND started_at <= $3
             ORDER BY started_at LIMIT $1",
        "), abandoned AS (
             UPDATE mints m
             SET outcome = CASE WHEN m.started_attempts = 0 THEN 'failed' ELSE 'unknown' END,
                 attempts = coalesce(m.started_attempts, 0), finished_at = greatest(statement_timestamp(), m.started_at)
             FROM due d WHERE m.user_id = d.user_id AND m.id = d.id AND m.outcome = 'open'
             RETURNING m.*
         )
         INSERT INTO audit_events (kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, detail)
         SELECT CASE a.outcome WHEN 'failed' THEN $4 ELSE $2 END,
                a.user_id, a.client, a.request_id, a.source_ip,
                nullif(a.country, ''), nullif(a.bank, ''), a.access, a.id,
                jsonb_strip_nulls(jsonb_build_object(
                    'reason', 'no replica finished it', 'startedAt', a.started_at, 'attempts', a.started_attempts,
                    'possiblyMinted', CASE a.started_attempts WHEN 0 THEN 0 END))
         FROM abandoned a",
        limit,
        EventKind::TokenMintUnknown.name(),
        now - ABANDONED_AFTER,
        EventKind::TokenMintFailed.name(),
    );
    Ok(done.rows_affected())
}

/// Deletes tokens that were invalidated or expired before the retention, with their mints. Returns the numbers of both.
pub async fn purge_tokens(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    retention: Duration,
    limit: i64,
    origin: &Origin,
) -> Result<(u64, u64), DbError> {
    let mut tx = connection.begin().await?;
    // The mints are found by the deleted tokens, which orders the locks.
    let deleted = change_unlocked!(
        &mut *tx,
        query_scalar,
        fetch_one,
        "WITH due AS (
             SELECT user_id, id FROM tokens
             WHERE NOT is_valid AND coalesce(invalidated_at, ends_at) <= $1
             ORDER BY coalesce(invalidated_at, ends_at) LIMIT $2",
        r#"), token AS (
               DELETE FROM tokens t USING due d WHERE t.user_id = d.user_id AND t.id = d.id
               RETURNING t.user_id, t.id
           ), mint AS (
               DELETE FROM mints m USING token t WHERE m.user_id = t.user_id AND m.id = t.id RETURNING m.id
           )
           SELECT ARRAY[(SELECT count(*) FROM token), (SELECT count(*) FROM mint)] AS "counts!""#,
        now - retention,
        limit,
    );
    let (tokens, mints) = (deleted[0].unsigned_abs(), deleted[1].unsigned_abs());
    if tokens > 0 {
        let detail = json!({"purgedTokens": tokens, "purgedMints": mints});
        record_changes(&mut *tx, origin, detail).await?;
    }
    tx.commit().await?;
    Ok((tokens, mints))
}

/// Deletes mints without a token that finished before the retention. Returns how many.
pub async fn purge_mints(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    retention: Duration,
    limit: i64,
    origin: &Origin,
) -> Result<u64, DbError> {
    let mut tx = connection.begin().await?;
    let deleted = change_unlocked!(
        &mut *tx,
        query,
        execute,
        "DELETE FROM mints m USING (
             SELECT user_id, id FROM mints
             WHERE outcome IN ('failed', 'unknown') AND finished_at <= $1
             ORDER BY finished_at LIMIT $2",
        ") d WHERE m.user_id = d.user_id AND m.id = d.id AND m.outcome IN ('failed', 'unknown')",
        now - retention,
        limit,
    )
    .rows_affected();
    commit_deletions(tx, origin, "purgedMints", deleted).await
}

/// Deletes slots without a valid token whose last claim, lease and current token all ended before the retention.
/// Returns how many.
pub async fn purge_slots(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    retention: Duration,
    limit: i64,
    origin: &Origin,
) -> Result<u64, DbError> {
    let mut tx = connection.begin().await?;
    let deleted = change_unlocked!(
        &mut *tx,
        query,
        execute,
        "DELETE FROM slots s USING (
             SELECT user_id, country, bank, access FROM slots s
             WHERE claimed_at <= $1 AND usable_until <= $1 AND lease_until <= $1
               AND NOT EXISTS (SELECT FROM tokens t WHERE t.user_id = s.user_id AND t.country = s.country
                                 AND t.bank = s.bank AND t.access = s.access AND t.is_valid OFFSET 0)
             ORDER BY claimed_at LIMIT $2",
        ") d WHERE s.user_id = d.user_id AND s.country = d.country AND s.bank = d.bank AND s.access = d.access
               AND s.claimed_at <= $1 AND s.usable_until <= $1 AND s.lease_until <= $1",
        now - retention.max(SLOT_GRACE),
        limit,
    )
    .rows_affected();
    commit_deletions(tx, origin, "purgedCombinations", deleted).await
}

/// Commits deletions with their event. Returns their number.
async fn commit_deletions(
    mut tx: Transaction<'_, Postgres>,
    origin: &Origin,
    name: &str,
    deleted: u64,
) -> Result<u64, DbError> {
    if deleted > 0 {
        record_changes(&mut *tx, origin, json!({ name: deleted })).await?;
    }
    tx.commit().await?;
    Ok(deleted)
}

/// Returns true if any replica reused a token within the time before now.
pub async fn has_recent_handouts(
    connection: &mut PgConnection,
    within: Duration,
) -> Result<bool, DbError> {
    // The order makes the planner read the end of the index by time.
    let newest = sqlx::query_scalar!(
        "SELECT occurred_at FROM audit_events
         WHERE occurred_at > now() - make_interval(secs => $1) AND kind = $2
         ORDER BY occurred_at DESC, id DESC LIMIT 1",
        within.as_secs_f64(),
        EventKind::TokenReused.name(),
    );
    Ok(newest.fetch_optional(connection).await?.is_some())
}

/// The amount of work that is due.
#[derive(Clone, Copy, Debug, Default)]
pub struct DueCounts {
    /// Expired tokens that are still marked valid.
    pub expired: i64,
    /// The time at which the oldest of them expired.
    pub oldest: Option<DateTime<Utc>>,
    /// Open mints that are abandoned.
    pub abandoned_mints: i64,
    /// Tokens past retention.
    pub tokens: i64,
    /// Mints without a token past retention, and the mints of tokens past retention.
    pub mints: i64,
    /// Slots past retention.
    pub slots: i64,
}

/// Counts the work that is due. A retention of `None` keeps everything.
pub async fn count_due(
    connection: &mut PgConnection,
    retention: Option<Duration>,
) -> Result<DueCounts, DbError> {
    let retention = retention.map(|retention| retention.as_secs_f64());
    let age = retention.map(|seconds| seconds.max(SLOT_GRACE.as_secs_f64()));
    let due = sqlx::query_as!(
        DueCounts,
        r#"SELECT e.expired AS "expired!", e.oldest,
                  (SELECT count(*) FROM mints WHERE outcome = 'open'
                     AND started_at <= now() - make_interval(secs => $3)) AS "abandoned_mints!",
                  (SELECT count(*) FROM tokens WHERE NOT is_valid
                     AND coalesce(invalidated_at, ends_at) <= now() - make_interval(secs => $1)) AS "tokens!",
                  -- OFFSET 0 makes the planner look up the mint of each token instead of reading all mints.
                  (SELECT count(*) FROM tokens t WHERE NOT is_valid
                     AND coalesce(invalidated_at, ends_at) <= now() - make_interval(secs => $1)
                     AND EXISTS (SELECT FROM mints m WHERE m.user_id = t.user_id AND m.id = t.id OFFSET 0))
                  + (SELECT count(*) FROM mints WHERE outcome IN ('failed', 'unknown')
                       AND finished_at <= now() - make_interval(secs => $1)) AS "mints!",
                  (SELECT count(*) FROM slots s WHERE claimed_at <= now() - make_interval(secs => $2)
                     AND usable_until <= now() - make_interval(secs => $2)
                     AND lease_until <= now() - make_interval(secs => $2)
                     AND NOT EXISTS (SELECT FROM tokens t WHERE t.user_id = s.user_id AND t.country = s.country
                                       AND t.bank = s.bank AND t.access = s.access AND t.is_valid OFFSET 0)) AS "slots!"
           FROM (SELECT count(*) AS expired, min(ends_at) AS oldest
                 FROM tokens WHERE is_valid AND ends_at <= now()) e"#,
        retention,
        age,
        ABANDONED_AFTER.as_secs_f64(),
    )
    .fetch_one(connection)
    .await?;
    Ok(due)
}

/// The result of the last cleanup run of any replica.
#[derive(Clone, Debug, Default)]
pub struct LastRun {
    /// The time at which the run ended.
    pub at: Option<DateTime<Utc>>,
    /// The end of the last run that completed all due work.
    pub succeeded_at: Option<DateTime<Utc>>,
    /// The summary of the run, as JSON.
    pub summary: Option<Value>,
}

/// Finds the result of the last run.
pub async fn find_last_run(connection: &mut PgConnection) -> Result<LastRun, DbError> {
    let run = sqlx::query_as!(
        LastRun,
        "SELECT last_run_at AS at, last_success_at AS succeeded_at, last_summary AS summary
         FROM maintenance WHERE id = 1"
    )
    .fetch_optional(connection)
    .await?;
    Ok(run.unwrap_or_default())
}

/// Stores the summary of a run. Inserts a `cleanup.ran` event of its other changes, which are no deletions.
pub async fn record_run(
    connection: &mut PgConnection,
    summary: &Value,
    is_complete: bool,
    other_changes: Option<Value>,
    origin: &Origin,
) -> Result<(), DbError> {
    if let Some(changes) = other_changes {
        record_changes(&mut *connection, origin, changes).await?;
    }
    sqlx::query!(
        "UPDATE maintenance
         SET last_run_at = now.now, last_summary = $1,
             last_success_at = CASE WHEN $2 THEN now.now ELSE last_success_at END
         FROM (SELECT clock_timestamp() AS now) now
         WHERE id = 1",
        summary,
        is_complete,
    )
    .execute(connection)
    .await?;
    Ok(())
}
