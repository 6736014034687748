//! Parses query strings. Unknown and duplicate parameters are errors.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;

use crate::api::problem::Problem;
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::model::time::parse_timestamp;

/// The default page size of a list.
pub const DEFAULT_LIMIT: u32 = 100;

/// The maximum page size of a list.
pub const MAX_LIMIT: u32 = 500;

/// Returns the values of the named parameters, in the order of `names`.
///
/// Unknown parameters, duplicates and values that are not percent-encoded UTF-8 are field errors. An
/// invalid value becomes `None`. A plus sign means a space, as in forms.
pub fn read_parameters<const N: usize>(
    query: &str,
    names: [&str; N],
    errors: &mut FieldErrors,
) -> [Option<String>; N] {
    read_repeatable(query, names, &[], errors).map(|values| values.into_iter().next())
}

/// Returns the values of the named parameters as [`read_parameters`] does. Those in `repeatable` may appear many times.
pub fn read_repeatable<const N: usize>(
    query: &str,
    names: [&str; N],
    repeatable: &[&str],
    errors: &mut FieldErrors,
) -> [Vec<String>; N] {
    let mut found = [const { Vec::new() }; N];
    let mut seen = [0; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (raw_name, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = decode(raw_name) else {
            errors.add_parameter(raw_name, "must have a percent-encoded UTF-8 name");
            continue;
        };
        let Some(index) = names.iter().position(|known| *known == name) else {
            errors.add_parameter(name, "is not a parameter of this path");
            continue;
        };
        seen[index] += 1;
        if seen[index] == 1 || repeatable.contains(&&*name) {
            let value = decode(raw_value).ok_or(Detail::Borrowed("must be percent-encoded UTF-8"));
            found[index].extend(errors.check_parameter(&name, value));
        } else if seen[index] == 2 {
            errors.add_parameter(name, "must appear only once");
        }
    }
    found
}

/// Rejects every query parameter, for paths that have none.
pub fn reject_parameters(query: &str) -> Result<(), Problem> {
    let mut errors = FieldErrors::default();
    let [] = read_parameters(query, [], &mut errors);
    Ok(errors.into_result(Some(()))?)
}

/// Decodes percent-encoded UTF-8. Returns `None` if an escape or the UTF-8 is invalid.
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

/// Parses the page size, 1…500.
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

/// Parses `true` or `false`.
pub fn boolean(text: String) -> Result<bool, Detail> {
    text.parse()
        .map_err(|_| Detail::Borrowed("must be true or false"))
}

/// Parses the bounds of a time range. `to` must not be before `from`.
pub fn time_range(
    from: Option<String>,
    to: Option<String>,
    errors: &mut FieldErrors,
) -> [Option<DateTime<Utc>>; 2] {
    let from = errors.check_optional("from", from, timestamp);
    let to = errors.check_optional("to", to, timestamp);
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        errors.add_parameter("to", "must not be before from");
    }
    [from, to]
}

/// Parses an RFC 3339 timestamp with an offset.
fn timestamp(text: String) -> Result<DateTime<Utc>, Detail> {
    parse_timestamp(&text).map_err(|_| {
        Detail::Borrowed(
            "must be an RFC 3339 time with an offset, such as 2026-11-22T09:39:08Z \
             or 2026-11-22T11:39:08%2B02:00 (write a plus sign as %2B)",
        )
    })
}
