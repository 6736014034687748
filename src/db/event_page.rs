//! The SQL statement of a page of the audit log.
//!
//! A page is read along one index, its access path. The path is the first of request, user, kind, client and
//! time that the filter names. Each index ends in `(occurred_at, id)`, the order of the pages, so Postgres
//! needs no sort and stops at the end of the page.
//!
//! The statement must be planned for its values (`plan_cache_mode = force_custom_plan`), because a user may
//! have three events or a hundred thousand. `tests/it/audit_plans.rs` checks the query plans over a million
//! events.

use chrono::{DateTime, Utc};
use serde::Serialize;
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
    /// The kind of the event.
    pub kind: Option<EventKind>,
    /// The request that caused the event.
    pub request_id: Option<String>,
    /// The fingerprint of the token string.
    pub fingerprint: Option<String>,
    /// The start of the time range, inclusive.
    pub from: Option<DateTime<Utc>>,
    /// The end of the time range, exclusive.
    pub to: Option<DateTime<Utc>>,
}

impl EventFilter {
    /// Returns the column whose index is the access path. None stands for the index by time.
    fn path_column(&self) -> Option<&'static str> {
        // The index by kind excludes reuses, because most events are reuses.
        let is_indexed = |kind| kind != EventKind::TokenReused;
        if self.request_id.is_some() {
            Some("request_id")
        } else if self.user_id.is_some() {
            Some("user_id")
        } else if self.kind.is_some_and(is_indexed) {
            Some("kind")
        } else if self.client.is_some() {
            Some("client")
        } else {
            None
        }
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

/// Finds the users of the filter's token and fingerprint. Returns the filter once for each user.
///
/// A page by token or fingerprint is read along the index by user, because a handout has no index entry of
/// its own for them. Returns the filter unchanged if it names neither, and nothing if no event can match.
pub async fn split_by_user(
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

/// Appends the statement that reads a page of one of the filters from [`split_by_user`].
pub fn push_page(query: &mut QueryBuilder<Postgres>, filter: &EventFilter, page: EventPage) {
    let (direction, beyond) = match page.order {
        EventOrder::Asc => ("ASC", '>'),
        EventOrder::Desc => ("DESC", '<'),
    };
    let path_column = filter.path_column();
    query.push(select(page.with_names)).push(" WHERE true");
    let kind = filter.kind.map(|kind| kind.name().to_owned());
    for (column, value) in [
        ("request_id", &filter.request_id),
        ("user_id", &filter.user_id),
        ("kind", &kind),
        ("client", &filter.client),
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
