//! The statement that reads a page of the trail, by any filter, and what makes its plan a good one.
//!
//! Each filter has an index that gives the page in its order, and the statement leaves the planner no
//! other. It goes one of three ways:
//!
//! - Along the parts of an index that one value each has, where there is nothing but users or a
//!   request to go by. Most of them have a few events, some a hundred thousand, and a plan that is
//!   kept must do for both. It does: the values are looked up, so that what is expected of them is
//!   what is of any, and the bounds are on rows, which are taken to leave many.
//! - Along the index of what narrows most, of which there is one value: ordered by that, too, the
//!   page comes from no other index. Without it the planner, which does not know that a user was busy
//!   last month, may look for their events through everybody's newest.
//! - Along time, where nothing narrows.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::DbError;
use crate::model::{Caller, EventKind};

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
pub struct AuditReadRecord {
    /// Who reads; nobody for a command.
    pub caller: Option<Caller>,
    /// What is asked for. Members that are null are left out.
    pub detail: Value,
}

/// Where the time of the reading is in a row, after the [`COLUMNS`].
pub(super) const READ_AT: usize = 13;

/// In the order in which a row is read.
const COLUMNS: &str = "id, occurred_at, kind, client, request_id, source_ip, user_id, country, bank, access, token_id, fingerprint, detail";

/// Appends the statement of a page, `users` being those of [`list_users`], the reading on record with
/// it; returns whether its plan may be kept for other values, too.
pub fn push_select(
    query: &mut QueryBuilder<Postgres>,
    filter: &EventFilter,
    users: Option<&[String]>,
    page: EventPage,
    reading: Option<&AuditReadRecord>,
) -> bool {
    let parts = filter.parts();
    if let Some(reading) = reading {
        query.push("WITH reading AS (");
        push_insert(query, reading);
        query.push(") ");
    }
    if let Some(column) = parts {
        query.push("SELECT events.* FROM unnest((SELECT ");
        match &filter.request_id {
            Some(request_id) => _ = query.push_bind(vec![request_id.clone()]),
            None => push_users(query, filter),
        }
        query.push(")) AS part (value), LATERAL (");
        push_columns(query, reading);
        // Which rows its index has.
        query.push(format_args!(" WHERE {column} IS NOT NULL"));
    } else {
        push_columns(query, reading);
        query.push(" WHERE true");
        push_values(query, filter, users);
    }
    push_token(query, filter);
    let is_for_any_time = push_bounds(query, filter, page, parts);

    let direction = match page.order {
        EventOrder::Asc => "ASC",
        EventOrder::Desc => "DESC",
    };
    // Of a limit that it does not know, a plan that is kept would expect a tenth of all.
    let limit = page.limit;
    let in_time = format!("occurred_at {direction}, id {direction} LIMIT {limit}");
    query.push(" ORDER BY ");
    if let Some(column) = parts.or(filter.narrowest(users)) {
        query.push(format_args!("{column} {direction}, "));
    }
    query.push(&in_time);
    if parts.is_some() {
        query.push(") AS events ORDER BY ").push(in_time);
    }
    // Which of two narrows more differs by their values.
    let (by_client, by_kind) = (filter.client.is_some(), filter.kind.is_some());
    let is_for_any = users.is_none() && filter.request_id.is_none() && !(by_client && by_kind);
    parts.is_some() || is_for_any && is_for_any_time
}

impl EventFilter {
    fn is_of_users(&self) -> bool {
        self.user_id.is_some() || self.token_id.is_some() || self.fingerprint.is_some()
    }

    /// The column along whose parts a reading goes.
    fn parts(&self) -> Option<&'static str> {
        match (self.is_of_users(), &self.request_id) {
            _ if self.client.is_some() || self.kind.is_some() => None,
            (true, None) => Some("user_id"),
            (false, Some(_)) => Some("request_id"),
            _ => None,
        }
    }

    /// The column that narrows most, of which there is one value.
    fn narrowest(&self, users: Option<&[String]>) -> Option<&'static str> {
        let is_rare = |kind| kind != EventKind::TokenReused;
        let given = [
            ("request_id", self.request_id.is_some()),
            ("user_id", users.is_some_and(|users| users.len() == 1)),
            ("kind", self.kind.is_some_and(is_rare)),
            ("client", self.client.is_some()),
        ];
        let narrowest = given.into_iter().find(|(_, is_given)| *is_given);
        narrowest.map(|(column, _)| column)
    }
}

