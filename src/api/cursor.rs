//! Where the next page of a list begins: opaque to the caller, good for one query only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Datelike, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::fault::Detail;
use crate::db::tokens::TokenFilter;

/// The bytes of the checksum, of 32.
const CHECKSUM: usize = 8;

/// The last record of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// Its time, to the microsecond.
    pub at: DateTime<Utc>,
    /// Its id.
    pub id: Uuid,
}

impl Cursor {
    /// Its text: the position, and a checksum over it and the filter. Nothing in it is secret, and
    /// who computes one gets no more than the list would show; the checksum tells mistakes.
    pub fn encode(self, filter: &TokenFilter) -> String {
        let mut bytes = self.position();
        bytes.extend(self.checksum(filter));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The inverse of [`encode`](Cursor::encode) under the same filter.
    pub fn decode(text: &str, filter: &TokenFilter) -> Result<Cursor, Detail> {
        let parse = || {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let (micros, rest) = bytes.split_first_chunk::<8>()?;
            let (id, checksum) = rest.split_first_chunk::<16>()?;
            let at = DateTime::from_timestamp_micros(i64::from_be_bytes(*micros))?;
            let cursor = Cursor {
                at,
                id: Uuid::from_bytes(*id),
            };
            let is_ours = cursor.checksum(filter) == checksum && (0..=9999).contains(&at.year());
            is_ours.then_some(cursor)
        };
        parse().ok_or(Detail::Borrowed(
            "must be the nextCursor of an answer to this very query",
        ))
    }

    fn position(self) -> Vec<u8> {
        let mut bytes = self.at.timestamp_micros().to_be_bytes().to_vec();
        bytes.extend(self.id.as_bytes());
        bytes
    }

    fn checksum(self, filter: &TokenFilter) -> [u8; CHECKSUM] {
        let mut hash = Sha256::new_with_prefix(b"token-vendor list of tokens 1");
        hash.update(self.position());
        let mut part = |part: Option<&[u8]>| {
            // No part is that long: absent differs from every value.
            hash.update(
                part.map_or(u64::MAX, |part| part.len() as u64)
                    .to_be_bytes(),
            );
            hash.update(part.unwrap_or_default());
        };
        let micros = |time: Option<DateTime<Utc>>| time.map(|t| t.timestamp_micros().to_be_bytes());
        part(filter.user_id.as_deref().map(str::as_bytes));
        part(filter.country.map(|country| country.code().as_bytes()));
        part(filter.bank.as_deref().map(str::as_bytes));
        part(
            filter
                .is_valid
                .map(|is_valid| [u8::from(is_valid)])
                .as_ref()
                .map(|b| &b[..]),
        );
        part(micros(filter.from).as_ref().map(|bytes| &bytes[..]));
        part(micros(filter.to).as_ref().map(|bytes| &bytes[..]));
        *hash.finalize().first_chunk().expect("32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        };
        let own = filter(Some("u"), None, Some(true));
        let text = cursor.encode(&own);
        assert_eq!(Cursor::decode(&text, &own), Ok(cursor));
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
        };
        assert!(Cursor::decode(&far.encode(&filter), &filter).is_err());
    }
}
