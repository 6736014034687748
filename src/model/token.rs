//! Bank tokens: the secret token string and its record.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::{Combination, named_enum::named_enum};

/// The secret value of a token. `Debug` redacts it. Its memory is wiped when it is dropped.
///
/// The buffers of this service that hold a token string are wiped too. The copies of libraries and of the kernel cannot
/// be: the read and write buffers of hyper, actix and rustls, and the unescaped text of a string with escapes in
/// serde_json. Later requests overwrite them.
pub struct TokenString(SecretString);

impl TokenString {
    /// Copies a token string. The caller wipes the original.
    pub fn new(text: &str) -> Self {
        TokenString(text.into())
    }

    /// Returns the secret. Use it only for the response to an authorised caller, for encryption and for the
    /// fingerprint.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for TokenString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenString([REDACTED])")
    }
}

/// HMAC-SHA256 of a token string. It identifies the token in places where the secret must not appear.
///
/// Its text form has 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint([u8; 32]);

/// Error: the text does not have 64 hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must have 64 hexadecimal digits")]
pub struct InvalidFingerprint;

impl From<[u8; 32]> for Fingerprint {
    fn from(tag: [u8; 32]) -> Self {
        Fingerprint(tag)
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let mut tag = [0; 32];
        hex::decode_to_slice(text, &mut tag).map_err(|_| InvalidFingerprint)?;
        Ok(Fingerprint(tag))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).expect("the buffer has two digits per byte");
        f.pad(str::from_utf8(&digits).expect("hexadecimal digits are ASCII"))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

named_enum! {
    /// The reason for the invalidation of a token.
    pub enum InvalidationReason {
        /// The user has finished, and the provider does not accept the token again.
        Used = "used",
        /// The token string appeared where it must not be.
        Compromised = "compromised",
        /// The invalidation was requested for another reason.
        Requested = "requested",
    }
}

/// The record of an issued token, without its token string. One row of `tokens`.
#[derive(Clone, Debug)]
pub struct Token {
    /// The id, a UUIDv7. Its mint has the same id.
    pub id: Uuid,
    /// The combination.
    pub combination: Combination,
    /// The expiration that the provider returned. It is only displayed.
    pub expiration: DateTime<Utc>,
    /// The expiration by the database's clock. It decides whether the token is valid.
    pub ends_at: DateTime<Utc>,
    /// The time at which the token was recorded, by the database's clock.
    pub issued_at: DateTime<Utc>,
    /// The lifetime requested from the provider, in seconds, 0 to 2592000.
    pub lifetime: i32,
    /// True if the token was neither invalidated nor expired when it was read, by the database's clock.
    pub is_valid: bool,
    /// The time of the invalidation, if the token was invalidated.
    pub invalidated_at: Option<DateTime<Utc>>,
    /// The reason for the invalidation, if the token was invalidated.
    pub invalidation_reason: Option<InvalidationReason>,
    /// The fingerprint, which identifies the token in the audit log.
    pub fingerprint: Fingerprint,
}

/// A token with its token string, as it is handed out.
///
/// It has only the members of [`Token`] that a response contains, because the cache holds many of these.
#[derive(Debug)]
pub struct TokenWithSecret {
    /// The id of the record.
    pub id: Uuid,
    /// The combination.
    pub combination: Combination,
    /// The expiration that the provider returned.
    pub expiration: DateTime<Utc>,
    /// The time at which the token was recorded, by the database's clock.
    pub issued_at: DateTime<Utc>,
    /// The lifetime requested from the provider, in seconds.
    pub lifetime: i32,
    /// The fingerprint, which identifies the token in the audit log.
    pub fingerprint: Fingerprint,
    /// The token string.
    pub token_string: TokenString,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_string_is_wiped_when_it_is_dropped() {
        fn assert_wiped_on_drop<T: secrecy::zeroize::ZeroizeOnDrop>(_: &T) {}
        let TokenString(secret) = &TokenString::new("secret");
        assert_wiped_on_drop(secret);
    }

    #[test]
    fn a_fingerprint_converts_to_text_and_back() {
        let tag = std::array::from_fn(|n| n as u8 * 8 + 7);
        let text = Fingerprint::from(tag).to_string();
        assert!(
            text.starts_with("070f171f") && text.ends_with("eff7ff"),
            "{text}"
        );
        assert_eq!(text.parse(), Ok(Fingerprint(tag)));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('f', "g")] {
            assert_eq!(
                wrong.parse::<Fingerprint>(),
                Err(InvalidFingerprint),
                "{wrong}"
            );
        }
    }
}
