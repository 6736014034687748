//! The replicas of the service. Each writes its own row, so that the console can show all of them.

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::DbError;

/// The state of a replica when it was last seen.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The id, which its mint records name as their holder.
    pub id: Uuid,
    /// The name of its host.
    pub host: String,
    /// The version of the program.
    pub version: String,
    /// The time of its first row.
    pub started_at: DateTime<Utc>,
    /// The time of its latest change.
    pub seen_at: DateTime<Utc>,
    /// True while its circuit breaker is open.
    pub is_circuit_open: bool,
    /// The difference between its clock and the database's, in seconds.
    pub clock_skew: f64,
}

/// The report of a replica about itself.
#[derive(Clone, Debug)]
pub struct ReplicaReport {
    /// The id, which its mint records name as their holder.
    pub id: Uuid,
    /// The name of its host.
    pub host: String,
    /// True while its circuit breaker is open.
    pub is_circuit_open: bool,
    /// The difference between its clock and the database's, in seconds.
    pub clock_skew: f64,
}

/// Stores the report of a replica, and deletes replicas that were not seen for an hour.
///
/// The change is not durable, because the next report replaces it. It must not wait for a standby.
pub async fn store_report(
    connection: &mut PgConnection,
    report: &ReplicaReport,
) -> Result<(), DbError> {
    let mut transaction = connection.begin().await?;
    sqlx::query!("SET LOCAL synchronous_commit = off")
        .execute(&mut *transaction)
        .await?;
    sqlx::query!(
        "INSERT INTO replicas (id, host, version, started_at, seen_at, is_circuit_open, clock_skew)
         VALUES ($1, $2, $3, clock_timestamp(), clock_timestamp(), $4, $5)
         ON CONFLICT (id) DO UPDATE
         SET seen_at = excluded.seen_at, is_circuit_open = excluded.is_circuit_open, clock_skew = excluded.clock_skew",
        report.id,
        report.host,
        env!("CARGO_PKG_VERSION"),
        report.is_circuit_open,
        report.clock_skew,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("DELETE FROM replicas WHERE seen_at < now() - interval '1 hour'")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// Lists the replicas that were seen in the last minute, oldest first.
pub async fn list_replicas(connection: &mut PgConnection) -> Result<Vec<Replica>, DbError> {
    let replicas = sqlx::query_as!(
        Replica,
        "SELECT id, host, version, started_at, seen_at, is_circuit_open, clock_skew
         FROM replicas WHERE seen_at > clock_timestamp() - interval '1 minute' ORDER BY started_at, id"
    )
    .fetch_all(connection)
    .await?;
    Ok(replicas)
}
