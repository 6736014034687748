//! The file formats of an audit export. HTTP and the command line write the same bytes.

use chrono::SecondsFormat;
use serde_json::value::RawValue;

use super::EventRef;
use super::named_enum::named_enum;

named_enum! {
    /// The format of an export.
    pub enum EventFormat {
        /// One JSON object per line: the entry of the sealed log, which has no `clientName`.
        Ndjson = "ndjson",
        /// RFC 4180 in UTF-8, with a header row. `access` and `detail` are JSON.
        Csv = "csv",
    }
}

/// The header row of a CSV file.
const HEADER: &str = "id,occurredAt,kind,client,requestId,sourceIp,userId,country,bank,access,tokenId,fingerprint,detail,clientName\r\n";

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

/// Appends the event as an item of a page: its JSON, with the name of the client.
pub fn push_item(out: &mut Vec<u8>, event: &EventRef<'_>) {
    push_json(out, event);
    out.pop();
    out.extend(b",\"clientName\":");
    serde_json::to_writer(&mut *out, &event.client_name).expect("a text can be serialized");
    out.push(b'}');
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
        event.client_name.unwrap_or_default(),
    ];
    let cells: Vec<_> = cells.iter().map(|cell| csv_cell(cell)).collect();
    out.extend(cells.join(",").into_bytes());
    out.extend(b"\r\n");
}

/// Returns the text as a CSV cell, quoted where RFC 4180 section 2 requires it.
///
/// Prefixes a text that a spreadsheet would run as a formula with a single quote (OWASP, CSV injection).
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
    use crate::model::{Access, AuditEvent};

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

    /// The entries of the sealed log are these bytes, so they may never change.
    #[test]
    fn the_encoding_of_an_event_is_fixed() {
        let event = AuditEvent {
            id: "01a204ea-98b4-7d02-8f2e-3a9b1c64d57e".parse().unwrap(),
            occurred_at: "2026-11-22T09:39:08.177301Z".parse().unwrap(),
            kind: "token.minted",
            client: Some("checkout"),
            client_name: Some("a name is no part of the entry"),
            request_id: Some("a\"b\\c\u{1f}/\u{7f}"),
            source_ip: Some("2001:db8::1"),
            user_id: Some("ž\u{1f600}"),
            country: Some("LT"),
            bank: None,
            access: Some(Access::from_bits(5)),
            token_id: Some("01a204ea-985b-7711-8188-6bde09e642c2".parse().unwrap()),
            fingerprint: Some("ab12"),
            detail: Some(serde_json::from_str(r#"{"attempts": 1, "latencyMs": 12}"#).unwrap()),
        };
        let bare = AuditEvent {
            occurred_at: "2026-11-22T09:39:08Z".parse().unwrap(),
            client: None,
            request_id: None,
            source_ip: None,
            user_id: None,
            country: None,
            access: None,
            token_id: None,
            fingerprint: None,
            detail: None,
            ..event
        };
        let line = |event: &EventRef<'_>| {
            let mut line = Vec::new();
            EventFormat::Ndjson.push(&mut line, event);
            String::from_utf8(line).unwrap()
        };
        assert_eq!(
            line(&event),
            concat!(
                r#"{"id":"01a204ea-98b4-7d02-8f2e-3a9b1c64d57e","occurredAt":"2026-11-22T09:39:08.177301Z","#,
                r#""kind":"token.minted","client":"checkout","requestId":"a\"b\\c\u001f/"#,
                "\u{7f}",
                r#"","sourceIp":"2001:db8::1","userId":"ž😀","country":"LT","bank":null,"#,
                r#""access":{"accounts":true,"balances":false,"transactions":true},"#,
                r#""tokenId":"01a204ea-985b-7711-8188-6bde09e642c2","fingerprint":"ab12","#,
                r#""detail":{"attempts": 1, "latencyMs": 12}}"#,
                "\n"
            )
        );
        assert_eq!(
            line(&bare),
            concat!(
                r#"{"id":"01a204ea-98b4-7d02-8f2e-3a9b1c64d57e","occurredAt":"2026-11-22T09:39:08Z","kind":"token.minted","#,
                r#""client":null,"requestId":null,"sourceIp":null,"userId":null,"country":null,"bank":null,"#,
                r#""access":null,"tokenId":null,"fingerprint":null,"detail":null}"#,
                "\n"
            )
        );
    }
}
