//! A bank token: the secret string, and the record that we keep of it.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::{Combination, named_enum::named_enum};

/// The bearer secret that the upstream minted. Redacted in `Debug`, wiped when dropped.
#[derive(Clone)]
pub struct TokenString(SecretString);

impl TokenString {
    /// Wraps a secret as the upstream gave it.
    pub fn new(text: String) -> Self {
        TokenString(text.into())
    }

    /// The secret itself: for the answer to an authorised caller, sealing and fingerprinting only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for TokenString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenString([REDACTED])")
    }
}

/// HMAC-SHA256 of a token string: names the token where its secret must not be. Lower-case hex
/// outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint([u8; 32]);

/// The text is not 64 digits of hex.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 digits of hex")]
pub struct NoFingerprint;

impl From<[u8; 32]> for Fingerprint {
    fn from(tag: [u8; 32]) -> Self {
        Fingerprint(tag)
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let mut tag = [0; 32];
        hex::decode_to_slice(text, &mut tag).map_err(|_| NoFingerprint)?;
        Ok(Fingerprint(tag))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).expect("two digits a byte");
        f.pad(str::from_utf8(&digits).expect("digits are ASCII"))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

named_enum! {
    /// Why a token was ended before its time.
    pub enum InvalidationReason {
        /// Its user has finished: the upstream takes it no more.
        Used = "used",
        /// It was seen where it should not be.
        Compromised = "compromised",
        /// Somebody asked for it.
        Requested = "requested",
    }
}

/// What an issued token is and was, without its secret. One row of `tokens`.
#[derive(Clone, Debug)]
pub struct Token {
    /// UUIDv7; the same as that of the mint that made it.
    pub id: Uuid,
    /// What it is for.
    pub combination: Combination,
    /// When it ends by the upstream's word. Shown, never decided by.
    pub expiration: DateTime<Utc>,
    /// When it ends by our database's clock. Decides.
    pub ends_at: DateTime<Utc>,
    /// When it was recorded, by our database's clock.
    pub issued_at: DateTime<Utc>,
    /// Seconds that were asked of the upstream, 0…2592000.
    pub lifetime: i32,
    /// Not ended, and its time not over: as of the reading, by our database's clock.
    pub is_valid: bool,
    /// When it was invalidated, if it was.
    pub invalidated_at: Option<DateTime<Utc>>,
    /// Why it was invalidated, if it was.
    pub invalidation_reason: Option<InvalidationReason>,
    /// Names the token in the audit.
    pub fingerprint: Fingerprint,
}

/// A token with its secret, as it is handed out: of its [`Token`] what an answer tells, since many
/// are held in memory.
#[derive(Debug)]
pub struct TokenWithSecret {
    /// That of its record.
    pub id: Uuid,
    /// What it is for.
    pub combination: Combination,
    /// When it ends by the upstream's word.
    pub expiration: DateTime<Utc>,
    /// When it was recorded, by our database's clock.
    pub issued_at: DateTime<Utc>,
    /// Seconds that were asked of the upstream.
    pub lifetime: i32,
    /// Names the token in the audit.
    pub fingerprint: Fingerprint,
    /// The secret.
    pub token_string: TokenString,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_survives_its_hex() {
        let tag = std::array::from_fn(|n| n as u8 * 8 + 7);
        let text = Fingerprint::from(tag).to_string();
        assert!(
            text.starts_with("070f171f") && text.ends_with("eff7ff"),
            "{text}"
        );
        assert_eq!(text.parse(), Ok(Fingerprint(tag)));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('f', "g")] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(NoFingerprint), "{wrong}");
        }
    }
}
