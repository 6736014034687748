//! Reads of the audit log, and the events that no other change writes.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, QueryBuilder, Row};
use uuid::Uuid;

use super::DbError;
use super::event_page::{EventFilter, EventOrder, EventPage, push_page, push_walk, split};
use super::horizon::find_horizon;
use super::tokens::TokenFilter;
use crate::model::{Access, AuditEvent, Caller, Country, EventKind, EventRef, Fingerprint, Token};

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
    let mut merged = walk(connection, filter, page).await?;
    let filters = match merged[..] {
        [] => split(connection, filter).await?,
        _ => vec![],
    };
    let mut transaction = connection.begin_with(BEGIN).await?;
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

/// Reads a page from the next events of all kinds. Returns no rows if they are not a full page.
async fn walk(
    connection: &mut PgConnection,
    filter: &EventFilter,
    page: EventPage,
) -> Result<Vec<PgRow>, DbError> {
    let mut query = QueryBuilder::new("");
    if !push_walk(&mut query, filter, page) {
        return Ok(vec![]);
    }
    let mut transaction = connection.begin_with(BEGIN).await?;
    let mut rows = query.build().fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    if (rows.len() as i64) < page.limit {
        rows.clear();
    }
    Ok(rows)
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

/// A read of token records, for its event.
#[derive(Debug)]
pub struct TokenReadRow {
    kind: EventKind,
    caller: Caller,
    user_id: Option<String>,
    token: Option<Token>,
    fingerprint: Option<Fingerprint>,
    detail: Option<Value>,
}

impl TokenReadRow {
    /// The read of one record, found by its id or by its token string.
    pub fn of_record(kind: EventKind, caller: Caller, token: &Token) -> Self {
        TokenReadRow {
            kind,
            caller,
            user_id: Some(token.combination.user_id.to_string()),
            fingerprint: Some(token.fingerprint),
            token: Some(token.clone()),
            detail: None,
        }
    }

    /// The lookup of a token string that has no record.
    pub fn of_unknown_string(caller: Caller, fingerprint: Fingerprint) -> Self {
        TokenReadRow {
            kind: EventKind::TokenLookedUp,
            caller,
            user_id: None,
            token: None,
            fingerprint: Some(fingerprint),
            detail: Some(json!({"found": false})),
        }
    }

    /// The read of a page of a list.
    pub fn of_list(caller: Caller, filter: &TokenFilter, tokens: &[Token]) -> Self {
        let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
        TokenReadRow {
            kind: EventKind::TokenRead,
            caller,
            user_id: filter.user_id.clone(),
            token: None,
            fingerprint: None,
            detail: Some(json!({"filter": filter, "tokenIds": ids})),
        }
    }
}

/// Writes an event for each read.
pub async fn insert_token_reads(
    connection: &mut PgConnection,
    reads: &[TokenReadRow],
) -> Result<(), DbError> {
    fn column<'r, T>(reads: &'r [TokenReadRow], value: impl Fn(&'r TokenReadRow) -> T) -> Vec<T> {
        reads.iter().map(value).collect()
    }
    fn of_token<'r, T>(
        reads: &'r [TokenReadRow],
        value: impl Fn(&'r Token) -> Option<T>,
    ) -> Vec<Option<T>> {
        column(reads, |read| read.token.as_ref().and_then(&value))
    }
    sqlx::query!(
        "INSERT INTO audit_events (kind, client, request_id, source_ip, user_id, country, bank, access, token_id,
                                   fingerprint, detail)
         SELECT r.kind, r.client, r.request_id, r.source_ip, r.user_id, r.country, r.bank, r.access, r.token_id,
                r.fingerprint, jsonb_strip_nulls(r.detail)
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int2[],
                     $9::uuid[], $10::text[], $11::jsonb[])
              AS r(kind, client, request_id, source_ip, user_id, country, bank, access, token_id, fingerprint, detail)",
        &column(reads, |read| read.kind.name()) as &[&str],
        &column(reads, |read| &*read.caller.client) as &[&str],
        &column(reads, |read| &*read.caller.request_id) as &[&str],
        &column(reads, |read| read.caller.source_ip.as_deref()) as &[Option<&str>],
        &column(reads, |read| read.user_id.as_deref().unwrap_or_default()) as &[&str],
        &of_token(reads, |token| token.combination.country.map(Country::code)) as &[Option<&str>],
        &of_token(reads, |token| token.combination.bank.as_deref()) as &[Option<&str>],
        &of_token(reads, |token| Some(token.combination.access.bits())) as &[Option<i16>],
        &of_token(reads, |token| Some(token.id)) as &[Option<Uuid>],
        &column(reads, |read| read.fingerprint.map(|fingerprint| fingerprint.to_string())) as &[Option<String>],
        &column(reads, |read| read.detail.clone()) as &[Option<Value>],
    )
    .execute(connection)
    .await?;
    Ok(())
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
