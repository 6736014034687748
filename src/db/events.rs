//! The trail as it is read, and events that stand by themselves.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::DbError;
use crate::model::{Access, AuditEvent, Caller, EventKind, EventRef};

/// What a reading of the trail is narrowed to; everything absent matches all.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventFilter {
    /// About this user.
    pub user_id: Option<String>,
    /// About this token.
    pub token_id: Option<Uuid>,
    /// By this client.
    pub client: Option<String>,
    /// Of this kind.
    pub kind: Option<EventKind>,
    /// In this request.
    pub request_id: Option<String>,
    /// About the token string of this fingerprint.
    pub fingerprint: Option<String>,
    /// At or after.
    pub from: Option<DateTime<Utc>>,
    /// Before.
    pub to: Option<DateTime<Utc>>,
}

impl EventFilter {
    fn is_of_users(&self) -> bool {
        self.user_id.is_some() || self.token_id.is_some() || self.fingerprint.is_some()
    }

    fn is_of_users_only(&self) -> bool {
        self.is_of_users() && (&self.client, self.kind, &self.request_id) == (&None, None, &None)
    }
}

/// Which way a reading goes through time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventOrder {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

/// Which of the events that match are read.
#[derive(Clone, Copy, Debug)]
pub struct EventPage {
    /// Which way.
    pub order: EventOrder,
    /// When the last one before them occurred, and its id.
    pub after: Option<(DateTime<Utc>, Uuid)>,
    /// How many at most.
    pub limit: i64,
}

/// What goes on record of a reading of the trail.
#[derive(Debug)]
pub struct Reading {
    /// Who reads; nobody for a command.
    pub caller: Option<Caller>,
    /// What is asked for. Members that are null are left out.
    pub detail: Value,
}

