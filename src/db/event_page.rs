//! The SQL statement of a page of the audit log.
//!
//! A page is read along one index, its access path. The path is the first of request, user, kind, client and
//! time that the filter names. Each index ends in `(occurred_at, id)`, the order of the pages, so Postgres
//! needs no sort and stops at the end of the page. A page of several kinds is read along the time if the next events
//! have enough of them. Otherwise it merges one read for each kind.
//!
//! The statement must be planned for its values (`plan_cache_mode = force_custom_plan`), because a user may
//! have three events or a hundred thousand. `tests/it/audit_plans.rs` checks the query plans over a million
//! events.

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::DbError;
use crate::model::EventKind;

/// Conditions on events, joined by AND. An absent condition matches every event.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventFilter {
    /// The user of the event.
    pub user_id: Option<String>,
    /// The token of the event.
    pub token_id: Option<Uuid>,
    /// The API key of the caller.
    pub client: Option<String>,
    /// The names of the kinds, joined by OR. Empty for every kind.
    #[serde(rename = "kind", serialize_with = "serialize_names")]
    pub kinds: Vec<String>,
    /// The names of the kinds whose events do not match.
    #[serde(
        rename = "excludeKind",
        serialize_with = "serialize_names",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub excluded_kinds: Vec<String>,
    /// The request that caused the event.
    pub request_id: Option<String>,
    /// The fingerprint of the token string.
    pub fingerprint: Option<String>,
    /// The start of the time range, inclusive.
    pub from: Option<DateTime<Utc>>,
    /// The end of the time range, exclusive.
    pub to: Option<DateTime<Utc>>,
}

/// Serializes a single name as a text, several as an array and none as null.
fn serialize_names<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    match names {
        [] => serializer.serialize_none(),
        [name] => serializer.serialize_str(name),
        names => names.serialize(serializer),
    }
}

impl EventFilter {
    /// Matches the events of one kind.
    pub fn of_kind(kind: EventKind) -> Self {
        EventFilter {
            kinds: vec![kind.name().into()],
            ..EventFilter::default()
        }
    }

    /// Returns the column whose index is the access path, and its value. None stands for the index by time.
    fn path(&self) -> Option<(&'static str, &str)> {
        let kind = match &self.kinds[..] {
            // The index by kind excludes reuses, because most events are reuses.
            [kind] if kind != EventKind::TokenReused.name() => Some(kind),
            _ => None,
        };
        [
            ("request_id", self.request_id.as_ref()),
            ("user_id", self.user_id.as_ref()),
            ("kind", kind),
            ("client", self.client.as_ref()),
        ]
        .into_iter()
        .find_map(|(column, value)| Some((column, value?.as_str())))
    }
}

/// The order of events by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventOrder {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

impl EventOrder {
    /// Returns the direction in SQL, and the comparison that finds later rows of the order.
    fn sql(self) -> (&'static str, char) {
        match self {
            EventOrder::Asc => ("ASC", '>'),
            EventOrder::Desc => ("DESC", '<'),
        }
    }
}

/// The position and the size of a page (keyset pagination).
#[derive(Clone, Copy, Debug)]
pub struct EventPage {
    /// The order of the events.
    pub order: EventOrder,
    /// The time and id of the last event of the previous page.
    pub after: Option<(DateTime<Utc>, Uuid)>,
    /// The maximum number of events.
    pub limit: i64,
    /// True to read the names of the clients too.
    pub with_names: bool,
}

/// Returns filters that the indexes serve. Each event that matches the given filter matches one of them.
pub async fn split(
    connection: &mut PgConnection,
    filter: &EventFilter,
) -> Result<Vec<EventFilter>, DbError> {
    let mut filters = split_by_user(connection, filter).await?;
    for filter in &mut filters {
        if filter.kinds.is_empty() {
            // The index of a request, a user or a client passes few events of other kinds.
            if filter.excluded_kinds.is_empty() || filter.path().is_some() {
                continue;
            }
            filter.kinds = list_kinds(connection).await?;
        }
        let excluded = std::mem::take(&mut filter.excluded_kinds);
        filter.kinds.retain(|kind| !excluded.contains(kind));
        if filter.kinds.is_empty() {
            return Ok(vec![]);
        }
    }
    Ok(filters)
}

