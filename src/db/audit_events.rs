//! The trail as it is read, and events that stand by themselves.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, QueryBuilder, Row};
use uuid::Uuid;

use super::DbError;
use super::event_page::{
    AuditReadRecord, EventFilter, EventOrder, EventPage, READ_AT, list_users, push_insert,
    push_select,
};
use crate::model::{Access, AuditEvent, EventKind, EventRef};

/// Reads a page, each event handed over as it comes. A reading that is given goes on record with it,
/// in the same statement and so in one commit; its time is returned if there was an event to read.
pub async fn read_events(
    connection: &mut PgConnection,
    filter: &EventFilter,
    page: EventPage,
    reading: Option<&AuditReadRecord>,
    mut take: impl FnMut(&EventRef<'_>),
) -> Result<Option<DateTime<Utc>>, DbError> {
    let users = list_users(connection, filter).await?;
    if users.as_ref().is_some_and(Vec::is_empty) {
        if let Some(reading) = reading {
            insert_audit_read(connection, reading).await?;
        }
        return Ok(None);
    }
    let mut query = QueryBuilder::new("");
    let is_kept = push_select(&mut query, filter, users.as_deref(), page, reading);
    let mut rows = query.build().persistent(is_kept).fetch(connection);
    let mut read_at = None;
    while let Some(row) = rows.try_next().await? {
        take(&event_of(&row)?);
        if reading.is_some() && read_at.is_none() {
            read_at = row.try_get(READ_AT)?;
        }
    }
    Ok(read_at)
}

/// Events of one page of a long reading.
const PAGE: i64 = 2_000;

/// A reading of any length, oldest first, in pages that are read as they are asked for: no
/// statement lives longer than its page.
#[derive(Debug)]
pub struct EventPages {
    filter: EventFilter,
    after: Option<(DateTime<Utc>, Uuid)>,
    is_over: bool,
}

impl EventPages {
    /// Has read nothing yet.
    pub fn new(filter: EventFilter) -> Self {
        EventPages {
            filter,
            after: None,
            is_over: false,
        }
    }

    /// The next events, each as it comes; returns how many, none once there are no more.
    pub async fn read_next(
        &mut self,
        pool: &PgPool,
        mut take: impl FnMut(&EventRef<'_>),
    ) -> Result<usize, DbError> {
        let (mut count, mut last) = (0, self.after);
        if !self.is_over {
            let take = |event: &EventRef<'_>| {
                take(event);
                count += 1;
                last = Some((event.occurred_at, event.id));
            };
            let mut connection = pool.acquire().await?;
            let page = EventPage {
                order: EventOrder::Asc,
                after: self.after,
                limit: PAGE,
            };
            read_events(&mut connection, &self.filter, page, None, take).await?;
        }
        self.after = last;
        self.is_over = count < PAGE as usize;
        Ok(count)
    }

    /// When the last one was that was read.
    pub fn read_up_to(&self) -> Option<DateTime<Utc>> {
        self.after.map(|(at, _)| at)
    }
}

/// By position, and as the types that the schema has: names and types would be looked up again for
/// each row.
fn event_of(row: &PgRow) -> sqlx::Result<EventRef<'_>> {
    let user_id: &str = row.try_get_unchecked(6)?;
    let access: Option<i16> = row.try_get_unchecked(9)?;
    let detail: Option<Json<&RawValue>> = row.try_get_unchecked(12)?;
    Ok(AuditEvent {
        id: row.try_get_unchecked(0)?,
        occurred_at: row.try_get_unchecked(1)?,
        kind: row.try_get_unchecked(2)?,
        client: row.try_get_unchecked(3)?,
        request_id: row.try_get_unchecked(4)?,
        source_ip: row.try_get_unchecked(5)?,
        user_id: Some(user_id).filter(|user_id| !user_id.is_empty()),
        country: row.try_get_unchecked(7)?,
        bank: row.try_get_unchecked(8)?,
        access: access.map(Access::from_bits),
        token_id: row.try_get_unchecked(10)?,
        fingerprint: row.try_get_unchecked(11)?,
        detail: detail.map(|Json(detail)| detail),
    })
}

/// Puts a reading of the trail on record, and returns its time.
pub async fn insert_audit_read(
    connection: &mut PgConnection,
    reading: &AuditReadRecord,
) -> Result<DateTime<Utc>, DbError> {
    let mut query = QueryBuilder::new("");
    push_insert(&mut query, reading);
    let read_at = query.build_query_scalar().fetch_one(connection).await?;
    Ok(read_at)
}

/// Refused calls of one caller at one route.
#[derive(Debug)]
pub struct DenialRow {
    /// The id of the event.
    pub event_id: Uuid,
    /// Who called, where that is known.
    pub client: Option<String>,
    /// From where, where who is not known.
    pub source_ip: Option<String>,
    /// The route, the status, how many, and since when.
    pub detail: Value,
}

/// Writes an `access.denied` event for each, at the time of the writing.
pub async fn insert_denials(pool: &PgPool, rows: &[DenialRow]) -> Result<(), DbError> {
    let ids: Vec<_> = rows.iter().map(|row| row.event_id).collect();
    let clients: Vec<_> = rows.iter().map(|row| row.client.as_deref()).collect();
    let addresses: Vec<_> = rows.iter().map(|row| row.source_ip.as_deref()).collect();
    let details: Vec<_> = rows.iter().map(|row| row.detail.clone()).collect();
    sqlx::query!(
        "INSERT INTO audit_events (id, occurred_at, kind, client, source_ip, detail)
         SELECT r.event_id, clock_timestamp(), $5, r.client, r.source_ip, jsonb_strip_nulls(r.detail)
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[]) AS r(event_id, client, source_ip, detail)",
        &ids,
        &clients as &[Option<&str>],
        &addresses as &[Option<&str>],
        &details,
        EventKind::AccessDenied.name(),
    )
    .execute(pool)
    .await?;
    Ok(())
}
