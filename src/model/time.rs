//! Reads and writes timestamps: RFC 3339, in UTC, to the microsecond.

use chrono::{DateTime, Datelike, SecondsFormat, Utc};
use serde::Serializer;

/// Error: the text is not a timestamp that the service accepts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 time with its offset")]
pub struct InvalidTimestamp;

/// The last microsecond that RFC 3339 can express, 9999-12-31T23:59:59.999999Z, since 1970.
const LAST_MICROSECOND: i64 = 253_402_300_799_999_999;

/// Parses an RFC 3339 timestamp with an offset, and rounds it up to a microsecond.
///
/// Recorded times have microseconds. Rounding up makes `from <= t < to` hold for bounds with nanoseconds.
pub fn parse_timestamp(text: &str) -> Result<DateTime<Utc>, InvalidTimestamp> {
    let (micros, nanos) = parse_utc(text)?;
    from_micros((micros + i64::from(nanos > 0)).min(LAST_MICROSECOND))
}

/// Parses an RFC 3339 timestamp with an offset, and rounds it down to a microsecond.
pub fn parse_expiration(text: &str) -> Result<DateTime<Utc>, InvalidTimestamp> {
    from_micros(parse_utc(text)?.0)
}

/// Returns the microseconds since 1970 and the remaining nanoseconds. A leap second counts as the first second of the
/// next minute, as in the database.
fn parse_utc(text: &str) -> Result<(i64, u32), InvalidTimestamp> {
    let time = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.to_utc())
        .filter(|time| (0..=9999).contains(&time.year()))
        .ok_or(InvalidTimestamp)?;
    Ok((
        time.timestamp_micros(),
        time.timestamp_subsec_nanos() % 1000,
    ))
}

fn from_micros(micros: i64) -> Result<DateTime<Utc>, InvalidTimestamp> {
    DateTime::from_timestamp_micros(micros)
        .filter(|_| micros <= LAST_MICROSECOND)
        .ok_or(InvalidTimestamp)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parsed_time_has_an_rfc_3339_form_in_utc() {
        let last = "9999-12-31T23:59:59.999999Z";
        for (text, rounded_down, rounded_up) in [
            (
                "2016-12-31T23:59:60Z",
                Some("2017-01-01T00:00:00Z"),
                Some("2017-01-01T00:00:00Z"),
            ),
            (
                "2016-12-31T23:59:60.5+00:00",
                Some("2017-01-01T00:00:00.500Z"),
                Some("2017-01-01T00:00:00.500Z"),
            ),
            (
                "1969-12-31T23:59:60Z",
                Some("1970-01-01T00:00:00Z"),
                Some("1970-01-01T00:00:00Z"),
            ),
            (
                "1969-12-31T23:59:59.9999991Z",
                Some("1969-12-31T23:59:59.999999Z"),
                Some("1970-01-01T00:00:00Z"),
            ),
            (
                "0000-01-01T00:00:00Z",
                Some("0000-01-01T00:00:00Z"),
                Some("0000-01-01T00:00:00Z"),
            ),
            ("0000-01-01T00:00:00+14:00", None, None),
            ("9999-12-31T23:59:59.9999999Z", Some(last), Some(last)),
            ("9999-12-31T23:59:60Z", None, Some(last)),
            ("9999-12-31T23:59:59-14:00", None, None),
        ] {
            let show = |time: Result<DateTime<Utc>, _>| {
                time.ok()
                    .map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
            };
            assert_eq!(
                show(parse_expiration(text)).as_deref(),
                rounded_down,
                "{text}"
            );
            assert_eq!(show(parse_timestamp(text)).as_deref(), rounded_up, "{text}");
        }
    }
}
