//! The query strings of `/audit/events` and its export.

use uuid::Uuid;

use super::cursor::Cursor;
use super::query;
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::db::event_page::{EventFilter, EventOrder};
use crate::model::EventKind;
use crate::model::event_format::EventFormat;
use crate::model::rules;

/// The query parameters of the list.
pub const LIST: [&str; 12] = [
    "userId",
    "tokenId",
    "client",
    "kind",
    "excludeKind",
    "requestId",
    "fingerprint",
    "from",
    "to",
    "order",
    "limit",
    "cursor",
];

/// The query parameters of the export.
pub const EXPORT: [&str; 10] = [
    "userId",
    "tokenId",
    "client",
    "kind",
    "excludeKind",
    "requestId",
    "fingerprint",
    "from",
    "to",
    "format",
];

/// The parameters of both that may be repeated. Their values are joined by OR.
pub const REPEATABLE: [&str; 2] = ["kind", "excludeKind"];

/// The query of `GET /audit/events`.
#[derive(Debug)]
pub struct ListEvents {
    /// Selects the events.
    pub filter: EventFilter,
    /// The order. The default is newest first.
    pub order: EventOrder,
    /// The size of a page, 1…500.
    pub limit: u32,
    /// The last event of the previous page.
    pub after: Option<Cursor>,
}

impl ListEvents {
    /// Parses the query string. Returns every field error.
    pub fn from_query(query: &str) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::default();
        let [filter @ .., order, limit, cursor] =
            query::read_repeatable(query, LIST, &REPEATABLE, &mut errors);
        let filter = read_filter(filter, &mut errors);
        let order = first(order).map_or(Some(EventOrder::Desc), |text| {
            errors.check_parameter("order", event_order(&text))
        });
        let limit = errors.check_parameter("limit", query::limit(first(limit)));
        let after = first(cursor).and_then(|text| {
            errors.check_parameter("cursor", Cursor::decode(&text, &(&filter, order)))
        });
        let query = order.zip(limit).map(|(order, limit)| ListEvents {
            filter,
            order,
            limit,
            after,
        });
        errors.into_result(query)
    }

    /// Encodes a cursor for this query.
    pub fn encode_cursor(&self, cursor: Cursor) -> String {
        cursor.encode(&(&self.filter, self.order))
    }
}

/// The query of `GET /audit/events/export`.
#[derive(Debug)]
pub struct ExportEvents {
    /// Selects the events.
    pub filter: EventFilter,
    /// The format. The default is NDJSON.
    pub format: EventFormat,
}

impl ExportEvents {
    /// Parses the query string. Returns every field error.
    pub fn from_query(query: &str) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::default();
        let [filter @ .., format] = query::read_repeatable(query, EXPORT, &REPEATABLE, &mut errors);
        let filter = read_filter(filter, &mut errors);
        let format = first(format).map_or(Some(EventFormat::Ndjson), |text| {
            let format = EventFormat::from_name(&text);
            errors.check_parameter("format", format.ok_or("must be ndjson or csv".into()))
        });
        errors.into_result(format.map(|format| ExportEvents { filter, format }))
    }
}

fn read_filter(
    [
        user_id,
        token_id,
        client,
        kinds,
        excluded_kinds,
        request_id,
        fingerprint,
        from,
        to,
    ]: [Vec<String>; 9],
    errors: &mut FieldErrors,
) -> EventFilter {
    let filter = EventFilter {
        user_id: errors.check_optional("userId", first(user_id), rules::user_id),
        token_id: errors.check_optional("tokenId", first(token_id), |text| uuid(&text)),
        client: errors.check_optional("client", first(client), rules::api_key),
        kinds: event_kinds("kind", kinds, errors),
        excluded_kinds: event_kinds("excludeKind", excluded_kinds, errors),
        request_id: errors.check_optional("requestId", first(request_id), rules::printable),
        fingerprint: errors.check_optional("fingerprint", first(fingerprint), rules::printable),
        ..EventFilter::default()
    };
    let [from, to] = query::time_range(first(from), first(to), errors);
    EventFilter { from, to, ..filter }
}

/// Returns the value of a parameter that is not repeatable.
fn first(values: Vec<String>) -> Option<String> {
    values.into_iter().next()
}

/// Parses a UUID in its 36-character form with hyphens.
pub fn uuid(text: &str) -> Result<Uuid, Detail> {
    Uuid::try_parse(text)
        .ok()
        .filter(|_| text.len() == 36)
        .ok_or(Detail::Borrowed("must be a UUID with hyphens"))
}

/// Parses the names of kinds. Sorts them and removes duplicates, because a cursor belongs to the set of kinds.
fn event_kinds(name: &str, mut values: Vec<String>, errors: &mut FieldErrors) -> Vec<String> {
    values.sort_unstable();
    values.dedup();
    if values
        .iter()
        .any(|value| EventKind::from_name(value).is_none())
    {
        let names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        errors.add_parameter(name, format!("must be one of {}", names.join(", ")));
    }
    values
}

fn event_order(text: &str) -> Result<EventOrder, Detail> {
    match text {
        "asc" => Ok(EventOrder::Asc),
        "desc" => Ok(EventOrder::Desc),
        _ => Err("must be asc or desc".into()),
    }
}
