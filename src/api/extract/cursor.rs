//! Where the next page of a list begins: opaque to the caller, good for one query only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Datelike, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::api::problem::field_error::Detail;

/// The bytes of the checksum, of 32.
const CHECKSUM: usize = 8;

/// The last record of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// Its time, to the microsecond.
    pub at: DateTime<Utc>,
    /// Its id.
    pub id: Uuid,
    /// Where the walk ends, for lists that grow by being read.
    pub until: Option<DateTime<Utc>>,
}

impl Cursor {
    /// Its text: the position, and a checksum over it and the filter, which is any value whose JSON
    /// tells it from every other. Nothing in it is secret, and who computes one gets no more than
    /// the list would show; the checksum tells mistakes.
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

    /// The inverse of [`encode`](Cursor::encode) under the same filter.
    pub fn decode(text: &str, filter: &impl Serialize) -> Result<Cursor, Detail> {
        let parse = || {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let (position, given) = bytes.split_last_chunk::<CHECKSUM>()?;
            let (at, rest) = position.split_first_chunk::<8>()?;
            let (id, until) = rest.split_first_chunk::<16>()?;
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
        parse().ok_or(Detail::Borrowed(
            "must be the nextCursor of an answer to this very query",
        ))
    }
}

fn read_time(micros: [u8; 8]) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(i64::from_be_bytes(micros))
        .filter(|time| (0..=9999).contains(&time.year()))
}

fn checksum(position: &[u8], filter: &impl Serialize) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new_with_prefix(b"token-vendor cursor 1");
    hash.update((position.len() as u64).to_be_bytes());
    hash.update(position);
    hash.update(serde_json::to_vec(filter).expect("a filter has a JSON form"));
    *hash.finalize().first_chunk().expect("32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::tokens::TokenFilter;

    #[test]
    fn a_cursor_is_good_for_its_own_query_alone() {
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
        let ending = Cursor {
            until: Some(cursor.at),
            ..cursor
        };
        assert_eq!(Cursor::decode(&ending.encode(&own), &own), Ok(ending));
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
    fn what_is_garbled_is_refused() {
        let filter = TokenFilter::default();
        let cursor = Cursor {
            at: DateTime::UNIX_EPOCH,
            id: Uuid::nil(),
            until: None,
        };
        let text = cursor.encode(&filter);
        for index in 0..text.len() {
            let mut garbled = text.clone().into_bytes();
            garbled[index] = if garbled[index] == b'Q' { b'R' } else { b'Q' };
            let garbled = String::from_utf8(garbled).unwrap();
            assert!(Cursor::decode(&garbled, &filter).is_err(), "{garbled}");
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
        let far = Cursor {
            at: DateTime::<Utc>::MAX_UTC,
            id: Uuid::nil(),
            until: None,
        };
        assert!(Cursor::decode(&far.encode(&filter), &filter).is_err());
    }
}