/// Lists the kinds of all events, including kinds that a later version added.
///
/// Reads one entry of the index by kind for each kind.
async fn list_kinds(connection: &mut PgConnection) -> Result<Vec<String>, DbError> {
    let mut kinds = vec![EventKind::TokenReused.name().to_owned()];
    let mut last = String::new();
    loop {
        let next = sqlx::query_scalar!(
            "SELECT kind FROM audit_events WHERE kind <> 'token.reused' AND kind > $1 ORDER BY kind LIMIT 1",
            last
        );
        let Some(next) = next.fetch_optional(&mut *connection).await? else {
            return Ok(kinds);
        };
        kinds.push(next.clone());
        last = next;
    }
}

/// Finds the users of the filter's token and fingerprint. Returns the filter once for each user.
///
/// A page by token or fingerprint is read along the index by user, because a handout has no index entry of
/// its own for them. Returns the filter unchanged if it names neither, and nothing if no event can match.
async fn split_by_user(
    connection: &mut PgConnection,
    filter: &EventFilter,
) -> Result<Vec<EventFilter>, DbError> {
    let mut users = filter.user_id.clone().map(|user_id| vec![user_id]);
    // Both statements also search the events, because retention removes the token before its events.
    if let Some(token_id) = filter.token_id {
        let owner = sqlx::query_scalar!(
            r#"SELECT user_id AS "user_id!" FROM tokens WHERE id = $1
               UNION ALL
               SELECT user_id FROM audit_events WHERE kind <> 'token.reused' AND token_id = $1
               LIMIT 1"#,
            token_id
        );
        let owner = owner.fetch_all(&mut *connection).await?;
        users = Some(intersect(users, owner));
    }
    if let Some(fingerprint) = &filter.fingerprint {
        let owners = sqlx::query_scalar!(
            r#"SELECT user_id AS "user_id!" FROM tokens WHERE fingerprint = $1
               UNION
               SELECT user_id FROM audit_events WHERE kind <> 'token.reused' AND fingerprint = $1"#,
            fingerprint
        );
        let owners = owners.fetch_all(&mut *connection).await?;
        users = Some(intersect(users, owners));
    }
    let Some(users) = users else {
        return Ok(vec![filter.clone()]);
    };
    let with_user = |user_id| EventFilter {
        user_id: Some(user_id),
        ..filter.clone()
    };
    Ok(users.into_iter().map(with_user).collect())
}

fn intersect(users: Option<Vec<String>>, mut owners: Vec<String>) -> Vec<String> {
    owners.retain(|owner| users.as_ref().is_none_or(|users| users.contains(owner)));
    owners
}

/// Returns the start of a statement that reads events, with the columns in the order of `audit_events::read_event`.
pub(super) fn select(with_names: bool) -> String {
    // The key of `clients` finds the name of each row of the page.
    let name = match with_names {
        true => "(SELECT c.name FROM clients c WHERE c.api_key = audit_events.client)",
        false => "NULL::text",
    };
    format!(
        "SELECT id, occurred_at, kind, client, request_id, source_ip, user_id, country, bank, access, token_id,
                fingerprint, detail, {name}
         FROM audit_events"
    )
}

/// The length of a walk, in pages. A walk passes the events of other kinds, a merge plans one read for each kind.
const WALK: i64 = 2;

/// Appends the statement that reads a page from the next events of all kinds. The page is complete if it is full.
///
/// Returns false if there is a better access path than time, or if the filter names no or one kind.
pub fn push_walk(
    query: &mut QueryBuilder<Postgres>,
    filter: &EventFilter,
    page: EventPage,
) -> bool {
    let of_all_kinds = EventFilter {
        kinds: vec![],
        excluded_kinds: vec![],
        ..filter.clone()
    };
    let names_token = filter.token_id.is_some() || filter.fingerprint.is_some();
    let names_kinds = match filter.kinds.len() {
        0 => !filter.excluded_kinds.is_empty(),
        count => count > 1,
    };
    if of_all_kinds.path().is_some() || names_token || !names_kinds {
        return false;
    }
    let walk = EventPage {
        limit: WALK * page.limit,
        ..page
    };
    query.push("SELECT * FROM (");
    push_read(query, &of_all_kinds, walk);
    query.push(") AS walk WHERE true");
    push_kinds(query, filter);
    push_order(query, page);
    true
}