/// Reads a page, each event handed over as it comes. A reading that is given goes on record with it,
/// in the same statement and so in one commit; its time is returned if there was an event to read.
pub async fn read_events(
    connection: &mut PgConnection,
    filter: &EventFilter,
    page: EventPage,
    reading: Option<&Reading>,
    mut take: impl FnMut(&EventRef<'_>),
) -> Result<Option<DateTime<Utc>>, DbError> {
    let users = list_users(connection, filter).await?;
    if users.as_ref().is_some_and(Vec::is_empty) {
        if let Some(reading) = reading {
            insert_reading(connection, reading).await?;
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

/// Appends the array of the users whom a reading is about: whose the token and the token string are
/// that it names, or were where they are no longer on record. Whatever happened to a token names its
/// user; handouts do, too, and outlive neither the record nor the event of its end.
fn push_users(query: &mut QueryBuilder<Postgres>, filter: &EventFilter) {
    let mut and = "ARRAY(";
    if let Some(user_id) = &filter.user_id {
        query.push(and).push("SELECT ").push_bind(user_id.clone());
        and = " INTERSECT ";
    }
    if let Some(token_id) = filter.token_id {
        query
            .push(and)
            .push("(SELECT user_id FROM tokens WHERE id = ");
        query.push_bind(token_id);
        query.push(" UNION ALL SELECT user_id FROM audit_events WHERE kind <> 'token.reused' AND token_id = ");
        query.push_bind(token_id).push(" LIMIT 1)");
        and = " INTERSECT ";
    }
    if let Some(fingerprint) = &filter.fingerprint {
        query
            .push(and)
            .push("(SELECT user_id FROM tokens WHERE fingerprint = ");
        query.push_bind(fingerprint.clone());
        query.push(" UNION SELECT user_id FROM audit_events WHERE kind <> 'token.reused' AND fingerprint = ");
        query.push_bind(fingerprint.clone()).push(")");
    }
    query.push(")");
}

/// The users whom a reading is about that is about something else, too; where it is not, its
/// statement looks for them itself.
pub async fn list_users(
    connection: &mut PgConnection,
    filter: &EventFilter,
) -> Result<Option<Vec<String>>, DbError> {
    if !filter.is_of_users() || filter.is_of_users_only() {
        return Ok(None);
    }
    let mut query = QueryBuilder::new("SELECT ");
    push_users(&mut query, filter);
    Ok(Some(
        query.build_query_scalar().fetch_one(connection).await?,
    ))
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

/// Where the time of the reading is in a row, after the columns of [`event_of`].
const READ_AT: usize = 13;

/// Appends the statement of [`read_events`], `users` being those of [`list_users`]; returns whether
/// its plan may be kept for other values, too.
///
/// It is ordered by what narrows it most, too, of which there is one value: no other index than the
/// one made for that gives this order. Without it the planner, which does not know that a user was
/// busy last month, may look for their events through everybody's newest.
pub fn push_select(
    query: &mut QueryBuilder<Postgres>,
    filter: &EventFilter,
    users: Option<&[String]>,
    page: EventPage,
    reading: Option<&Reading>,
) -> bool {
    let EventPage {
        order,
        after,
        limit,
    } = page;
    let (request, client) = (filter.request_id.as_slice(), filter.client.as_slice());
    // Most users and requests have a few events, some a hundred thousand. Where there is nothing but
    // one of them to go by, one plan does for all: along each value's part of the index, as far as a
    // page is long. Its length and its bounds by row are what make the planner see it so.
    let parts = match (users, request, client, filter.kind) {
        _ if filter.is_of_users_only() => Some("user_id"),
        (None, [_], [], None) => Some("request_id"),
        _ => None,
    };
    let rare_kind = filter.kind.filter(|kind| *kind != EventKind::TokenReused);
    let given = [
        ("request_id", !request.is_empty()),
        ("user_id", users.is_some_and(|users| users.len() == 1)),
        ("kind", rare_kind.is_some()),
        ("client", !client.is_empty()),
    ];
    let narrowest = given.into_iter().find(|(_, is_given)| *is_given);
    let narrowest = parts.or(narrowest.map(|(column, _)| column));
    if let Some(reading) = reading {
        query.push("WITH reading AS (");
        push_insert(query, reading);
        query.push(") ");
    }
    if let Some(column) = parts {
        // Looked up, so that what is expected of these values is what is of any.
        query.push("SELECT events.* FROM unnest((SELECT ");
        match column {
            "user_id" => push_users(query, filter),
            _ => _ = query.push_bind(request.to_vec()),
        }
        query.push(")) AS part (value), LATERAL (");
    }
    query.push("SELECT id, occurred_at, kind, client, request_id, source_ip, user_id, country, bank, access, token_id, fingerprint, detail");
    if reading.is_some() {
        query.push(", (SELECT occurred_at FROM reading) AS read_at");
    }
    query.push(" FROM audit_events WHERE true");
    if let Some(column) = parts {
        // Which rows its index has.
        query.push(format_args!(" AND {column} IS NOT NULL"));
    } else {
        // As lists, so that the order by a list of one is not left out.
        let given = [
            ("user_id", users),
            ("request_id", Some(request)),
            ("client", Some(client)),
        ];
        for (column, values) in given {
            if let Some(values @ [_, ..]) = values {
                query.push(format_args!(" AND {column} = ANY("));
                query.push_bind(values.to_vec()).push(")");
            }
        }
        if let Some(kind) = filter.kind {
            // In words, so that the planner sees that the index of all kinds but the frequent one has it.
            query.push(format_args!(" AND kind = ANY('{{{}}}')", kind.name()));
        }
    }
    // As functions, which the planner does not take to narrow much: the user has narrowed it.
    if let Some(token_id) = filter.token_id {
        query.push(" AND uuid_eq(token_id, ").push_bind(token_id);
        query.push(")");
    }
    if let Some(fingerprint) = &filter.fingerprint {
        query.push(" AND texteq(fingerprint, ");
        query.push_bind(fingerprint.clone()).push(")");
    }

    let before_all_at = |time: DateTime<Utc>| (time, Uuid::nil());
    let after_in = |way| after.filter(|_| order == way);
    let from = filter.from.map(before_all_at);
    let start = from.max(after_in(EventOrder::Asc));
    let to = filter.to.map(before_all_at).into_iter();
    let end = to.chain(after_in(EventOrder::Desc)).min();
    let from_operator = if start == from { ">=" } else { ">" };
    for (bound, operator, unbounded) in [
        (start, from_operator, "'-infinity'"),
        (end, "<", "'infinity'"),
    ] {
        if let Some((at, id)) = bound {
            // On the time alone, which rules out months. Of a moment it says all; said twice, it would
            // be expected to leave so little that the planner would look at each moment anew.
            let is_moment = parts.is_none() && id.is_nil() && operator != ">";
            let of_time = match operator {
                "<" if is_moment => "<",
                "<" => "<=",
                _ => ">=",
            };
            query.push(format_args!(" AND occurred_at {of_time} "));
            query.push_bind(at);
            if is_moment {
                continue;
            }
        }
        let (column, value) = match (parts, bound) {
            (None, None) => continue,
            (None, _) => (String::new(), ""),
            (Some(column), _) => (format!("{column}, "), "part.value, "),
        };
        query.push(format_args!(
            " AND ({column}occurred_at, id) {operator} ({value}"
        ));
        match bound {
            Some((at, id)) => query.push_bind(at).push(", ").push_bind(id),
            None => query.push(unbounded).push(", ").push_bind(Uuid::nil()),
        };
        query.push(")");
    }

    let direction = match order {
        EventOrder::Asc => "ASC",
        EventOrder::Desc => "DESC",
    };
    // Of a limit that it does not know, a plan that is kept would expect a tenth of all.
    let page = format!("occurred_at {direction}, id {direction} LIMIT {limit}");
    query.push(" ORDER BY ");
    if let Some(column) = narrowest {
        query.push(format_args!("{column} {direction}, "));
    }
    query.push(&page);
    if parts.is_some() {
        query.push(") AS events ORDER BY ").push(page);
    }
    // Which of two narrows more differs by their values.
    parts.is_some()
        || users.is_none() && request.is_empty() && (client.is_empty() || filter.kind.is_none())
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
pub async fn insert_reading(
    connection: &mut PgConnection,
    reading: &Reading,
) -> Result<DateTime<Utc>, DbError> {
    let mut query = QueryBuilder::new("");
    push_insert(&mut query, reading);
    let read_at = query.build_query_scalar().fetch_one(connection).await?;
    Ok(read_at)
}

fn push_insert(query: &mut QueryBuilder<Postgres>, reading: &Reading) {
    let caller = reading.caller.as_ref();
    query.push("INSERT INTO audit_events (id, occurred_at, kind, client, request_id, source_ip, detail) VALUES (");
    query
        .push_bind(Uuid::now_v7())
        .push(", clock_timestamp(), ");
    query.push_bind(EventKind::AuditRead.name()).push(", ");
    query
        .push_bind(caller.map(|caller| caller.client.to_string()))
        .push(", ");
    query
        .push_bind(caller.map(|caller| caller.request_id.to_string()))
        .push(", ");
    query
        .push_bind(caller.and_then(|caller| caller.source_ip.clone()))
        .push(", jsonb_strip_nulls(");
    query
        .push_bind(reading.detail.clone())
        .push(")) RETURNING occurred_at");
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
