//! Inserts events that are not about a token.

use serde_json::Value;
use sqlx::PgExecutor;

use super::DbError;
use crate::model::{Caller, EventKind, Origin};

/// Inserts an event that is not about a token. `caller` is `None` for a command and for the service itself.
///
/// Within a transaction, it commits with the changes that it records.
pub(super) async fn insert_event(
    executor: impl PgExecutor<'_>,
    kind: EventKind,
    caller: Option<&Caller>,
    detail: Value,
) -> Result<(), DbError> {
    sqlx::query!(
        "INSERT INTO audit_events (kind, client, request_id, source_ip, detail) VALUES ($1, $2, $3, $4, $5)",
        kind.name(),
        caller.map(|caller| &*caller.client),
        caller.map(|caller| &*caller.request_id),
        caller.and_then(|caller| caller.source_ip.as_deref()),
        detail,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Inserts a `cleanup.ran` event with these changes.
pub(super) async fn record_changes(
    executor: impl PgExecutor<'_>,
    origin: &Origin,
    mut detail: Value,
) -> Result<(), DbError> {
    let caller = match origin {
        Origin::Request(caller) => Some(caller),
        Origin::Actor(actor) => {
            detail["actor"] = actor.as_str().into();
            None
        }
    };
    insert_event(executor, EventKind::CleanupRan, caller, detail).await
}
