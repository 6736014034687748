//! The horizon of the audit log: the time up to which the log is complete.
//!
//! A transaction can commit long after it wrote its event, for example when it waits for a synchronous standby. So the
//! horizon follows from the transactions that are in progress (`docs/decisions/0015`).

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use super::DbError;
use super::distribution::is_distributed;

/// Moves the horizon to 5 s before the time noted by an earlier call, once all transactions that wrote before that
/// time have ended. Then notes the current time: the earlier of the database's clock and `service_time`.
///
/// A transaction takes its id before it reads the clock that dates its events. A handout may be 4 s older
/// ([`insert_handouts`](super::handouts)).
///
/// A horizon over a day ahead of both clocks is wrong, and moves back to the current time.
///
/// The change is not durable, because an earlier horizon is also true. It must not wait for a standby.
///
/// On Citus, the horizon stays: each node counts its own transaction ids.
pub async fn advance_horizon(
    connection: &mut PgConnection,
    service_time: DateTime<Utc>,
) -> Result<(), DbError> {
    if is_distributed(connection).await? {
        return Ok(());
    }
    // `statement_timestamp()` is the time before the snapshot, so later transactions take their ids after it. After a
    // dump is restored, `next_xid` can lie beyond all transaction ids, and the transactions before it are gone.
    sqlx::query!(
        "WITH seen AS (
             SELECT least(statement_timestamp(), $1) AS now, pg_snapshot_xmin(pg_current_snapshot()) AS oldest,
                    pg_snapshot_xmax(pg_current_snapshot()) AS next,
                    set_config('synchronous_commit', 'off', true) AS is_set
         )
         UPDATE audit_horizon h
         SET complete_until = CASE
                 WHEN h.complete_until > greatest(statement_timestamp(), $1) + interval '1 day' THEN s.now - interval '5 s'
                 ELSE greatest(h.complete_until, h.noted_at - interval '5 s')
             END,
             next_xid = s.next, noted_at = s.now
         FROM seen s
         WHERE s.is_set = 'off' AND (s.oldest >= h.next_xid OR h.next_xid > s.next)",
        service_time,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the time before which no event can still appear to later statements of this connection.
pub async fn find_horizon(connection: &mut PgConnection) -> Result<DateTime<Utc>, DbError> {
    let horizon = sqlx::query_scalar!("SELECT complete_until FROM audit_horizon");
    Ok(horizon.fetch_one(connection).await?)
}

/// Time between two reads of [`wait_for_horizon`].
const POLL: Duration = Duration::from_millis(250);

/// Reads the horizon with `find` until it reaches `required`, and returns it.
///
/// # Errors
/// Returns [`DbError::Incomplete`] after `max_wait`.
pub async fn wait_for_horizon(
    required: DateTime<Utc>,
    max_wait: Duration,
    mut find: impl AsyncFnMut() -> Result<DateTime<Utc>, DbError>,
) -> Result<DateTime<Utc>, DbError> {
    let deadline = Instant::now() + max_wait;
    loop {
        let horizon = find().await?;
        if horizon >= required {
            return Ok(horizon);
        }
        if Instant::now() >= deadline {
            return Err(DbError::Incomplete(required));
        }
        sleep(POLL).await;
    }
}
