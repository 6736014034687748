//! The export formats of the audit log, shared by HTTP and the command line.

use chrono::SecondsFormat;
use serde_json::value::RawValue;

use super::EventRef;
use super::named_enum::named_enum;

named_enum! {
    /// The format of an export.
    pub enum EventFormat {
        /// One JSON object per line, with the same members as in a list.
        Ndjson = "ndjson",
        /// RFC 4180 in UTF-8, with a header row. `access` and `detail` are JSON.
        Csv = "csv",
    }
}

/// The header row.
const HEADER: &str = "id,occurredAt,kind,client,requestId,sourceIp,userId,country,bank,access,tokenId,fingerprint,detail\r\n";

impl EventFormat {
    /// Returns the media type.
    pub fn media_type(self) -> &'static str {
        match self {
            EventFormat::Ndjson => "application/x-ndjson",
            EventFormat::Csv => "text/csv; charset=utf-8",
        }
    }

    /// Returns the bytes before the first event, if any.
    pub fn head(self) -> Option<&'static str> {
        (self == EventFormat::Csv).then_some(HEADER)
    }

    /// Appends one event.
    pub fn push(self, out: &mut Vec<u8>, event: &EventRef<'_>) {
        match self {
            EventFormat::Ndjson => {
                push_json(out, event);
                out.push(b'\n');
            }
            EventFormat::Csv => push_record(out, event),
        }
    }
}

/// Appends the event as JSON.
pub fn push_json(out: &mut Vec<u8>, event: &EventRef<'_>) {
    serde_json::to_writer(out, event).expect("an event can be serialized");
}

fn push_record(out: &mut Vec<u8>, event: &EventRef<'_>) {
    let access = event.access.map(|access| serde_json::to_string(&access));
    let cells = [
        &event.id.to_string(),
        &event
            .occurred_at
            .to_rfc3339_opts(SecondsFormat::AutoSi, true),
        event.kind,
        event.client.unwrap_or_default(),
        event.request_id.unwrap_or_default(),
        event.source_ip.unwrap_or_default(),
        event.user_id.unwrap_or_default(),
        event.country.unwrap_or_default(),
        event.bank.unwrap_or_default(),
        &access
            .transpose()
            .expect("access can be serialized")
            .unwrap_or_default(),
        &event.token_id.map(|id| id.to_string()).unwrap_or_default(),
        event.fingerprint.unwrap_or_default(),
        event.detail.map(RawValue::get).unwrap_or_default(),
    ];
    let cells: Vec<_> = cells.iter().map(|cell| csv_cell(cell)).collect();
    out.extend(cells.join(",").into_bytes());
    out.extend(b"\r\n");
}

/// Returns the text as a CSV cell, quoted where RFC 4180 §2 requires it.
///
/// A leading apostrophe stops spreadsheets from running text as a formula.
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
    fn csv_cells_are_quoted_and_never_formulas() {
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