/// The users whom a reading is about that is about something else, too; where it is not, its
/// statement looks for them itself.
pub async fn list_users(
    connection: &mut PgConnection,
    filter: &EventFilter,
) -> Result<Option<Vec<String>>, DbError> {
    if !filter.is_of_users() || filter.parts().is_some() {
        return Ok(None);
    }
    let mut query = QueryBuilder::new("SELECT ");
    push_users(&mut query, filter);
    let users = query.build_query_scalar().fetch_one(connection).await?;
    Ok(Some(users))
}

/// Appends the array of the users whom a reading is about: whose the token and the token string are
/// that it names, or were where they are no longer on record. Whatever happened to a token names its
/// user; handouts do, too, and outlive neither the record nor the event of its end.
fn push_users(query: &mut QueryBuilder<Postgres>, filter: &EventFilter) {
    let mut sets = query.push("ARRAY(").separated(" INTERSECT ");
    if let Some(user_id) = &filter.user_id {
        sets.push("SELECT ").push_bind_unseparated(user_id.clone());
    }
    if let Some(token_id) = filter.token_id {
        sets.push("(SELECT user_id FROM tokens WHERE id = ")
            .push_bind_unseparated(token_id)
            .push_unseparated(" UNION ALL SELECT user_id FROM audit_events WHERE kind <> 'token.reused' AND token_id = ")
            .push_bind_unseparated(token_id)
            .push_unseparated(" LIMIT 1)");
    }
    if let Some(fingerprint) = &filter.fingerprint {
        sets.push("(SELECT user_id FROM tokens WHERE fingerprint = ")
            .push_bind_unseparated(fingerprint.clone())
            .push_unseparated(" UNION SELECT user_id FROM audit_events WHERE kind <> 'token.reused' AND fingerprint = ")
            .push_bind_unseparated(fingerprint.clone())
            .push_unseparated(")");
    }
    query.push(")");
}

fn push_columns(query: &mut QueryBuilder<Postgres>, reading: Option<&AuditReadRecord>) {
    query.push("SELECT ").push(COLUMNS);
    if reading.is_some() {
        query.push(", (SELECT occurred_at FROM reading) AS read_at");
    }
    query.push(" FROM audit_events");
}

/// What is in the rows themselves, where they are not gone through by part.
fn push_values(query: &mut QueryBuilder<Postgres>, filter: &EventFilter, users: Option<&[String]>) {
    let given = [
        ("user_id", users.unwrap_or_default()),
        ("request_id", filter.request_id.as_slice()),
        ("client", filter.client.as_slice()),
    ];
    for (column, values) in given {
        if !values.is_empty() {
            // As a list, so that the order by a list of one is not left out.
            query.push(format_args!(" AND {column} = ANY("));
            query.push_bind(values.to_vec()).push(")");
        }
    }
    if let Some(kind) = filter.kind {
        // In words, so that the planner sees that the index of all kinds but the frequent one has it.
        query.push(format_args!(" AND kind = ANY('{{{}}}')", kind.name()));
    }
}

/// As functions, which the planner does not take to narrow much: the user has narrowed it.
fn push_token(query: &mut QueryBuilder<Postgres>, filter: &EventFilter) {
    if let Some(token_id) = filter.token_id {
        query.push(" AND uuid_eq(token_id, ");
        query.push_bind(token_id).push(")");
    }
    if let Some(fingerprint) = &filter.fingerprint {
        query.push(" AND texteq(fingerprint, ");
        query.push_bind(fingerprint.clone()).push(")");
    }
}

/// Where the page begins and ends: in time, and after the last event of the one before; returns whether
/// a plan does for other times, too. Between two that it does not know it would expect a two-hundredth
/// of all, and sort what it finds instead of going along an index.
fn push_bounds(
    query: &mut QueryBuilder<Postgres>,
    filter: &EventFilter,
    page: EventPage,
    parts: Option<&'static str>,
) -> bool {
    let before_all_at = |time: DateTime<Utc>| (time, Uuid::nil());
    let after_in = |way| page.after.filter(|_| page.order == way);
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
    start.is_none() || end.is_none()
}

/// Appends the statement that puts a reading on record and returns its time.
pub(super) fn push_insert(query: &mut QueryBuilder<Postgres>, reading: &AuditReadRecord) {
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
