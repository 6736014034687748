//! What a value must look like. A message never quotes a secret, nor a URL, which may hold one.

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

/// A value, or what is wrong with the text.
pub(super) type Parsed<T> = Result<T, String>;

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One flat JSON object a line.
    Json,
}

/// A key for tokens at rest.
#[derive(Debug)]
pub struct TokenKey {
    /// 1 to 32 bytes, unique among the keys.
    pub id: String,
    /// The key itself.
    pub key: SecretBox<[u8; 32]>,
}

/// What the type's own parser takes, with words for it.
pub(super) fn like<T: FromStr>(words: &str) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let parsed = text.parse();
        parsed.map_err(|_| format!("{text:?} is not {words}"))
    }
}

/// None where it is not set.
pub(super) fn optional<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| match text {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

/// None where it is that word.
pub(super) fn unless<T>(
    word: &'static str,
    parse: impl Fn(&str) -> Parsed<T>,
) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| match text {
        text if text == word => Ok(None),
        text => parse(text)
            .map(Some)
            .map_err(|why| format!("{why}, nor {word}")),
    }
}

/// A whole number in the range, which must fit `T`.
pub(super) fn integer<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        let (min, max) = (range.start(), range.end());
        number.ok_or_else(|| format!("{text:?} is not a whole number from {min} to {max}"))
    }
}

/// A duration within the bounds, which are written as durations too.
pub(super) fn duration(min: &str, max: &str) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| {
        let bound = |text| parse_duration(text).expect("bounds are durations");
        let range = bound(min)..=bound(max);
        let duration = parse_duration(text).ok().filter(|d| range.contains(d));
        duration.ok_or_else(|| {
            format!("{text:?} is not a duration like 500ms, 30s or 7d, from {min} to {max}")
        })
    }
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    ValueEnum::from_str(text, false).map_err(|_| format!("{text:?} is not text or json"))
}

/// What HTTP Basic can carry as a username (RFC 7617, section 2).
pub(super) fn username(text: &str) -> Parsed<SecretString> {
    match text.contains(':') {
        true => Err("must have no colon".into()),
        false => password(text),
    }
}

pub(super) fn password(text: &str) -> Parsed<SecretString> {
    match text.chars().any(char::is_control) {
        true => Err("must have no control characters, line breaks included".into()),
        false => Ok(text.into()),
    }
}

/// Checked early, so that all mistakes come at once.
pub(super) fn readable_file(text: &str) -> Parsed<PathBuf> {
    match File::open(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("{text:?} cannot be read: {error}")),
    }
}

/// Comma-separated; a bare address stands for itself alone.
pub(super) fn networks(text: &str) -> Parsed<Vec<IpNet>> {
    let entries = text.split(',').map(str::trim).filter(|e| !e.is_empty());
    let network = |entry: &str| {
        let alone = || entry.parse::<IpAddr>().map(IpNet::from);
        let parsed = entry.parse().or_else(|_| alone());
        parsed.map_err(|_| format!("{entry:?} is not a CIDR like 10.0.0.0/8"))
    };
    entries.map(network).collect()
}

pub(super) fn database_url(text: &str) -> Parsed<SecretString> {
    let url = Url::parse(text).ok().filter(|url| {
        // A password with a bare / or # ends up in path or fragment, which are shown.
        ["postgres", "postgresql"].contains(&url.scheme())
            && text.contains("://")
            && url.fragment().is_none()
            && !url.path().contains('@')
    });
    match url {
        Some(_) => Ok(text.into()),
        None => Err("is not a URL like postgres://user:password@host:5432/database (percent-encode /, ?, # and @ in the password)".into()),
    }
}

pub(super) fn web_url(text: &str) -> Parsed<Url> {
    let url = Url::parse(text).ok().filter(|url| {
        ["http", "https"].contains(&url.scheme())
            && url.username().is_empty()
            && url.password().is_none()
    });
    url.ok_or_else(|| "is not an absolute https:// or http:// URL without credentials".into())
}

/// With a slash at the end of its path, so that paths can be joined to it.
pub(super) fn upstream_base_url(text: &str) -> Parsed<Url> {
    let mut url = web_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must have no query and no fragment: /bank/tokens/ is appended to it".into());
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

/// Entries are named by their number: what stands before the colon may be a key gone astray.
pub(super) fn token_keys(text: &str) -> Parsed<Vec<TokenKey>> {
    let mut keys: Vec<TokenKey> = Vec::new();
    for (number, entry) in (1..).zip(text.split(',').map(str::trim)) {
        let (id, encoded) = entry.split_once(':').unwrap_or_default();
        let key = key(encoded).ok().filter(|_| is_key_id(id));
        let key = key.ok_or_else(|| {
            format!(
                "entry {number} is not id:base64-of-32-bytes, the id 1 to 32 of A-Z a-z 0-9 _ -"
            )
        })?;
        if keys.iter().any(|other| other.id == id) {
            return Err(format!("entry {number} has the id of an earlier one"));
        }
        keys.push(TokenKey { id: id.into(), key });
    }
    Ok(keys)
}

/// Whether it can be the id of a token key.
pub fn is_key_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// 32 bytes from standard base64, padded or not.
pub(super) fn key(encoded: &str) -> Parsed<SecretBox<[u8; 32]>> {
    let bytes = STANDARD_PAD_INDIFFERENT.decode(encoded).ok();
    let key: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
    let key = key.ok_or("is not base64 of 32 bytes")?;
    Ok(SecretBox::new(Box::new(key)))
}
