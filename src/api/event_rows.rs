//! The trail as a file: a row for each event, the same from HTTP and from the command line.

use chrono::SecondsFormat;
use serde::Serialize;

use crate::model::AuditEvent;
use crate::model::failure::from_names;

from_names! {
    /// How an export is written.
    pub enum EventFormat {
        /// A JSON object a line, the items of the list.
        Ndjson = "ndjson",
        /// RFC 4180, UTF-8, with a header row; access and detail are JSON in their cells.
        Csv = "csv",
    }
}

/// The header row.
const HEADER: &str = "id,occurredAt,kind,client,requestId,sourceIp,userId,country,bank,access,tokenId,fingerprint,detail\r\n";

impl EventFormat {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            EventFormat::Ndjson => "application/x-ndjson",
            EventFormat::Csv => "text/csv; charset=utf-8",
        }
    }

    /// What comes before the first event.
    pub fn head(self) -> Option<&'static str> {
        (self == EventFormat::Csv).then_some(HEADER)
    }

    /// The rows of these events.
    pub fn rows(self, events: &[AuditEvent]) -> Vec<u8> {
        let mut out = Vec::with_capacity(events.len() * 400);
        for event in events {
            match self {
                EventFormat::Ndjson => {
                    serde_json::to_writer(&mut out, event).expect("an event has a JSON form");
                    out.push(b'\n');
                }
                EventFormat::Csv => push_record(&mut out, event),
            }
        }
        out
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("an event has a JSON form")
}

fn push_record(out: &mut Vec<u8>, event: &AuditEvent) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let cells = [
        event.id.to_string(),
        event
            .occurred_at
            .to_rfc3339_opts(SecondsFormat::AutoSi, true),
        event.kind.clone(),
        text(&event.client),
        text(&event.request_id),
        text(&event.source_ip),
        text(&event.user_id),
        text(&event.country),
        text(&event.bank),
        event.access.as_ref().map(json).unwrap_or_default(),
        event.token_id.map(|id| id.to_string()).unwrap_or_default(),
        text(&event.fingerprint),
        event.detail.as_ref().map(json).unwrap_or_default(),
    ];
    let cells: Vec<_> = cells.iter().map(|cell| csv_cell(cell)).collect();
    out.extend(cells.join(",").into_bytes());
    out.extend(b"\r\n");
}

/// A cell that no spreadsheet takes for a formula, quoted where RFC 4180 §2 asks for it.
fn csv_cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = format!("{}{text}", if is_formula { "'" } else { "" });
    match text.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_harmless_and_quoted() {
        for (text, cell) in [
            ("", ""),
            ("a b", "a b"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("a\nb", "\"a\nb\""),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\tx", "'\tx"),
            ("\rx", "\"'\rx\""),
            ("=\"a\",b", "\"'=\"\"a\"\",b\""),
            ("a=1", "a=1"),
        ] {
            assert_eq!(csv_cell(text), cell, "{text:?}");
        }
    }
}
