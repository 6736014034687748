//! Redacts what identifies a person: the user id, and what only this person's requests have.
//!
//! A redacted event keeps its time, kind, client, access and token id. It gets another id, so that nobody can test a list
//! of user ids against its hash in the sealed log.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::DbError;
use super::audit_log::{Position, find_log, find_tile_of_event, list_events};
use super::event_page::EventFilter;
use super::standalone_event::insert_event;
use crate::model::{EventKind, EventRef};

/// The maximum number of events, tokens or mints that one transaction redacts.
const BATCH: i64 = 500;

/// Redacts the next tokens and mints of a user, and deletes the next slots. Returns the numbers of tokens and mints, or
/// `None` if nothing was left.
///
/// The tokens are invalid afterwards. Uses a transaction of several statements, so the caller must not cancel it.
pub async fn redact_records(
    connection: &mut PgConnection,
    user_id: &str,
) -> Result<Option<(u64, u64)>, DbError> {
    let mut tx = connection.begin().await?;
    let slots = sqlx::query!(
        "DELETE FROM slots s USING (
             SELECT country, bank, access FROM slots WHERE user_id = $1
             ORDER BY country, bank, access LIMIT $2 FOR UPDATE
         ) k WHERE s.user_id = $1 AND s.country = k.country AND s.bank = k.bank AND s.access = k.access",
        user_id,
        BATCH,
    );
    let slots = slots.execute(&mut *tx).await?.rows_affected();
    let tokens = sqlx::query!(
        "UPDATE tokens
         SET user_id = '', country = '', bank = '', fingerprint = '', ciphertext = '', is_valid = false,
             invalidated_at = CASE WHEN is_valid THEN greatest(statement_timestamp(), issued_at) ELSE invalidated_at END,
             invalidation_reason = CASE WHEN is_valid THEN 'requested' ELSE invalidation_reason END
         WHERE user_id = $1 AND id IN (SELECT id FROM tokens WHERE user_id = $1 ORDER BY id LIMIT $2 FOR UPDATE)",
        user_id,
        BATCH,
    );
    let tokens = tokens.execute(&mut *tx).await?.rows_affected();
    let mints = sqlx::query!(
        "UPDATE mints SET user_id = '', country = '', bank = '', request_id = '', source_ip = NULL
         WHERE user_id = $1 AND id IN (SELECT id FROM mints WHERE user_id = $1 ORDER BY id LIMIT $2 FOR UPDATE)",
        user_id,
        BATCH,
    );
    let mints = mints.execute(&mut *tx).await?.rows_affected();
    tx.commit().await?;
    Ok((slots + tokens + mints > 0).then_some((tokens, mints)))
}

