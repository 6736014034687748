//! What each kind of value must look like. A message never quotes a secret, nor a URL, which may hold one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use ipnet::IpNet;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use url::{Host, Url};

use super::groups::{LogFormat, TokenKey};
use super::settings::compact;

/// A value, or what is wrong with the text.
pub(super) type Parsed<T> = Result<T, String>;

/// The text as an error may quote it: escaped, and not without end.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

pub(super) fn integer<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Parsed<T> {
    text.parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{} is not a whole number from {min} to {max}", quoted(text)))
}

pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Parsed<Duration> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("{} is not a duration like 500ms, 30s or 7d", quoted(text)))?;
    if (min..=max).contains(&duration) {
        return Ok(duration);
    }
    Err(format!(
        "{} is not between {} and {}",
        quoted(text),
        compact(min),
        compact(max)
    ))
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    text.parse()
        .map_err(|_| format!("{} is neither true nor false", quoted(text)))
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{} is neither text nor json", quoted(text))),
    }
}

pub(super) fn listen_addr(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        format!(
            "{} is not an IP address and port like 127.0.0.1:8080 or [::]:8080",
            quoted(text)
        )
    })
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    Ok(text.into())
}

/// Comma-separated; a bare address stands for itself alone.
pub(super) fn networks(text: &str) -> Parsed<Vec<IpNet>> {
    text.split(',')
        .map(str::trim)
        .map(|entry| {
            let alone = || entry.parse::<IpAddr>().map(IpNet::from);
            entry
                .parse::<IpNet>()
                .or_else(|_| alone())
                .map_err(|_| format!("{} is not a CIDR like 10.0.0.0/8", quoted(entry)))
        })
        .collect()
}

pub(super) fn database_url(text: &str) -> Parsed<SecretString> {
    const SHAPE: &str = "is not a URL like postgres://user:password@host:5432/database";
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
        || has_blanks(text)
    {
        return Err(SHAPE.into());
    }
    let url = Url::parse(text).map_err(|_| SHAPE)?;
    // A password with a bare / or # ends up in these parts, which are shown.
    if url.fragment().is_some() || url.path().contains('@') {
        return Err(format!(
            "{SHAPE} (percent-encode /, ?, # and @ in the password)"
        ));
    }
    Ok(text.into())
}

/// An absolute http or https URL without credentials, unchanged by parsing.
fn web_url(text: &str) -> Parsed<Url> {
    const SHAPE: &str = "is not an absolute https:// or http:// URL";
    let url = Url::parse(text).map_err(|_| SHAPE)?;
    if !["http", "https"].contains(&url.scheme()) || !text.contains("://") || has_blanks(text) {
        return Err(SHAPE.into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials".into());
    }
    Ok(url)
}

/// The URL parser drops white space and control characters in silence.
fn has_blanks(text: &str) -> bool {
    text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// With a slash at the end of its path, so that paths can be joined to it.
pub(super) fn upstream_base_url(text: &str) -> Parsed<Url> {
    let mut url = web_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not contain a query or a fragment".into());
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Whether the URL's host is this machine: 127.0.0.0/8, ::1 or localhost.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Kept as written: the token is appended to the text.
pub(super) fn verification_base_url(text: &str) -> Parsed<String> {
    web_url(text).map(|_| text.to_owned())
}

/// The username of HTTP Basic, which cannot hold a colon (RFC 7617, section 2).
pub(super) fn api_key(text: &str) -> Parsed<SecretString> {
    if text.contains(':') {
        return Err("must not contain a colon".into());
    }
    api_secret(text)
}

/// The password of HTTP Basic, which cannot hold control characters (RFC 7617, section 2).
pub(super) fn api_secret(text: &str) -> Parsed<SecretString> {
    if text.contains(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(text.into())
}

pub(super) fn fingerprint_key(text: &str) -> Parsed<SecretBox<[u8; 32]>> {
    key(text).ok_or_else(|| "is not base64 of 32 bytes".into())
}

/// Entries are named by their number: what stands before the colon may be a key gone astray.
pub(super) fn token_keys(text: &str) -> Parsed<Vec<TokenKey>> {
    let mut keys: Vec<TokenKey> = Vec::new();
    for (number, entry) in (1..).zip(text.split(',').map(str::trim)) {
        let (id, encoded) = entry
            .split_once(':')
            .ok_or_else(|| format!("entry {number} is not id:base64-of-32-bytes"))?;
        if !is_key_id(id) {
            return Err(format!(
                "the id of entry {number} is not 1 to 32 of A-Z, a-z, 0-9, _ and -"
            ));
        }
        let key = key(encoded)
            .ok_or_else(|| format!("the key of entry {number} is not base64 of 32 bytes"))?;
        for (earlier, other) in (1..).zip(&keys) {
            if other.id == id {
                return Err(format!("entries {earlier} and {number} have the same id"));
            }
            if other.key.expose_secret() == key.expose_secret() {
                return Err(format!("entries {earlier} and {number} have the same key"));
            }
        }
        keys.push(TokenKey { id: id.into(), key });
    }
    Ok(keys)
}

/// Whether it can be the id of a token key.
pub(crate) fn is_key_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// 32 bytes from standard base64, padded or not.
fn key(encoded: &str) -> Option<SecretBox<[u8; 32]>> {
    // Larger than a key, so that one too long is seen as such.
    let mut bytes = Zeroizing::new([0; 48]);
    let length = STANDARD_PAD_INDIFFERENT
        .decode_slice(encoded, bytes.as_mut_slice())
        .ok()?;
    (length == 32)
        .then(|| SecretBox::init_with_mut(|key: &mut [u8; 32]| key.copy_from_slice(&bytes[..32])))
}
