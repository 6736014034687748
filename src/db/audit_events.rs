//! Reads of the audit log, and the events that no other change writes.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, QueryBuilder, Row};
use uuid::Uuid;

use super::DbError;
use super::event_page::{EventFilter, EventOrder, EventPage, push_page, split_by_user};
use super::horizon::find_horizon;
use crate::model::{Access, AuditEvent, Caller, EventKind, EventRef};

/// Plans each statement of the transaction for its values. `SET LOCAL` ends with the transaction, so a
/// transaction pooler passes the session on without it.
pub(super) const BEGIN: &str = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan";

/// Reads a page and passes each event to `take`.
///
/// If `record` is given, commits it as an event before returning, and returns its time.
pub async fn read_events(
    connection: &mut PgConnection,
    filter: &EventFilter,
    page: EventPage,
    record: Option<&AuditReadRecord>,
    mut take: impl FnMut(&EventRef<'_>),
) -> Result<Option<DateTime<Utc>>, DbError> {
    let filters = split_by_user(connection, filter).await?;
    let mut transaction = connection.begin_with(BEGIN).await?;
    let mut merged = Vec::new();
    for filter in &filters {
        let mut query = QueryBuilder::new("");
        push_page(&mut query, filter, page);
        let mut rows = query.build().fetch(&mut *transaction);
        while let Some(row) = rows.try_next().await? {
            if filters.len() == 1 {
                take(&read_event(&row)?);
            } else {
                merged.push(row);
            }
        }
        keep_first_page(&mut merged, page);
    }
    for row in &merged {
        take(&read_event(row)?);
    }
    let read_at = match record {
        Some(record) => Some(insert_audit_read(&mut transaction, record).await?),
        None => None,
    };
    transaction.commit().await?;
    Ok(read_at)
}

/// Merges the pages of several users into one.
fn keep_first_page(rows: &mut Vec<PgRow>, page: EventPage) {
    let position = |row: &PgRow| (row.get::<DateTime<Utc>, _>(1), row.get::<Uuid, _>(0));
    match page.order {
        EventOrder::Asc => rows.sort_by_cached_key(position),
        EventOrder::Desc => rows.sort_by_cached_key(|row| Reverse(position(row))),
    }
    rows.truncate(page.limit as usize);
}

/// Decodes a row of a page by position and without type checks, which would look up names and types again for
/// each row.
pub(super) fn read_event(row: &PgRow) -> sqlx::Result<EventRef<'_>> {
    let user_id: &str = row.try_get_unchecked(6)?;
    let access: Option<i16> = row.try_get_unchecked(9)?;
    let detail: Option<Json<&RawValue>> = row.try_get_unchecked(12)?;
    Ok(AuditEvent {
        id: row.try_get_unchecked(0)?,
        occurred_at: row.try_get_unchecked(1)?,
        kind: row.try_get_unchecked(2)?,
        client: row.try_get_unchecked(3)?,
        client_name: row.try_get_unchecked(13)?,
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

/// The number of events in a page of [`EventPages`].
const PAGE: i64 = 2_000;

/// All events that match a filter, oldest first, read page by page. No statement outlives its page.
#[derive(Debug)]
pub struct EventPages {
    filter: EventFilter,
    /// The horizon that the server of each page must have reached.
    horizon: DateTime<Utc>,
    after: Option<(DateTime<Utc>, Uuid)>,
    with_names: bool,
    is_at_end: bool,
}

impl EventPages {
    /// Starts before the oldest event. The pages may be read from several standbys, each of which must have all events
    /// before `horizon`.
    pub fn new(filter: EventFilter, horizon: DateTime<Utc>) -> Self {
        EventPages {
            filter,
            horizon,
            after: None,
            with_names: false,
            is_at_end: false,
        }
    }

    /// Reads the names of the clients too, if `with_names` is true.
    pub fn with_names(mut self, with_names: bool) -> Self {
        self.with_names = with_names;
        self
    }

    /// Reads the next page, passes each event to `take` and returns their number. Returns 0 at the end.
    ///
    /// # Errors
    /// Returns [`DbError::Incomplete`] if the server lags.
    pub async fn read_next(
        &mut self,
        connection: &mut PgConnection,
        mut take: impl FnMut(&EventRef<'_>),
    ) -> Result<usize, DbError> {
        if self.is_at_end {
            return Ok(0);
        }
        if find_horizon(connection).await? < self.horizon {
            return Err(DbError::Incomplete(self.horizon));
        }
        let page = EventPage {
            order: EventOrder::Asc,
            after: self.after,
            limit: PAGE,
            with_names: self.with_names,
        };
        let mut count = 0;
        let take = |event: &EventRef<'_>| {
            take(event);
            count += 1;
            self.after = Some((event.occurred_at, event.id));
        };
        read_events(connection, &self.filter, page, None, take).await?;
        self.is_at_end = count < PAGE as usize;
        Ok(count)
    }

    /// Returns the time of the last event that was read.
    pub fn read_up_to(&self) -> Option<DateTime<Utc>> {
        self.after.map(|(at, _)| at)
    }
}

/// A read of the audit log, recorded as an `audit.read` event.
#[derive(Debug)]
pub struct AuditReadRecord {
    /// The caller; none for a command.
    pub caller: Option<Caller>,
    /// The request. Members that are null are omitted.
    pub detail: Value,
}

/// Records a read of the audit log and returns the time of the event.
pub async fn insert_audit_read(
    connection: &mut PgConnection,
    record: &AuditReadRecord,
) -> Result<DateTime<Utc>, DbError> {
    let caller = record.caller.as_ref();
    let read_at = sqlx::query_scalar!(
        "INSERT INTO audit_events (kind, client, request_id, source_ip, detail)
         VALUES ($1, $2, $3, $4, jsonb_strip_nulls($5)) RETURNING occurred_at",
        EventKind::AuditRead.name(),
        caller.map(|caller| &caller.client),
        caller.map(|caller| &caller.request_id),
        caller.and_then(|caller| caller.source_ip.as_ref()),
        record.detail,
    );
    Ok(read_at.fetch_one(connection).await?)
}

/// Rejected requests of one caller to one route, counted for an `access.denied` event.
#[derive(Debug)]
pub struct DenialRow {
    /// The API key, if the caller is known.
    pub client: Option<String>,
    /// The source address, if the caller is not known.
    pub source_ip: Option<String>,
    /// The route, the status, the count and the start of counting.
    pub detail: Value,
}

/// Writes an `access.denied` event for each row, at the current time of the database.
pub async fn insert_denials(
    connection: &mut PgConnection,
    rows: &[DenialRow],
) -> Result<(), DbError> {
    let clients: Vec<_> = rows.iter().map(|row| row.client.as_deref()).collect();
    let addresses: Vec<_> = rows.iter().map(|row| row.source_ip.as_deref()).collect();
    let details: Vec<_> = rows.iter().map(|row| row.detail.clone()).collect();
    sqlx::query!(
        "INSERT INTO audit_events (kind, client, source_ip, detail)
         SELECT $4, r.client, r.source_ip, jsonb_strip_nulls(r.detail)
         FROM unnest($1::text[], $2::text[], $3::jsonb[]) AS r(client, source_ip, detail)",
        &clients as &[Option<&str>],
        &addresses as &[Option<&str>],
        &details,
        EventKind::AccessDenied.name(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
