//! The rules of fields: one place for bodies and query strings.

use std::ops::RangeInclusive;

use super::json::Json;
use crate::api::problem::field_error::Detail;
use crate::model::Country;

/// The longest user id, in characters.
pub const MAX_USER_ID: usize = 128;

/// The longest token string, in characters.
pub const MAX_TOKEN_STRING: usize = 512;

/// The longest name of a bank, in characters.
pub const MAX_BANK: usize = 32;

/// A required string.
pub fn text(value: Option<Json>) -> Result<String, Detail> {
    match value {
        Some(Json::String(text)) => Ok(text),
        Some(other) => Err(other.instead_of("a string").into()),
        None => Err("is required".into()),
    }
}

/// A string that follows the rule; null is the same as absent.
pub fn nullable<T>(
    value: Option<Json>,
    rule: impl FnOnce(String) -> Result<T, Detail>,
) -> Result<Option<T>, Detail> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => rule(text).map(Some),
        Some(other) => Err(other.instead_of("a string or null").into()),
    }
}

/// An integer in the sense of JSON Schema (`3600.0` and `1e3` are), if there is one.
pub fn integer(value: Option<Json>, range: RangeInclusive<i32>) -> Result<Option<i32>, Detail> {
    let expected = || format!("an integer from {} to {}", range.start(), range.end());
    match value {
        None => Ok(None),
        // What a cast changes is no integer of the range.
        Some(Json::Number(number))
            if f64::from(number as i32) == number && range.contains(&(number as i32)) =>
        {
            Ok(Some(number as i32))
        }
        Some(Json::Number(_)) => Err(format!("must be {}", expected()).into()),
        Some(other) => Err(other.instead_of(&expected()).into()),
    }
}

/// A boolean, if there is one.
pub fn boolean(value: Option<Json>) -> Result<Option<bool>, Detail> {
    match value {
        None => Ok(None),
        Some(Json::Bool(value)) => Ok(Some(value)),
        Some(other) => Err(other.instead_of("a boolean").into()),
    }
}

/// The company's own id of its user: 1–128 characters, none of them a control character, and no
/// e-mail address, for it is kept in a trail that nobody can edit.
pub fn user_id(text: String) -> Result<String, Detail> {
    check_length(&text, MAX_USER_ID)?;
    if looks_like_an_address(&text) {
        return Err("must be an opaque id, not an e-mail address".into());
    }
    Ok(text)
}

/// A token string as somebody found it: 1–512 characters.
pub fn token_string(text: String) -> Result<String, Detail> {
    if text.is_empty() || text.chars().count() > MAX_TOKEN_STRING {
        return Err(format!("must have 1 to {MAX_TOKEN_STRING} characters").into());
    }
    Ok(text)
}

/// One of the 28 codes.
pub fn country(text: &str) -> Result<Country, Detail> {
    text.parse::<Country>()
        .map_err(|error| error.to_string().into())
}

/// The bank as the upstream names it: 1–32 characters, none of them a control character, no white
/// space (Unicode White_Space) at either end.
pub fn bank(text: String) -> Result<String, Detail> {
    check_length(&text, MAX_BANK)?;
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err("must not begin or end with white space".into());
    }
    Ok(text)
}

fn check_length(text: &str, max: usize) -> Result<(), Detail> {
    // A character has at most four bytes: a long text need not be counted.
    if text.is_empty() || text.len() > 4 * max || text.chars().count() > max {
        return Err(format!("must have 1 to {max} characters").into());
    }
    if text.contains(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(())
}

/// `somebody@some.tld`: with less than that, an `@` is just a character.
fn looks_like_an_address(text: &str) -> bool {
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
    fn only_what_looks_like_an_address_is_one() {
        for good in ["a@b", "@", "a@b.1", "@x.com", "a.b.com", "a@b.c"] {
            assert_eq!(user_id(good.into()), Ok(good.into()));
        }
        for bad in ["jonas@example.com", "a b@c@d.lt"] {
            assert!(user_id(bad.into()).is_err(), "{bad}");
        }
    }
}
