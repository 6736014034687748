//! Validation of fields, shared by bodies and query strings.

use std::ops::RangeInclusive;

use secrecy::zeroize::Zeroizing;

use super::json::Json;
use crate::api::problem::field_error::Detail;
use crate::model::{Country, TokenString};

/// The maximum length of a user id, in characters.
pub const MAX_USER_ID: usize = 128;

/// The maximum length of a token string, in characters.
pub const MAX_TOKEN_STRING: usize = 512;

/// The maximum length of a bank name, in characters.
pub const MAX_BANK: usize = 32;

/// Reads a required string.
pub fn required_string(value: Option<Json>) -> Result<String, Detail> {
    match value {
        Some(Json::String(text)) => Ok(text),
        Some(other) => Err(other.type_error("a string").into()),
        None => Err("is required".into()),
    }
}

/// Reads an optional string and applies the rule to it. Null means absent.
pub fn nullable_string<T>(
    value: Option<Json>,
    rule: impl FnOnce(String) -> Result<T, Detail>,
) -> Result<Option<T>, Detail> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => rule(text).map(Some),
        Some(other) => Err(other.type_error("a string or null").into()),
    }
}

/// Reads an optional integer. `3600.0` and `1e3` are integers, as in JSON Schema.
pub fn optional_integer(
    value: Option<Json>,
    range: RangeInclusive<i32>,
) -> Result<Option<i32>, Detail> {
    let expected = || format!("an integer from {} to {}", range.start(), range.end());
    match value {
        None => Ok(None),
        // The cast changes a fraction and a number outside of i32.
        Some(Json::Number(number))
            if f64::from(number as i32) == number && range.contains(&(number as i32)) =>
        {
            Ok(Some(number as i32))
        }
        Some(Json::Number(_)) => Err(format!("must be {}", expected()).into()),
        Some(other) => Err(other.type_error(&expected()).into()),
    }
}

/// Reads an optional boolean.
pub fn optional_boolean(value: Option<Json>) -> Result<Option<bool>, Detail> {
    match value {
        None => Ok(None),
        Some(Json::Bool(value)) => Ok(Some(value)),
        Some(other) => Err(other.type_error("a boolean").into()),
    }
}

/// Checks a user id: a trimmed text of 1–128 characters, not an e-mail address.
///
/// E-mail addresses are rejected because the audit log keeps user ids and cannot be edited.
pub fn user_id(text: String) -> Result<String, Detail> {
    check_trimmed(&text, MAX_USER_ID)?;
    if is_email_address(&text) {
        return Err("must be an opaque id, not an e-mail address".into());
    }
    Ok(text)
}

/// Checks a token string: 1–512 characters. Wipes the text.
pub fn token_string(text: String) -> Result<TokenString, Detail> {
    let text = Zeroizing::new(text);
    if text.is_empty() || text.chars().count() > MAX_TOKEN_STRING {
        return Err(format!("must have 1 to {MAX_TOKEN_STRING} characters").into());
    }
    Ok(TokenString::new(&text))
}

/// Parses one of the 28 country codes.
pub fn country(text: String) -> Result<Country, Detail> {
    text.parse::<Country>()
        .map_err(|error| error.to_string().into())
}

/// Checks a bank name: a trimmed text of 1–32 characters.
pub fn bank(text: String) -> Result<String, Detail> {
    check_trimmed(&text, MAX_BANK)?;
    Ok(text)
}

/// Checks a trimmed text: 1 to `max` characters, no control characters, no white space at either end.
///
/// White space is Unicode White_Space. Values are compared exactly, so `"u "` would be another user than `"u"`.
fn check_trimmed(text: &str, max: usize) -> Result<(), Detail> {
    // A character has at most four bytes, so the characters of a very long text are not counted.
    if text.is_empty() || text.len() > 4 * max || text.chars().count() > max {
        return Err(format!("must have 1 to {max} characters").into());
    }
    if text.contains(char::is_control) {
        return Err("must not contain control characters".into());
    }
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err("must not begin or end with white space".into());
    }
    Ok(())
}

/// Returns true for `local@host.tld`, where `tld` has at least two letters.
fn is_email_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    let Some((host, top)) = domain.rsplit_once('.') else {
        return false;
    };
    !local.is_empty()
        && !host.is_empty()
        && top.chars().count() >= 2
        && top.chars().all(char::is_alphabetic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_email_address_is_no_user_id() {
        for good in ["a@b", "@", "a@b.1", "@x.com", "a.b.com", "a@b.c"] {
            assert_eq!(user_id(good.into()), Ok(good.into()));
        }
        for bad in ["jonas@example.com", "a b@c@d.lt"] {
            assert!(user_id(bad.into()).is_err(), "{bad}");
        }
    }
}