/// Appends the statement that reads a page of one of the filters from [`split`].
pub fn push_page(query: &mut QueryBuilder<Postgres>, filter: &EventFilter, page: EventPage) {
    let is_along_other_index = filter.request_id.is_some() || filter.user_id.is_some();
    if filter.kinds.len() < 2 || is_along_other_index {
        return push_read(query, filter, page);
    }
    query.push("SELECT * FROM (");
    for (index, kind) in filter.kinds.iter().enumerate() {
        let of_kind = EventFilter {
            kinds: vec![kind.clone()],
            ..filter.clone()
        };
        query.push(if index > 0 { " UNION ALL " } else { "" });
        query.push("(SELECT * FROM (");
        push_read(query, &of_kind, page);
        query.push(") AS of_kind");
        if let Some((column, value)) = of_kind.path() {
            // All rows have this value. The condition tells Postgres that they are in order without the column, so
            // it merges the reads row by row and ends them with the page.
            query.push(format_args!(" WHERE {column} = "));
            query.push_bind(value.to_owned());
        }
        push_order(query, page);
        query.push(")");
    }
    query.push(") AS merged");
    push_order(query, page);
}

fn push_order(query: &mut QueryBuilder<Postgres>, page: EventPage) {
    let (direction, _) = page.order.sql();
    query.push(format_args!(
        " ORDER BY occurred_at {direction}, id {direction} LIMIT "
    ));
    query.push_bind(page.limit);
}

/// Appends the conditions on kinds, except that of a single kind.
fn push_kinds(query: &mut QueryBuilder<Postgres>, filter: &EventFilter) {
    if filter.kinds.len() > 1 {
        query.push(" AND kind = ANY(");
        query.push_bind(filter.kinds.clone()).push(")");
    }
    if !filter.excluded_kinds.is_empty() {
        query.push(" AND kind <> ALL(");
        query.push_bind(filter.excluded_kinds.clone()).push(")");
    }
}

/// Appends the statement that reads a page along one index.
fn push_read(query: &mut QueryBuilder<Postgres>, filter: &EventFilter, page: EventPage) {
    let (direction, beyond) = page.order.sql();
    let path_column = filter.path().map(|(column, _)| column);
    query.push(select(page.with_names)).push(" WHERE true");
    let kind = match &filter.kinds[..] {
        [kind] => Some(kind),
        _ => None,
    };
    for (column, value) in [
        ("request_id", filter.request_id.as_ref()),
        ("user_id", filter.user_id.as_ref()),
        ("kind", kind),
        ("client", filter.client.as_ref()),
    ] {
        let Some(value) = value else { continue };
        query.push(format_args!(" AND {column} = "));
        if path_column == Some(column) {
            // With `column = $1`, Postgres would drop the column from ORDER BY and could walk the index by
            // time through the events of everybody else.
            query.push("ANY(ARRAY[").push_bind(value.clone()).push("])");
        } else {
            query.push_bind(value.clone());
        }
    }
    push_kinds(query, filter);
    // With a bare `=`, the planner would take token and user as independent, expect too few events, and sort
    // all events of the user.
    if let Some(token_id) = filter.token_id {
        query.push(" AND coalesce(token_id = ");
        query.push_bind(token_id).push(", false)");
    }
    if let Some(fingerprint) = &filter.fingerprint {
        query.push(" AND coalesce(fingerprint = ");
        query.push_bind(fingerprint.clone()).push(", false)");
    }
    if let Some(from) = filter.from {
        query.push(" AND occurred_at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" AND occurred_at < ").push_bind(to);
    }
    if let Some((at, id)) = page.after {
        // The comparison of rows does not exclude partitions. The comparison of times does.
        query.push(format_args!(" AND occurred_at {beyond}= "));
        query.push_bind(at);
        query.push(format_args!(" AND (occurred_at, id) {beyond} ("));
        query.push_bind(at).push(", ").push_bind(id).push(")");
    }
    query.push(" ORDER BY ");
    if let Some(column) = path_column {
        query.push(format_args!("{column} {direction}, "));
    }
    query.push(format_args!(
        "occurred_at {direction}, id {direction} LIMIT "
    ));
    query.push_bind(page.limit);
}
