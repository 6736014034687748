//! Cursors of keyset pagination. A cursor is opaque to the caller and valid for one query only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Datelike, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::api::problem::field_error::Detail;

/// The length of the truncated SHA-256 checksum, in bytes.
const CHECKSUM: usize = 8;

/// The position of the last record of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// The time of the record, to the microsecond.
    pub at: DateTime<Utc>,
    /// The id of the record.
    pub id: Uuid,
    /// The upper time bound of all pages, for lists that grow when they are read.
    pub until: Option<DateTime<Utc>>,
}

impl Cursor {
    /// Encodes the position and a checksum over the position and the filter.
    ///
    /// The JSON of `filter` must be unique per filter. The checksum detects mistakes. It needs no key:
    /// a forged cursor shows only records that the same query shows without a cursor.
    pub fn encode(self, filter: &impl Serialize) -> String {
        let mut bytes = self.at.timestamp_micros().to_be_bytes().to_vec();
        bytes.extend(self.id.as_bytes());
        bytes.extend(
            self.until
                .iter()
                .flat_map(|until| until.timestamp_micros().to_be_bytes()),
        );
        let checksum = checksum(&bytes, filter);
        bytes.extend(checksum);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a cursor that [`encode`](Cursor::encode) returned for the same filter.
    pub fn decode(text: &str, filter: &impl Serialize) -> Result<Cursor, Detail> {
        let parse = || {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let (position, given) = bytes.split_last_chunk::<CHECKSUM>()?;
            let (at, id_and_until) = position.split_first_chunk::<8>()?;
            let (id, until) = id_and_until.split_first_chunk::<16>()?;
            let cursor = Cursor {
                at: read_time(*at)?,
                id: Uuid::from_bytes(*id),
                until: match until {
                    [] => None,
                    until => Some(read_time(until.try_into().ok()?)?),
                },
            };
            (checksum(position, filter) == *given).then_some(cursor)
        };
        parse().ok_or(NOT_A_CURSOR)
    }
}

/// Encodes the position of a list in the order of API keys.
pub fn encode_key(key: &str) -> String {
    let checksum = checksum(key.as_bytes(), &());
    URL_SAFE_NO_PAD.encode([key.as_bytes(), &checksum].concat())
}

/// Decodes a cursor that [`encode_key`] returned.
pub fn decode_key(text: &str) -> Result<String, Detail> {
    let parse = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (key, given) = bytes.split_last_chunk::<CHECKSUM>()?;
        let is_right = checksum(key, &()) == *given;
        String::from_utf8(key.to_vec()).ok().filter(|_| is_right)
    };
    parse().ok_or(NOT_A_CURSOR)
}

const NOT_A_CURSOR: Detail =
    Detail::Borrowed("must be the nextCursor of a response to the same query");

fn read_time(micros: [u8; 8]) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(i64::from_be_bytes(micros))
        .filter(|time| (0..=9999).contains(&time.year()))
}

fn checksum(position: &[u8], filter: &impl Serialize) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new_with_prefix(b"token-vendor cursor 1");
    hash.update((position.len() as u64).to_be_bytes());
    hash.update(position);
    hash.update(serde_json::to_vec(filter).expect("a filter can be serialized"));
    *hash.finalize().first_chunk().expect("32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::tokens::TokenFilter;

    #[test]
    fn a_cursor_is_valid_only_for_its_own_query() {
        let filter = |user: Option<&str>, bank: Option<&str>, is_valid| TokenFilter {
            user_id: user.map(str::to_owned),
            bank: bank.map(str::to_owned),
            is_valid,
            ..TokenFilter::default()
        };
        let cursor = Cursor {
            at: DateTime::from_timestamp_micros(1_795_340_348_092_153).unwrap(),
            id: Uuid::from_u128(7),
            until: None,
        };
        let own = filter(Some("u"), None, Some(true));
        let text = cursor.encode(&own);
        assert_eq!(Cursor::decode(&text, &own), Ok(cursor));
        let bounded = Cursor {
            until: Some(cursor.at),
            ..cursor
        };
        assert_eq!(Cursor::decode(&bounded.encode(&own), &own), Ok(bounded));
        for other in [
            filter(None, None, Some(true)),
            filter(None, Some("u"), Some(true)),
            filter(Some("u"), None, Some(false)),
            filter(Some("u"), None, None),
            filter(Some("u"), Some(""), Some(true)),
        ] {
            assert!(Cursor::decode(&text, &other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_corrupted_cursor_is_rejected() {
        let filter = TokenFilter::default();
        let cursor = Cursor {
            at: DateTime::UNIX_EPOCH,
            id: Uuid::nil(),
            until: None,
        };
        let text = cursor.encode(&filter);
        for index in 0..text.len() {
            let mut corrupted = text.clone().into_bytes();
            corrupted[index] = if corrupted[index] == b'Q' { b'R' } else { b'Q' };
            let corrupted = String::from_utf8(corrupted).unwrap();
            assert!(Cursor::decode(&corrupted, &filter).is_err(), "{corrupted}");
        }
        for bad in [
            "",
            "x",
            "%",
            &text[1..],
            &format!("{text}="),
            &format!("{text}AAAA"),
        ] {
            assert!(Cursor::decode(bad, &filter).is_err(), "{bad}");
        }
        let far_future = Cursor {
            at: DateTime::<Utc>::MAX_UTC,
            id: Uuid::nil(),
            until: None,
        };
        assert!(Cursor::decode(&far_future.encode(&filter), &filter).is_err());
    }
}
