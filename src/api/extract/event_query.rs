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
pub const LIST: [&str; 11] = [
    "userId",
    "tokenId",
    "client",
    "kind",
    "requestId",
    "fingerprint",
    "from",
    "to",
    "order",
    "limit",
    "cursor",
];

/// The query parameters of the export.
pub const EXPORT: [&str; 9] = [
    "userId",
    "tokenId",
    "client",
    "kind",
    "requestId",
    "fingerprint",
    "from",
    "to",
    "format",
];

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
        let [filter @ .., order, limit, cursor] = query::read_parameters(query, LIST, &mut errors);
        let filter = read_filter(filter, &mut errors);
        let order = order.map_or(Some(EventOrder::Desc), |text| {
            errors.check_parameter("order", event_order(&text))
        });
        let limit = errors.check_parameter("limit", query::limit(limit));
        let after = cursor.and_then(|text| {
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
        let [filter @ .., format] = query::read_parameters(query, EXPORT, &mut errors);
        let filter = read_filter(filter, &mut errors);
        let format = format.map_or(Some(EventFormat::Ndjson), |text| {
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
        kind,
        request_id,
        fingerprint,
        from,
        to,
    ]: [Option<String>; 8],
    errors: &mut FieldErrors,
) -> EventFilter {
    let filter = EventFilter {
        user_id: errors.check_optional("userId", user_id, rules::user_id),
        token_id: errors.check_optional("tokenId", token_id, |text| uuid(&text)),
        client: errors.check_optional("client", client, rules::api_key),
        kind: errors.check_optional("kind", kind, event_kind),
        request_id: errors.check_optional("requestId", request_id, rules::printable),
        fingerprint: errors.check_optional("fingerprint", fingerprint, rules::printable),
        ..EventFilter::default()
    };
    let [from, to] = query::time_range(from, to, errors);
    EventFilter { from, to, ..filter }
}

/// Parses a UUID in its 36-character form with hyphens.
pub fn uuid(text: &str) -> Result<Uuid, Detail> {
    Uuid::try_parse(text)
        .ok()
        .filter(|_| text.len() == 36)
        .ok_or(Detail::Borrowed("must be a UUID with hyphens"))
}

fn event_kind(text: String) -> Result<EventKind, Detail> {
    EventKind::from_name(&text).ok_or_else(|| {
        let names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("must be one of {}", names.join(", ")).into()
    })
}

fn event_order(text: &str) -> Result<EventOrder, Detail> {
    match text {
        "asc" => Ok(EventOrder::Asc),
        "desc" => Ok(EventOrder::Desc),
        _ => Err("must be asc or desc".into()),
    }
}
