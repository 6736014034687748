//! Tables that Citus distributes over several servers (`deploy/citus/distribute.sql`, `docs/decisions/0018`).

use sqlx::{FromRow, PgConnection};

use super::DbError;

/// Returns true if Citus distributes the tables. Takes about 0.1 ms, so no handout and no mint asks.
pub async fn is_distributed(connection: &mut PgConnection) -> Result<bool, DbError> {
    let has_citus = sqlx::query_scalar("SELECT to_regclass('pg_dist_partition') IS NOT NULL");
    if !has_citus.fetch_one(&mut *connection).await? {
        return Ok(false);
    }
    let is_distributed = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'tokens'::regclass)",
    );
    Ok(is_distributed.fetch_one(connection).await?)
}

/// Returns [`DbError::Distributed`] if Citus distributes the tables.
pub async fn reject_distributed(connection: &mut PgConnection) -> Result<(), DbError> {
    match is_distributed(connection).await? {
        true => Err(DbError::Distributed),
        false => Ok(()),
    }
}

/// The setup of a distributed database, for `check --online`.
#[derive(Clone, Copy, Debug, FromRow)]
pub struct Distribution {
    /// The number of shards of each distributed table.
    pub shards: i64,
    /// The number of servers that have a shard.
    pub workers: i64,
    /// The number of shards of the audit log without the trigger that makes it append-only.
    pub unguarded_shards: i64,
    /// The longest time until a server ends the transactions that a crash left prepared, in seconds.
    pub recovery_seconds: i64,
}

/// Reads the setup of a distributed database. Returns `None` if Citus does not distribute the tables.
pub async fn find_distribution(
    connection: &mut PgConnection,
) -> Result<Option<Distribution>, DbError> {
    if !is_distributed(connection).await? {
        return Ok(None);
    }
    let distribution = sqlx::query_as(
        "SELECT count(DISTINCT shardid) AS shards, count(DISTINCT nodeport || nodename) AS workers,
                (SELECT count(*) FROM run_command_on_shards('audit_events', $$
                     SELECT count(*) FROM pg_trigger
                     WHERE tgrelid = '%s'::regclass AND tgname LIKE 'audit_events_append_only%%' AND tgenabled <> 'D' $$)
                 WHERE result IS DISTINCT FROM '1') AS unguarded_shards,
                (SELECT max(result::int8) / 1000 FROM run_command_on_all_nodes(
                     $$SELECT setting FROM pg_settings WHERE name = 'citus.recover_2pc_interval'$$)) AS recovery_seconds
         FROM citus_shards WHERE table_name = 'tokens'::regclass",
    );
    Ok(Some(distribution.fetch_one(connection).await?))
}

/// Runs a change of the rows that a query finds, in two parts. Skips rows that others lock.
///
/// Citus has no `FOR UPDATE` over several shards. There, the change waits for the others, so its conditions must not
/// rely on what the query found.
macro_rules! change_unlocked {
    ($connection:expr, $query:ident, $run:ident, $find:literal, $change:literal, $($value:expr),+ $(,)?) => {
        if crate::db::distribution::is_distributed(&mut *$connection).await? {
            sqlx::$query!($find + $change, $($value),+).$run(&mut *$connection).await?
        } else {
            sqlx::$query!($find + " FOR UPDATE SKIP LOCKED " + $change, $($value),+).$run(&mut *$connection).await?
        }
    };
}
pub(super) use change_unlocked;
