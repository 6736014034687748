//! Property checks of the request readers. `crate::fuzzing` exports them.

use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use actix_web::test::TestRequest;
use chrono::{DateTime, Datelike, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::extract::cache_control::Directives;
use crate::api::extract::cursor::Cursor;
use crate::api::extract::json::Json;
use crate::api::handlers::tokens::{ACCESS, DEFAULT_LIFETIME, LIFETIMES, read_token_request};
use crate::api::problem::field_error::FieldErrors;
use crate::vending::TokenRequest;

/// Checks that an accepted body obeys the limits of its fields, that serde_json reads the same values, and that the
/// canonical form of the request is accepted as the same request.
pub fn json_request(body: &[u8]) {
    let Some(request) = read_request(body) else {
        return;
    };
    let combination = &request.combination;
    let is_valid =
        |text: &str, max| (1..=max).contains(&text.chars().count()) && text.trim() == text;
    assert!(is_valid(&combination.user_id, 128));
    let bank = combination.bank.as_deref();
    assert!(bank.is_none_or(|bank| is_valid(bank, 32)));
    assert!(LIFETIMES.contains(&request.lifetime));

    let canonical = json!({
        "userId": combination.user_id,
        "lifetime": request.lifetime,
        "country": combination.country,
        "bank": combination.bank,
        "access": combination.access,
    });
    let document: Value = serde_json::from_slice(body).expect("an accepted body is JSON");
    for member in ["userId", "country", "bank"] {
        assert_eq!(document[member], canonical[member]);
    }
    let lifetime = document["lifetime"].as_f64();
    assert_eq!(
        lifetime.unwrap_or(DEFAULT_LIFETIME.into()),
        f64::from(request.lifetime)
    );
    for flag in ACCESS {
        let value = document["access"][flag].as_bool();
        assert_eq!(json!(value.unwrap_or(false)), canonical["access"][flag]);
    }

    let again = read_request(canonical.to_string().as_bytes());
    let again = again.expect("the canonical form of a valid request is valid");
    assert_eq!(again.combination, *combination);
    assert_eq!(again.lifetime, request.lifetime);
}

fn read_request(body: &[u8]) -> Option<TokenRequest> {
    let document = Json::parse(body).ok()?;
    let request = TestRequest::default().to_http_request();
    let errors = match read_token_request(document, &request, false, Duration::ZERO) {
        Ok(token_request) => return Some(token_request),
        Err(errors) => errors.into_vec(),
    };
    assert!(!errors.is_empty(), "a rejection without a field error");
    serde_json::to_string(&errors).expect("field errors have a JSON form");
    None
}

/// Checks that cursors survive encoding, that each has one text only, and that a changed text is rejected.
///
/// The input is used as the text of a cursor, and as the bytes of its position.
pub fn cursor(data: &[u8]) {
    let (filter, other_filter) = ("fuzz", "other");
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(cursor) = Cursor::decode(text, &filter)
    {
        assert_eq!(cursor.encode(&filter), text);
    }

    let Some(cursor) = cursor_at(data) else {
        return;
    };
    let text = cursor.encode(&filter);
    let is_in_range = |time: DateTime<Utc>| (0..=9999).contains(&time.year());
    let decoded = Cursor::decode(&text, &filter).ok();
    let is_valid = is_in_range(cursor.at) && cursor.until.is_none_or(is_in_range);
    assert_eq!(decoded, is_valid.then_some(cursor));

    assert!(Cursor::decode(&text, &other_filter).is_err());
    for index in 0..text.len() {
        let replacement = if text.as_bytes()[index] == b'A' {
            "B"
        } else {
            "A"
        };
        let mut changed = text.clone();
        changed.replace_range(index..=index, replacement);
        assert!(Cursor::decode(&changed, &filter).is_err(), "{changed}");
    }
}

/// Reads a time, an id and an optional second time from the start of the input.
fn cursor_at(data: &[u8]) -> Option<Cursor> {
    let time = |bytes: &[u8; 8]| DateTime::from_timestamp_micros(i64::from_be_bytes(*bytes));
    let (at, data) = data.split_first_chunk::<8>()?;
    let (id, data) = data.split_first_chunk::<16>()?;
    Some(Cursor {
        at: time(at)?,
        id: Uuid::from_bytes(*id),
        until: data.first_chunk::<8>().and_then(time),
    })
}

/// Checks that directives come only from their names, and that an accepted `min-fresh` does not exceed the lifetime.
///
/// Each line of the input is one header.
pub fn cache_control(data: &[u8]) {
    const LIFETIME: i32 = 3600;
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(CACHE_CONTROL, value);
        }
    }
    let read = |lifetime| {
        let mut errors = FieldErrors::default();
        let directives = Directives::read(&headers, lifetime, &mut errors);
        (directives, errors.into_vec())
    };
    let (directives, errors) = read(Some(LIFETIME));
    if errors.is_empty() {
        assert!(
            directives
                .min_fresh
                .is_none_or(|seconds| (0..=LIFETIME).contains(&seconds))
        );
    }
    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
    if !text.contains("min-fresh") {
        assert!(directives.min_fresh.is_none() && errors.is_empty());
    }
    assert!(!directives.no_cache || text.contains("no-cache"));

    let (unbounded, unbounded_errors) = read(None);
    assert_eq!(unbounded.min_fresh, directives.min_fresh);
    assert_eq!(unbounded.no_cache, directives.no_cache);
    assert!(unbounded_errors.len() <= errors.len());
}
