//! The query strings of the audit trail.

use uuid::Uuid;

use super::cursor::Cursor;
use super::{fields, query};
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::db::event_page::{EventFilter, EventOrder};
use crate::model::EventKind;
use crate::model::event_format::EventFormat;

/// The parameters of the list.
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

/// The parameters of the export.
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

/// The longest client, request id and fingerprint, in characters.
pub const MAX_NAME: usize = 128;

/// The query of `GET /audit/events`.
#[derive(Debug)]
pub struct ListEvents {
    /// What it is narrowed to.
    pub filter: EventFilter,
    /// Newest first unless it says.
    pub order: EventOrder,
    /// The size of a page, 1…500.
    pub limit: u32,
    /// The last event of the page before.
    pub after: Option<Cursor>,
}

impl ListEvents {
    /// Reads it, and names all that is wrong with it.
    pub fn from_query(query: &str) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::default();
        let [u, t, c, k, r, f, from, to, order, limit, cursor] =
            query::parameters(query, LIST, &mut errors);
        let filter = read_filter([u, t, c, k, r, f, from, to], &mut errors);
        let order = order.map_or(Some(EventOrder::Desc), |text| {
            errors.query("order", event_order(&text))
        });
        let limit = errors.query("limit", query::limit(limit));
        let after = cursor
            .and_then(|text| errors.query("cursor", Cursor::decode(&text, &(&filter, order))));
        let query = order.zip(limit).map(|(order, limit)| ListEvents {
            filter,
            order,
            limit,
            after,
        });
        errors.check(query)
    }

    /// The text of a cursor of this very query.
    pub fn cursor(&self, cursor: Cursor) -> String {
        cursor.encode(&(&self.filter, self.order))
    }
}

/// The query of `GET /audit/events/export`.
#[derive(Debug)]
pub struct ExportEvents {
    /// What it is narrowed to.
    pub filter: EventFilter,
    /// NDJSON unless it says.
    pub format: EventFormat,
}

impl ExportEvents {
    /// Reads it, and names all that is wrong with it.
    pub fn from_query(query: &str) -> Result<Self, FieldErrors> {
        let mut errors = FieldErrors::default();
        let [u, t, c, k, r, f, from, to, format] = query::parameters(query, EXPORT, &mut errors);
        let filter = read_filter([u, t, c, k, r, f, from, to], &mut errors);
        let format = format.map_or(Some(EventFormat::Ndjson), |text| {
            let format = EventFormat::from_name(&text);
            errors.query("format", format.ok_or("must be ndjson or csv".into()))
        });
        errors.check(format.map(|format| ExportEvents { filter, format }))
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
        user_id: user_id.and_then(|text| errors.query("userId", fields::user_id(text))),
        token_id: token_id.and_then(|text| errors.query("tokenId", uuid(&text))),
        client: client.and_then(|text| errors.query("client", client_key(text))),
        kind: kind.and_then(|text| errors.query("kind", event_kind(&text))),
        request_id: request_id.and_then(|text| errors.query("requestId", printable(text))),
        fingerprint: fingerprint.and_then(|text| errors.query("fingerprint", printable(text))),
        from: from.and_then(|text| errors.query("from", query::timestamp(&text))),
        to: to.and_then(|text| errors.query("to", query::timestamp(&text))),
    };
    if let (Some(from), Some(to)) = (filter.from, filter.to)
        && from > to
    {
        errors.parameter("to", "must not lie before from");
    }
    filter
}

/// A UUID in its usual form, with hyphens.
pub fn uuid(text: &str) -> Result<Uuid, Detail> {
    Uuid::try_parse(text)
        .ok()
        .filter(|_| text.len() == 36)
        .ok_or(Detail::Borrowed("must be a UUID"))
}

fn client_key(text: String) -> Result<String, Detail> {
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !(1..=MAX_NAME).contains(&text.len()) || !text.bytes().all(is_key) {
        return Err("must be an API key: letters, digits, _ and -".into());
    }
    Ok(text)
}

fn event_kind(text: &str) -> Result<EventKind, Detail> {
    EventKind::from_name(text).ok_or_else(|| {
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

/// What a request id may be, and more than a fingerprint may.
fn printable(text: String) -> Result<String, Detail> {
    let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !(1..=MAX_NAME).contains(&text.len()) || !is_printable {
        return Err(format!("must have 1 to {MAX_NAME} printable ASCII characters").into());
    }
    Ok(text)
}
