//! The trail as it is read, and events that stand by themselves.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::DbError;
use crate::model::{Access, AuditEvent, Caller, EventKind};

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

/// At most `limit` events in that order, those that come after the given (occurred at, id).
pub async fn list_events(
    pool: &PgPool,
    filter: &EventFilter,
    order: EventOrder,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<AuditEvent>, DbError> {
    let tokens = match &filter.fingerprint {
        Some(fingerprint) => Some(list_tokens_of(pool, fingerprint).await?),
        None => None,
    };
    if tokens.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new("");
    push_select(&mut query, filter, tokens.as_deref(), order, after, limit);
    // A plan that is kept is for any value. Of most users, tokens and requests there are a few
    // events and of some a hundred thousand, and which of two conditions narrows more differs, too:
    // those are planned for the values at hand.
    let is_kept = filter.user_id.is_none()
        && filter.token_id.is_none()
        && filter.request_id.is_none()
        && filter.fingerprint.is_none()
        && (filter.client.is_none() || filter.kind.is_none());
    let query = query.build_query_as().persistent(is_kept);
    let rows: Vec<EventRow> = query.fetch_all(pool).await?;
    Ok(rows.into_iter().map(|EventRow(event)| event).collect())
}

/// The tokens of a fingerprint, those included that are no longer on record: whatever happened to
/// one names it. Handouts do, too, and outlive neither the record nor the event of its end.
pub async fn list_tokens_of(pool: &PgPool, fingerprint: &str) -> Result<Vec<Uuid>, DbError> {
    let ids = sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM tokens WHERE fingerprint = $1
           UNION
           SELECT token_id FROM audit_events
           WHERE fingerprint = $1 AND kind <> 'token.reused' AND token_id IS NOT NULL"#,
        fingerprint
    );
    Ok(ids.fetch_all(pool).await?)
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

    /// The next events; none once there are no more.
    pub async fn next(&mut self, pool: &PgPool) -> Result<Vec<AuditEvent>, DbError> {
        if self.is_over {
            return Ok(Vec::new());
        }
        let page = list_events(pool, &self.filter, EventOrder::Asc, self.after, PAGE).await?;
        self.after = page.last().map(|event| (event.occurred_at, event.id));
        self.is_over = page.len() < PAGE as usize;
        Ok(page)
    }
}

/// Appends the statement of [`list_events`], the tokens of the filter's fingerprint given.
///
/// It is ordered by what narrows it most, too, of which there is one value: no other index than the
/// one made for that gives this order. Without it the planner, which does not know that a user was
/// busy last month, may look for their events through everybody's newest.
pub fn push_select(
    query: &mut QueryBuilder<Postgres>,
    filter: &EventFilter,
    tokens: Option<&[Uuid]>,
    order: EventOrder,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) {
    let token_id = filter.token_id.or(match tokens {
        // Nearly always.
        Some(&[token]) => Some(token),
        _ => None,
    });
    let rare_kind = filter.kind.filter(|kind| *kind != EventKind::TokenReused);
    let narrowest = [
        ("token_id", token_id.is_some()),
        ("request_id", filter.request_id.is_some()),
        ("user_id", filter.user_id.is_some()),
        ("kind", rare_kind.is_some()),
        ("client", filter.client.is_some()),
    ];
    let narrowest = narrowest.into_iter().find(|(_, is_given)| *is_given);
    let narrowest = narrowest.map(|(column, _)| column);

    query.push(
        "SELECT id, occurred_at, kind, client, request_id, source_ip, user_id, country, bank, access, token_id, fingerprint, detail FROM audit_events WHERE true",
    );
    let mut equals = |column: &str, text: Option<&str>, narrows: bool| {
        let Some(text) = text else { return };
        // As a list of one, so that the order by it is not left out; or as a function, which the
        // planner does not take to narrow much what the others leave.
        if narrows {
            query.push(format_args!(" AND {column} = ANY("));
            query.push_bind([text.to_owned()]).push(")");
        } else {
            query.push(format_args!(" AND texteq({column}, "));
            query.push_bind(text.to_owned()).push(")");
        }
    };
    // A token has one user and one fingerprint.
    let is_of_token = filter.token_id.is_some() || tokens.is_some();
    equals("user_id", filter.user_id.as_deref(), !is_of_token);
    equals("fingerprint", filter.fingerprint.as_deref(), false);
    equals("client", filter.client.as_deref(), true);
    equals("request_id", filter.request_id.as_deref(), true);
    if let Some(kind) = filter.kind {
        // In words, so that the planner sees that the index of all kinds but the frequent one has it.
        query.push(format_args!(" AND kind = ANY('{{{}}}')", kind.name()));
    }
    for tokens in [filter.token_id.as_slice(), tokens.unwrap_or_default()] {
        if !tokens.is_empty() {
            query
                .push(" AND token_id = ANY(")
                .push_bind(tokens.to_vec());
            query.push(")");
        }
    }
    if let Some(from) = filter.from {
        query.push(" AND occurred_at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" AND occurred_at < ").push_bind(to);
    }
    let (beyond, direction) = match order {
        EventOrder::Asc => (">", "ASC"),
        EventOrder::Desc => ("<", "DESC"),
    };
    if let Some((at, id)) = after {
        // The first condition is the one that rules out partitions.
        query.push(format_args!(" AND occurred_at {beyond}= "));
        query.push_bind(at);
        query.push(format_args!(" AND (occurred_at, id) {beyond} ("));
        query.push_bind(at).push(", ").push_bind(id).push(")");
    }
    query.push(" ORDER BY ");
    if let Some(column) = narrowest {
        query.push(format_args!("{column} {direction}, "));
    }
    // Of a limit that it does not know, a plan that is kept would expect a tenth of all.
    query.push(format_args!(
        "occurred_at {direction}, id {direction} LIMIT {limit}"
    ));
}

struct EventRow(AuditEvent);

/// By position, and as the types that the schema has: names and types would be looked up again for
/// each row.
impl FromRow<'_, PgRow> for EventRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let user_id: String = row.try_get_unchecked(6)?;
        let access: Option<i16> = row.try_get_unchecked(9)?;
        Ok(EventRow(AuditEvent {
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
            detail: row.try_get_unchecked(12)?,
        }))
    }
}

/// Writes an event that is about no token, and returns its time. Members of the detail that are
/// null are left out.
pub async fn insert_event(
    pool: &PgPool,
    kind: EventKind,
    caller: Option<&Caller>,
    detail: &Value,
) -> Result<DateTime<Utc>, DbError> {
    let occurred_at = sqlx::query_scalar!(
        "INSERT INTO audit_events (id, occurred_at, kind, client, request_id, source_ip, detail)
         VALUES ($1, clock_timestamp(), $2, $3, $4, $5, jsonb_strip_nulls($6))
         RETURNING occurred_at",
        Uuid::now_v7(),
        kind.name(),
        caller.map(|caller| &*caller.client),
        caller.map(|caller| &*caller.request_id),
        caller.and_then(|caller| caller.source_ip.as_deref()),
        detail,
    )
    .fetch_one(pool)
    .await?;
    Ok(occurred_at)
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
