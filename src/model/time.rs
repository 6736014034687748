//! Reads and writes timestamps: RFC 3339, in UTC, to the microsecond.

use chrono::{DateTime, Datelike, SecondsFormat, TimeDelta, Utc};
use serde::Serializer;

/// The text is not a timestamp that the service accepts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 time with its offset")]
pub struct InvalidTimestamp;

/// A moment, RFC 3339 with its offset, rounded up to the microsecond that times on record have:
/// so that `from` ≤ t < `to` holds as written.
pub fn parse_timestamp(text: &str) -> Result<DateTime<Utc>, InvalidTimestamp> {
    let time = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.to_utc())
        .filter(|time| (0..=9999).contains(&time.year()))
        .ok_or(InvalidTimestamp)?;
    let past = i64::from(time.timestamp_subsec_nanos() % 1000);
    Ok(time + TimeDelta::nanoseconds((1000 - past) % 1000))
}

/// A time as chrono writes it, RFC 3339, but in one piece: JSON looks at each piece anew for what is
/// to be escaped, and chrono's are characters.
pub fn serialize_time<S: Serializer>(
    time: &DateTime<Utc>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}
