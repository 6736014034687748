//! Rules of the texts that callers choose: user ids, banks, API keys, request ids. The API and the command line share
//! them.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

/// The reason why a text breaks its rule.
pub type Reason = Cow<'static, str>;

/// The maximum length of a user id, in characters.
pub const MAX_USER_ID: usize = 128;

/// The maximum length of a bank name, in characters.
pub const MAX_BANK: usize = 32;

/// The maximum length of an API key and of a request id, in characters.
pub const MAX_NAME: usize = 128;

/// The maximum length of the name of a client, in characters.
pub const MAX_CLIENT_NAME: usize = 100;

/// The allowed limits of a client, in mints per hour and in requests per second.
pub const CLIENT_LIMITS: RangeInclusive<i32> = 1..=i32::MAX;

/// The maximum number of networks from which a client may call.
pub const MAX_NETWORKS: usize = 100;

/// The allowed times until the expiry of a client, in seconds: up to 10 years of 365 days.
pub const EXPIRIES: RangeInclusive<i32> = 1..=3_650 * 86_400;

/// The longest time for which the old secret of a rotated client stays valid.
pub const MAX_GRACE: Duration = Duration::from_secs(30 * 86_400);

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

/// Checks the `sub` of a client's bearer tokens.
pub fn oidc_subject(text: &str) -> Result<String, Reason> {
    match is_oidc_subject(text) {
        true => Ok(text.into()),
        false => {
            Err(format!("must be 1 to {MAX_OIDC_SUBJECT} bytes without control characters").into())
        }
    }
}

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

/// Checks the name of a client: a trimmed text of 1–100 characters.
pub fn client_name(text: String) -> Result<String, Reason> {
    check_trimmed(&text, MAX_CLIENT_NAME)?;
    Ok(text)
}

/// Parses a network in CIDR notation. An address without a prefix length is a network of one host.
pub fn network(text: &str) -> Result<IpNet, Reason> {
    let host = || text.parse::<IpAddr>().map(IpNet::from);
    let network: IpNet = text
        .parse()
        .or_else(|_| host())
        .map_err(|_| format!("must be a CIDR such as 10.0.0.0/8, not {text:?}"))?;
    match network.trunc() {
        whole if whole == network => Ok(network),
        whole => Err(format!("must have no host bits: write {whole} instead of {text}").into()),
    }
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
