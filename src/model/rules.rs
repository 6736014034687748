//! Rules of the texts that callers choose: user ids, banks, API keys, request ids. The API and the command line share
//! them.

use std::borrow::Cow;

/// The reason why a text breaks its rule.
pub type Reason = Cow<'static, str>;

/// The maximum length of a user id, in characters.
pub const MAX_USER_ID: usize = 128;

/// The maximum length of a bank name, in characters.
pub const MAX_BANK: usize = 32;

/// The maximum length of an API key and of a request id, in characters.
pub const MAX_NAME: usize = 128;

/// Checks a user id: a trimmed text of 1–128 characters, not an e-mail address.
///
/// E-mail addresses are rejected because the audit log keeps user ids and cannot be edited.
pub fn user_id(text: String) -> Result<String, Reason> {
    check_trimmed(&text, MAX_USER_ID)?;
    if is_email_address(&text) {
        return Err("must be an opaque id, not an e-mail address".into());
    }
    Ok(text)
}

/// Checks a bank name: a trimmed text of 1–32 characters.
pub fn bank(text: String) -> Result<String, Reason> {
    check_trimmed(&text, MAX_BANK)?;
    Ok(text)
}

/// The maximum length of the `sub` of a bearer token, in bytes.
pub const MAX_OIDC_SUBJECT: usize = 1024;

/// Returns true for a text that can be the `sub` of a bearer token: 1–1024 bytes, no control characters.
pub fn is_oidc_subject(text: &str) -> bool {
    (1..=MAX_OIDC_SUBJECT).contains(&text.len()) && !text.contains(char::is_control)
}

/// Checks an API key: 1–128 letters, digits, _ or -.
pub fn api_key(text: String) -> Result<String, Reason> {
    if !is_api_key(&text) {
        return Err("must be an API key: 1 to 128 letters, digits, _ or -".into());
    }
    Ok(text)
}

/// Returns true for a text that can be an API key.
pub fn is_api_key(text: &str) -> bool {
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(is_key)
}

/// Checks a request id: 1–128 printable ASCII characters. A fingerprint is one too.
pub fn printable(text: String) -> Result<String, Reason> {
    let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !(1..=MAX_NAME).contains(&text.len()) || !is_printable {
        return Err(format!("must have 1 to {MAX_NAME} printable ASCII characters").into());
    }
    Ok(text)
}

/// Checks a trimmed text: 1 to `max` characters, no control characters, no white space at either end.
///
/// White space is Unicode White_Space. Values are compared exactly, so `"u "` would be another user than `"u"`.
fn check_trimmed(text: &str, max: usize) -> Result<(), Reason> {
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
