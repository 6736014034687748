//! Redacts what identifies a person: the user id, and what only this person's requests have.
//!
//! A redacted event keeps its time, kind, client, access and token id. It gets another id, so that nobody can test a list
//! of user ids against its hash in the sealed log.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
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

/// The texts that identify a person: the user id, and what only the person's events have.
#[derive(Debug)]
pub struct Identifiers(HashSet<String>);

/// Lists the identifiers of a user: the user id, and the ids, request ids and fingerprints of the user's events.
///
/// A read of the audit log that names one of them would otherwise tell it after the events are redacted.
pub async fn list_identifiers(
    connection: &mut PgConnection,
    user_id: &str,
) -> Result<Identifiers, DbError> {
    let filter = EventFilter {
        user_id: Some(user_id.to_owned()),
        ..EventFilter::default()
    };
    let mut identifiers = HashSet::from([user_id.to_owned()]);
    let mut after = None;
    loop {
        let texts = |event: &EventRef<'_>| {
            [
                Some(event.id.to_string()),
                event.request_id.map(str::to_owned),
                event.fingerprint.map(str::to_owned),
            ]
        };
        let events = list_events(connection, &filter, after, 10 * BATCH, texts).await?;
        let Some((last, _)) = events.last() else {
            return Ok(Identifiers(identifiers));
        };
        after = Some(*last);
        identifiers.extend(events.into_iter().flat_map(|(_, texts)| texts).flatten());
    }
}

impl Identifiers {
    /// Returns true if a text anywhere in the value is one of the identifiers.
    fn are_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.0.contains(text),
            Value::Array(values) => values.iter().any(|value| self.are_in(value)),
            Value::Object(members) => members.values().any(|value| self.are_in(value)),
            _ => false,
        }
    }
}

/// The kinds of events that name a person without its user id.
pub const READS: [EventKind; 3] = [
    EventKind::AuditRead,
    EventKind::TokenRead,
    EventKind::TokenLookedUp,
];

/// Redacts the events of one of [`READS`] that named an identifier, from a position on. Returns how many events it
/// redacted, and the position to continue after, or `None` at the end.
pub async fn redact_reads(
    connection: &mut PgConnection,
    kind: EventKind,
    identifiers: &Identifiers,
    actor: &str,
    after: Option<Position>,
    hash: impl Fn(&EventRef<'_>) -> [u8; 32],
) -> Result<(u64, Option<Position>), DbError> {
    let mut tx = connection.begin().await?;
    lock_log(&mut tx).await?;
    let filter = EventFilter::of_kind(kind);
    let map = |event: &EventRef<'_>| {
        let detail = event
            .detail
            .and_then(|detail| serde_json::from_str(detail.get()).ok());
        let is_named = detail.is_some_and(|detail| identifiers.are_in(&detail))
            || event
                .fingerprint
                .is_some_and(|text| identifiers.0.contains(text));
        // The events of the user itself follow.
        (is_named && event.user_id.is_none()).then(|| hash(event))
    };
    let events = list_events(&mut tx, &filter, after, 10 * BATCH, map).await?;
    let last = events.last().map(|(last, _)| *last);
    let named = events
        .into_iter()
        .filter_map(|(position, hash)| Some((position, hash?)));
    let redacted = redact(&mut tx, "", &named.collect::<Vec<_>>(), actor).await?;
    tx.commit().await?;
    Ok((redacted, last))
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
            entries.extend(tile.find_entry(hash));
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
///
/// The id is a UUIDv7 with the time of the event, by which the event is found.
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
    let milliseconds = at.timestamp_millis() as u128 & 0xffff_ffff_ffff;
    let first_of_time = milliseconds << 80 | 7 << 76;
    let mut ids = first_of_time..first_of_time + (1 << 76);
    if let Some(previous) = neighbours.previous {
        ids.start = ids.start.max(previous.as_u128() + 1);
    }
    if let Some(next) = neighbours.next {
        ids.end = ids.end.min(next.as_u128());
    }
    if ids.is_empty() {
        // A neighbour has an id of another kind.
        let above = neighbours
            .previous
            .map_or(0, |previous| previous.as_u128() + 1);
        let below = neighbours.next.map_or(u128::MAX, |next| next.as_u128());
        ids = above..below;
    }
    Ok(Uuid::from_u128(fastrand::u128(ids)))
}