/// Redacts the next events of a user, and records that with the indexes of their entries in the sealed log. Returns how
/// many events it redacted. `hash` returns the hash of an entry.
///
/// Sealing waits meanwhile: it skips the locked row of the log. Uses a transaction of several statements, so the caller
/// must not cancel it.
pub async fn redact_events(
    connection: &mut PgConnection,
    user_id: &str,
    actor: &str,
    hash: impl Fn(&EventRef<'_>) -> [u8; 32],
) -> Result<u64, DbError> {
    let mut tx = connection.begin().await?;
    lock_log(&mut tx).await?;
    let filter = EventFilter {
        user_id: Some(user_id.to_owned()),
        ..EventFilter::default()
    };
    let events = list_events(&mut tx, &filter, None, BATCH, hash).await?;
    let redacted = redact(&mut tx, user_id, &events, actor).await?;
    tx.commit().await?;
    Ok(redacted)
}

/// Redacts the reads of the audit log that named a user as their filter, from a position on. Returns how many events it
/// redacted, and the position to continue after, or `None` at the end.
pub async fn redact_reads(
    connection: &mut PgConnection,
    user_id: &str,
    actor: &str,
    after: Option<Position>,
    hash: impl Fn(&EventRef<'_>) -> [u8; 32],
) -> Result<(u64, Option<Position>), DbError> {
    let mut tx = connection.begin().await?;
    lock_log(&mut tx).await?;
    let filter = EventFilter {
        kind: Some(EventKind::AuditRead),
        ..EventFilter::default()
    };
    let map = |event: &EventRef<'_>| names_user(event, user_id).then(|| hash(event));
    let events = list_events(&mut tx, &filter, after, 10 * BATCH, map).await?;
    let last = events.last().map(|(last, _)| *last);
    let named = events
        .into_iter()
        .filter_map(|(position, hash)| Some((position, hash?)));
    let redacted = redact(&mut tx, "", &named.collect::<Vec<_>>(), actor).await?;
    tx.commit().await?;
    Ok((redacted, last))
}

fn names_user(event: &EventRef<'_>, user_id: &str) -> bool {
    let detail = event
        .detail
        .and_then(|detail| serde_json::from_str::<serde_json::Value>(detail.get()).ok());
    detail.is_some_and(|detail| detail["filter"]["userId"] == user_id)
}

async fn lock_log(connection: &mut PgConnection) -> Result<(), DbError> {
    let lock = sqlx::query!("SELECT id FROM audit_log FOR UPDATE");
    lock.fetch_one(connection).await?;
    Ok(())
}

/// Redacts these events and records it. The caller holds the lock of the log.
async fn redact(
    connection: &mut PgConnection,
    user_id: &str,
    events: &[(Position, [u8; 32])],
    actor: &str,
) -> Result<u64, DbError> {
    if events.is_empty() {
        return Ok(0);
    }
    let log = find_log(connection).await?;
    let mut entries = Vec::new();
    for (position, hash) in events {
        let is_sealed = log.size > 0 && *position <= (log.last_at, log.last_id);
        if is_sealed && let Some(tile) = find_tile_of_event(connection, *position).await? {
            let offset = tile.hashes.chunks(hash.len()).position(|leaf| leaf == hash);
            entries.extend(offset.map(|offset| tile.n * 256 + offset as i64));
        }
        redact_event(connection, user_id, *position).await?;
    }
    let detail = json!({"actor": actor, "events": events.len(), "leafIndexes": entries});
    insert_event(connection, EventKind::UserErased, None, detail).await?;
    Ok(events.len() as u64)
}

async fn redact_event(
    connection: &mut PgConnection,
    user_id: &str,
    (at, id): Position,
) -> Result<(), DbError> {
    let new_id = choose_id(connection, (at, id)).await?;
    sqlx::query!(
        r#"UPDATE audit_events
           SET id = $4, user_id = '', request_id = NULL, source_ip = NULL, country = NULL, bank = NULL,
               fingerprint = NULL, detail = '{"redacted": true}'
           WHERE user_id = $1 AND occurred_at = $2 AND id = $3"#,
        user_id,
        at,
        id,
        new_id,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE audit_tiles SET first_id = $3 WHERE level = 0 AND first_at = $1 AND first_id = $2",
        at,
        id,
        new_id,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE audit_log SET last_id = $3 WHERE last_at = $1 AND last_id = $2",
        at,
        id,
        new_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Chooses a random id for a redacted event that keeps its place among the events of the same time.
async fn choose_id(
    connection: &mut PgConnection,
    (at, id): (DateTime<Utc>, Uuid),
) -> Result<Uuid, DbError> {
    let neighbours = sqlx::query!(
        "SELECT (SELECT id FROM audit_events WHERE occurred_at = $1 AND id < $2 ORDER BY id DESC LIMIT 1) AS previous,
                (SELECT id FROM audit_events WHERE occurred_at = $1 AND id > $2 ORDER BY id LIMIT 1) AS next",
        at,
        id,
    );
    let neighbours = neighbours.fetch_one(connection).await?;
    if neighbours.previous.is_none() && neighbours.next.is_none() {
        return Ok(Uuid::new_v4());
    }
    let lowest = neighbours.previous.map_or(0, |id| id.as_u128());
    let highest = neighbours.next.map_or(u128::MAX, |id| id.as_u128());
    let mut chosen = id;
    // The range has at least the old id. A database has no two neighbours as close as that.
    while chosen == id && highest - lowest > 2 {
        chosen = Uuid::from_u128(fastrand::u128(lowest + 1..highest));
    }
    Ok(chosen)
}
