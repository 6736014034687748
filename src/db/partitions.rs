//! The months of the audit trail: made ahead, dropped when their retention is over.
//!
//! Making attaches a finished table, dropping detaches concurrently: neither makes a handout wait.
//! `PARTITION OF`, `DROP` and a plain `DETACH` would, behind any long reader.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use super::DbError;

/// Months of partitions that there must be beyond the current one.
pub const PARTITIONS_AHEAD: i32 = 3;

/// Months after this one that have a partition without a gap, at most [`PARTITIONS_AHEAD`]; -1 where
/// this one has none, so that nothing can be recorded.
pub async fn count_ahead(connection: &mut PgConnection) -> Result<i32, DbError> {
    let ahead = sqlx::query_scalar!(
        r#"SELECT coalesce(min(ahead), $1 + 1) - 1 AS "ahead!" FROM generate_series(0, $1) AS ahead
           WHERE NOT EXISTS (
               SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'audit_events'::regclass AND c.relname = 'audit_events_'
                   || to_char((now() AT TIME ZONE 'UTC') + make_interval(months => ahead), 'YYYY_MM'))"#,
        PARTITIONS_AHEAD
    );
    Ok(ahead.fetch_one(connection).await?)
}

/// Makes the partitions of this month and the next [`PARTITIONS_AHEAD`]; returns how many were
/// missing. Does nothing while another does it.
pub async fn create_partitions(pool: &PgPool) -> Result<u64, DbError> {
    let mut connection = pool.acquire().await?;
    if count_ahead(&mut connection).await? == PARTITIONS_AHEAD {
        return Ok(0);
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "callers run this in a task that nobody cancels, or exit if startup fails"
    )]
    let mut tx = connection.begin().await?;
    let is_ours = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock(hashtext('token-vendor audit partitions')) AS "is_ours!""#
    )
    .fetch_one(&mut *tx)
    .await?;
    if !is_ours {
        return Ok(0);
    }
    let created = sqlx::query_scalar!(
        r#"SELECT count(*) FILTER (WHERE create_audit_partition(now() + make_interval(months => ahead))) AS "created!"
           FROM generate_series(0, $1) AS ahead"#,
        PARTITIONS_AHEAD
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(created.unsigned_abs())
}

/// A partition whose last event is past retention.
#[derive(Debug)]
pub struct ExpiredPartition {
    name: String,
    is_attached: bool,
    /// A detach of it was cut off.
    is_half_detached: bool,
}

/// The partitions whose month ended longer ago than the retention, oldest first, those that were
/// detached and not dropped among them.
pub async fn list_expired_partitions(
    pool: &PgPool,
    retention: Duration,
) -> Result<Vec<ExpiredPartition>, DbError> {
    let partitions = sqlx::query_as!(
        ExpiredPartition,
        r#"SELECT c.relname::text AS "name!", i.inhrelid IS NOT NULL AS "is_attached!",
                  coalesce(i.inhdetachpending, false) AS "is_half_detached!"
           FROM pg_class c
           LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'audit_events'::regclass
           WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_events'::regclass)
             AND c.relname ~ '^audit_events_\d{4}_\d{2}$'
             AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC'
                 <= now() - make_interval(secs => $1)
           ORDER BY c.relname"#,
        retention.as_secs_f64(),
    )
    .fetch_all(pool)
    .await?;
    Ok(partitions)
}

/// Drops a partition for good. Cut off at any point, it is taken up where it was left.
pub async fn drop_partition(pool: &PgPool, partition: &ExpiredPartition) -> Result<(), DbError> {
    let mut connection = pool.acquire().await?;
    let name = &partition.name;
    // The name was read from the catalogue and is of digits but for its fixed beginning.
    let statement = match partition {
        ExpiredPartition {
            is_half_detached: true,
            ..
        } => Some(format!(
            "ALTER TABLE audit_events DETACH PARTITION {name} FINALIZE"
        )),
        ExpiredPartition {
            is_attached: true, ..
        } => Some(format!(
            "ALTER TABLE audit_events DETACH PARTITION {name} CONCURRENTLY"
        )),
        _ => None,
    };
    if let Some(statement) = statement {
        connection.execute(AssertSqlSafe(statement)).await?;
    }
    connection
        .execute(AssertSqlSafe(format!("DROP TABLE {name}")))
        .await?;
    Ok(())
}
