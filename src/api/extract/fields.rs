//! Validation of fields, shared by bodies and query strings.

use std::ops::RangeInclusive;

use secrecy::zeroize::Zeroizing;

use super::json::Json;
use crate::api::problem::field_error::Detail;
use crate::model::{Country, TokenString};

/// The maximum length of a token string, in characters.
pub const MAX_TOKEN_STRING: usize = 512;

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

/// Reads an optional integer that may be null: `None` if it is absent, `Some(None)` if it is null.
pub fn nullable_integer(
    value: Option<Json>,
    range: RangeInclusive<i32>,
) -> Result<Option<Option<i32>>, Detail> {
    match value {
        Some(Json::Null) => Ok(Some(None)),
        value => Ok(optional_integer(value, range)?.map(Some)),
    }
}

/// Reads a list of strings and applies the rule to each. `expected` describes the list.
pub fn list<T>(
    value: Json,
    expected: &str,
    rule: impl Fn(String) -> Result<T, Detail>,
) -> Result<Vec<T>, Detail> {
    let Json::Array(items) = value else {
        return Err(value.type_error(expected).into());
    };
    let items = items.into_iter().map(|item| match item {
        Json::String(text) => rule(text),
        other => Err(format!("must be {expected}; {} is none", other.type_name()).into()),
    });
    items.collect()
}

/// Reads an optional boolean.
pub fn optional_boolean(value: Option<Json>) -> Result<Option<bool>, Detail> {
    match value {
        None => Ok(None),
        Some(Json::Bool(value)) => Ok(Some(value)),
        Some(other) => Err(other.type_error("a boolean").into()),
    }
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
