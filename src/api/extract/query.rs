//! Strict query strings.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;

use crate::api::problem::Problem;
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::model::time::parse_timestamp;

/// The page of a list whose request does not say.
pub const DEFAULT_LIMIT: u32 = 100;

/// The largest page of a list.
pub const MAX_LIMIT: u32 = 500;

/// The values of the named parameters, in the order of `names`.
///
/// Notes every other parameter, every one that is there twice, and what is not percent-encoded
/// UTF-8, whose value is then `None`. A plus sign is a space, as forms write it.
pub fn parameters<const N: usize>(
    query: &str,
    names: [&str; N],
    errors: &mut FieldErrors,
) -> [Option<String>; N] {
    let mut found = [const { None }; N];
    let mut seen = [0; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (raw_name, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = decode(raw_name) else {
            errors.parameter(raw_name, "has a name that is not percent-encoded UTF-8");
            continue;
        };
        let Some(index) = names.iter().position(|known| *known == name) else {
            errors.parameter(name, "is not a parameter of this path");
            continue;
        };
        seen[index] += 1;
        match seen[index] {
            1 => {
                let value =
                    decode(raw_value).ok_or(Detail::Borrowed("is not percent-encoded UTF-8"));
                found[index] = errors.query(&name, value);
            }
            2 => errors.parameter(name, "must be there only once"),
            _ => {}
        }
    }
    found
}

/// Refuses every parameter: for paths that have none.
pub fn no_parameters(query: &str) -> Result<(), Problem> {
    let mut errors = FieldErrors::default();
    let [] = parameters(query, [], &mut errors);
    Ok(errors.check(Some(()))?)
}

/// `None` where a percent sign is not followed by two hex digits, or what comes out is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let is_hex = |index: usize| {
        text.as_bytes()
            .get(index)
            .is_some_and(u8::is_ascii_hexdigit)
    };
    if text
        .match_indices('%')
        .any(|(index, _)| !is_hex(index + 1) || !is_hex(index + 2))
    {
        return None;
    }
    let text: Cow<'_, str> = match text.contains('+') {
        true => text.replace('+', " ").into(),
        false => text.into(),
    };
    let decoded = percent_decode_str(&text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// The size of a page, 1…500.
pub fn limit(text: Option<String>) -> Result<u32, Detail> {
    let Some(text) = text else {
        return Ok(DEFAULT_LIMIT);
    };
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|limit| is_number && (1..=MAX_LIMIT).contains(limit))
        .ok_or(Detail::Borrowed("must be an integer from 1 to 500"))
}

/// `true` or `false`.
pub fn boolean(text: &str) -> Result<bool, Detail> {
    text.parse()
        .map_err(|_| Detail::Borrowed("must be true or false"))
}

/// Reads a timestamp, RFC 3339 with its offset.
pub fn timestamp(text: &str) -> Result<DateTime<Utc>, Detail> {
    parse_timestamp(text).map_err(|_| {
        Detail::Borrowed(
            "must be an RFC 3339 time with its offset, as 2026-11-22T09:39:08Z \
             or 2026-11-22T11:39:08%2B02:00 (a plus sign is written %2B)",
        )
    })
}
