//! Reads and writes timestamps: RFC 3339, in UTC, to the microsecond.

use chrono::{DateTime, Datelike, SecondsFormat, TimeDelta, Utc};
use serde::Serializer;

/// Error: the text is not a timestamp that the service accepts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 time with its offset")]
pub struct InvalidTimestamp;

/// Parses an RFC 3339 timestamp with an offset, and rounds it up to a microsecond.
///
/// Recorded times have microseconds. Rounding up makes `from <= t < to` hold for bounds with nanoseconds.
pub fn parse_timestamp(text: &str) -> Result<DateTime<Utc>, InvalidTimestamp> {
    let time = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.to_utc())
        .filter(|time| (0..=9999).contains(&time.year()))
        .ok_or(InvalidTimestamp)?;
    let past = i64::from(time.timestamp_subsec_nanos() % 1000);
    Ok(time + TimeDelta::nanoseconds((1000 - past) % 1000))
}

/// Serializes a time in RFC 3339, like chrono, but as one string.
///
/// chrono writes single characters, and serde_json would check each of them for escaping.
pub fn serialize_time<S: Serializer>(
    time: &DateTime<Utc>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}
