//! A bank token: the secret string, and the record that we keep of it.

use std::fmt;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{Combination, failure::from_names};

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

from_names! {
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
    /// HMAC-SHA256 of the token string, in hex: names the token in the audit.
    pub fingerprint: String,
}

/// A token with its secret, as it is handed out.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The record.
    pub token: Token,
    /// The secret.
    pub token_string: TokenString,
}
