//! The monthly partitions of the audit log. They are created ahead and dropped after their retention.
//!
//! Functions of the owner do both, because the role of the service owns nothing. They check their arguments
//! (`migrations/20261127000003_two_roles.sql`). A creation makes no handout wait. A drop makes handouts wait for at most
//! 100 ms, and only while a transaction that reads other months is open (`docs/decisions/0017`).

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::DbError;
use super::audit_log::find_log;
use super::distribution::is_distributed;
use super::standalone_event::record_changes;
use crate::model::Origin;

/// The number of months after the current one that must have a partition.
pub const PARTITIONS_AHEAD: i32 = 3;

/// Counts the months after this one that have a partition, up to the first gap and at most [`PARTITIONS_AHEAD`].
/// This month is that of an event that happens now, which the horizon bounds if the database clock is behind.
///
/// Returns -1 if this month has none, so that no event can be recorded.
pub async fn count_ahead(connection: &mut PgConnection) -> Result<i32, DbError> {
    let ahead = sqlx::query_scalar!(
        r#"SELECT coalesce(min(ahead), $1 + 1) - 1 AS "ahead!"
           FROM (SELECT greatest(now(), complete_until, noted_at) AT TIME ZONE 'UTC' AS now FROM audit_horizon) c,
                generate_series(0, $1) AS ahead
           WHERE NOT EXISTS (
               SELECT FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
               WHERE i.inhparent = 'audit_events'::regclass
                 AND p.relname = 'audit_events_' || to_char(c.now + make_interval(months => ahead), 'YYYY_MM'))"#,
        PARTITIONS_AHEAD
    );
    Ok(ahead.fetch_one(connection).await?)
}

/// Creates the missing partitions of this month and the next [`PARTITIONS_AHEAD`], and returns how many it created.
/// Does nothing while another replica does so.
pub async fn create_partitions(connection: &mut PgConnection) -> Result<u64, DbError> {
    if count_ahead(connection).await? == PARTITIONS_AHEAD {
        return Ok(0);
    }
    let mut tx = connection.begin().await?;
    let has_lock = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock(hashtext('token-vendor audit partitions')) AS "has_lock!""#
    )
    .fetch_one(&mut *tx)
    .await?;
    if !has_lock {
        return Ok(0);
    }
    let created = sqlx::query_scalar!(
        r#"SELECT count(*) FILTER (
                      WHERE create_audit_partition(greatest(now(), complete_until, noted_at) + make_interval(months => ahead))
                  ) AS "created!"
           FROM audit_horizon, generate_series(0, $1) AS ahead"#,
        PARTITIONS_AHEAD
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(created.unsigned_abs())
}

/// Lists the names of the partitions whose month ended before the retention, oldest first. Leaves out those that are not
/// sealed, unless nothing ever was, or Citus distributes the tables.
///
/// Includes tables with a comment that earlier versions set before they detached a month to drop it. All other detached
/// tables stay: an auditor may have restored a month, or detached one to keep it.
pub async fn list_expired_partitions(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    retention: Duration,
) -> Result<Vec<String>, DbError> {
    let waits = !is_distributed(connection).await?;
    let partitions = sqlx::query_scalar!(
        r#"SELECT c.relname::text AS "name!"
           FROM pg_class c
           LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'audit_events'::regclass
           WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_events'::regclass)
             AND c.relname ~ '^audit_events_\d{4}_\d{2}$'
             AND (i.inhrelid IS NOT NULL OR obj_description(c.oid, 'pg_class')
                     = 'token-vendor: the cleanup detached this month to drop it')
             AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC'
                 <= least($1, (
                     SELECT e.occurred_at FROM audit_events e, audit_log l
                     WHERE $2 AND l.size > 0 AND e.occurred_at >= l.last_at AND (e.occurred_at, e.id) > (l.last_at, l.last_id)
                     ORDER BY e.occurred_at LIMIT 1))
           ORDER BY c.relname"#,
        now - retention,
        waits,
    )
    .fetch_all(connection)
    .await?;
    Ok(partitions)
}

/// Drops a partition, and records that. Returns false if it was dropped before.
pub async fn drop_partition(
    connection: &mut PgConnection,
    name: &str,
    origin: &Origin,
) -> Result<bool, DbError> {
    let sealed_events = count_sealed_events(connection, name).await?;
    let mut tx = connection.begin().await?;
    let is_dropped =
        sqlx::query_scalar!(r#"SELECT drop_audit_partition($1) AS "is_dropped!""#, name)
            .fetch_one(&mut *tx)
            .await?;
    if is_dropped {
        let mut detail = json!({"partitionsDropped": 1, "partition": name});
        if let Some(sealed_events) = sealed_events {
            detail["sealedEvents"] = sealed_events.into();
        }
        record_changes(&mut *tx, origin, detail).await?;
    }
    tx.commit().await?;
    Ok(is_dropped)
}

/// Returns the number of entries of the sealed log up to the end of a partition. `None` if nothing is sealed.
///
/// Verification accepts that the events of these entries are missing.
async fn count_sealed_events(
    connection: &mut PgConnection,
    partition: &str,
) -> Result<Option<i64>, DbError> {
    // The tile that the last event of the partition is in, and the events of the partition in it.
    let tile = sqlx::query!(
        r#"SELECT t.n, t.first_at, t.first_id, m.ends_at AS "ends_at!"
           FROM audit_tiles t,
                (SELECT (to_date(right($1, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' AS ends_at) m
           WHERE t.level = 0 AND t.first_at < m.ends_at
           ORDER BY t.first_at DESC, t.first_id DESC LIMIT 1"#,
        partition,
    );
    let Some(tile) = tile.fetch_optional(&mut *connection).await? else {
        return Ok(None);
    };
    let count = sqlx::query_scalar!(
        r#"SELECT $1 + count(*) AS "count!" FROM audit_events
           WHERE (occurred_at, id) >= ($2, $3) AND occurred_at >= $2 AND occurred_at < $4"#,
        tile.n * 256,
        tile.first_at,
        tile.first_id,
        tile.ends_at,
    );
    let count = count.fetch_one(&mut *connection).await?;
    // On Citus, later events are not sealed.
    Ok(Some(count.min(find_log(connection).await?.size)))
}
