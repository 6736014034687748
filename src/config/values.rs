//! Parsers of setting values. Messages never quote secrets, and no URLs, because URLs can contain
//! secrets.

use std::fs::File;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use clap::ValueEnum;
use humantime::parse_duration;
use ipnet::IpNet;
use secrecy::{SecretBox, SecretString};
use url::{Host, Url};

use crate::seal::checkpoint::is_origin;

/// A parsed value, or an error message that follows `NAME: `.
pub(super) type Parsed<T> = Result<T, String>;

/// The format of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum LogFormat {
    /// Readable text.
    #[default]
    Text,
    /// One flat JSON object per line.
    Json,
}

/// A key that encrypts stored tokens.
#[derive(Debug)]
pub struct TokenKey {
    /// The id, 1 to 32 bytes, unique among the keys.
    pub id: String,
    /// The secret key.
    pub key: SecretBox<[u8; 32]>,
}

/// Parses with [`FromStr`]. The description completes "must be".
pub(super) fn parse_as<T: FromStr>(description: &str) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let parsed = text.parse();
        parsed.map_err(|_| format!("must be {description}, not {text:?}"))
    }
}

/// Parses a setting that may be empty.
pub(super) fn optional<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| match text {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

/// Parses the keyword as `None` and everything else with `parse`.
pub(super) fn keyword_or<T>(
    keyword: &'static str,
    parse: impl Fn(&str) -> Parsed<T>,
) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| match text {
        text if text == keyword => Ok(None),
        text => parse(text)
            .map(Some)
            .map_err(|why| format!("{why}; `{keyword}` is also accepted")),
    }
}

/// Parses a whole number in the range. The range must fit `T`.
pub(super) fn integer<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        let (min, max) = (range.start(), range.end());
        number.ok_or_else(|| format!("must be a whole number from {min} to {max}, not {text:?}"))
    }
}

/// Parses a duration within the bounds, which are durations such as `30s`.
pub(super) fn duration(min: &str, max: &str) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| {
        let bound = |text| parse_duration(text).expect("the bounds are durations");
        let range = bound(min)..=bound(max);
        let duration = parse_duration(text).ok().filter(|d| range.contains(d));
        duration.ok_or_else(|| {
            format!(
                "must be a duration from {min} to {max}, such as 500ms, 30s or 7d, not {text:?}"
            )
        })
    }
}

pub(super) fn parse_log_format(text: &str) -> Parsed<LogFormat> {
    ValueEnum::from_str(text, false).map_err(|_| format!("must be text or json, not {text:?}"))
}

/// Parses a username of HTTP Basic, which has no colon (RFC 7617, section 2).
pub(super) fn parse_username(text: &str) -> Parsed<SecretString> {
    match text.contains(':') {
        true => Err("must not contain a colon".into()),
        false => parse_password(text),
    }
}

/// Parses a password of HTTP Basic, which has no control characters (RFC 7617, section 2).
pub(super) fn parse_password(text: &str) -> Parsed<SecretString> {
    match text.chars().any(char::is_control) {
        true => Err("must not contain control characters such as line breaks".into()),
        false => Ok(text.into()),
    }
}

/// Parses the name of a log (c2sp.org/signed-note).
pub(super) fn parse_origin(text: &str) -> Parsed<String> {
    match is_origin(text) {
        true => Ok(text.into()),
        false => Err("must not contain white space or a plus sign".into()),
    }
}

/// Opens the file at the path, so that an unreadable file is reported with all other errors.
pub(super) fn parse_readable_file(text: &str) -> Parsed<PathBuf> {
    match File::open(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("the file {text:?} cannot be read: {error}")),
    }
}

/// Parses comma-separated networks. An address without a prefix length is a network of one host.
pub(super) fn parse_networks(text: &str) -> Parsed<Vec<IpNet>> {
    let entries = text.split(',').map(str::trim).filter(|e| !e.is_empty());
    let network = |entry: &str| {
        let host = || entry.parse::<IpAddr>().map(IpNet::from);
        let parsed = entry.parse().or_else(|_| host());
        parsed
            .map_err(|_| format!("must be comma-separated CIDRs such as 10.0.0.0/8, not {entry:?}"))
    };
    entries.map(network).collect()
}

