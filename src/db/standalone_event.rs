//! Inserts events that no other change of the database has to commit with.

use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{Caller, EventKind};

/// Inserts an event that is not about a token. `caller` is `None` for a command and for the service itself.
pub(super) async fn insert_event(
    pool: &PgPool,
    kind: EventKind,
    caller: Option<&Caller>,
    detail: Value,
) -> Result<(), DbError> {
    sqlx::query!(
        "INSERT INTO audit_events (id, occurred_at, kind, client, request_id, source_ip, detail)
         VALUES ($1, clock_timestamp(), $2, $3, $4, $5, $6)",
        Uuid::now_v7(),
        kind.name(),
        caller.map(|caller| &*caller.client),
        caller.map(|caller| &*caller.request_id),
        caller.and_then(|caller| caller.source_ip.as_deref()),
        detail,
    )
    .execute(pool)
    .await?;
    Ok(())
}