pub(super) fn parse_database_url(text: &str) -> Parsed<SecretString> {
    if has_several_hosts(text) {
        return Err("must name one host, without target_session_attrs; use a DNS name or a proxy that leads to the primary".into());
    }
    let url = Url::parse(text).ok().filter(|url| {
        // A password with an unescaped / or # would end up in the path or fragment, which `check`
        // shows.
        ["postgres", "postgresql"].contains(&url.scheme())
            && text.contains("://")
            && url.fragment().is_none()
            && !url.path().contains('@')
    });
    match url {
        Some(_) => Ok(text.into()),
        None => Err("must be a URL like postgres://user:password@host:5432/database; percent-encode /, ?, # and @ in the password".into()),
    }
}

/// Returns whether a database URL uses libpq's choice between hosts, which the service does not support.
fn has_several_hosts(text: &str) -> bool {
    let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
    let (authority, query) = match after_scheme.split_once('?') {
        Some((before, query)) => (before, query),
        None => (after_scheme, ""),
    };
    let authority = authority.split('/').next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    hosts.contains(',')
        || url::form_urlencoded::parse(query.as_bytes()).any(|(name, value)| match &*name {
            "host" | "hostaddr" | "port" => value.contains(','),
            name => ["target_session_attrs", "load_balance_hosts"].contains(&name),
        })
}

/// Parses the URL of an HTTP proxy: scheme, host and port, perhaps with credentials.
pub(super) fn parse_proxy_url(text: &str) -> Parsed<SecretString> {
    let url = Url::parse(text).ok().filter(|url| {
        ["http", "https"].contains(&url.scheme())
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
    });
    match url {
        Some(_) => Ok(text.into()),
        None => Err("must be a URL like http://user:password@host:3128; percent-encode /, ?, # and @ in the password".into()),
    }
}

pub(super) fn parse_web_url(text: &str) -> Parsed<Url> {
    let url = Url::parse(text).ok().filter(|url| {
        ["http", "https"].contains(&url.scheme())
            && url.username().is_empty()
            && url.password().is_none()
    });
    url.ok_or_else(|| "must be an absolute https:// or http:// URL without credentials".into())
}

/// Parses the address of an OIDC issuer. Keeps its text, because tokens must contain exactly that.
pub(super) fn parse_issuer(text: &str) -> Parsed<String> {
    let url = parse_web_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a query or fragment".into());
    }
    if url.scheme() != "https" && !is_loopback(&url) {
        return Err("must start with https:// (http:// is accepted only for 127.0.0.0/8, ::1 and localhost)".into());
    }
    Ok(text.into())
}

/// Parses a base URL and adds the final slash that joining a path needs.
pub(super) fn parse_upstream_base_url(text: &str) -> Parsed<Url> {
    let mut url = parse_web_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a query or fragment: the service appends /bank/tokens/".into());
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Returns whether the URL's host is this machine: 127.0.0.0/8, ::1 or localhost.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Parses `TOKEN_KEYS`. Errors give the number of an entry, not its id: the text before the colon can
/// be a misplaced key.
pub(super) fn parse_token_keys(text: &str) -> Parsed<Vec<TokenKey>> {
    let mut keys: Vec<TokenKey> = Vec::new();
    for (number, entry) in (1..).zip(text.split(',').map(str::trim)) {
        let (id, encoded) = entry.split_once(':').unwrap_or_default();
        let key = parse_key(encoded).ok().filter(|_| is_key_id(id));
        let key = key.ok_or_else(|| {
            format!(
                "entry {number} must be `id:base64-of-32-bytes`, the id 1 to 32 characters from \
                 A-Z a-z 0-9 _ -; run `token-vendor keys generate`"
            )
        })?;
        if keys.iter().any(|other| other.id == id) {
            return Err(format!(
                "entry {number} repeats the id of an earlier entry; ids must be unique"
            ));
        }
        keys.push(TokenKey { id: id.into(), key });
    }
    Ok(keys)
}

/// Returns whether the text is a valid id of a token key.
pub fn is_key_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Parses 32 bytes from standard base64, with or without padding.
pub(super) fn parse_key(encoded: &str) -> Parsed<SecretBox<[u8; 32]>> {
    let bytes = STANDARD_PAD_INDIFFERENT.decode(encoded).ok();
    let key: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
    let key = key.ok_or("must be base64 of 32 bytes; run `openssl rand -base64 32`")?;
    Ok(SecretBox::new(Box::new(key)))
}
