//! The JSON bodies of tokens.

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::model::time::serialize_time;
use crate::model::{Access, Country, Fingerprint, InvalidationReason, Token};
use crate::vending::IssuedToken;

/// The characters to percent-encode: all but the unreserved ones of RFC 3986 §2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A token with its token string: the body of a handout.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenView<'a> {
    id: Uuid,
    user_id: &'a str,
    /// The secret that the provider created.
    token_string: &'a str,
    /// The expiration that the provider returned.
    #[serde(serialize_with = "serialize_time")]
    expiration: DateTime<Utc>,
    /// The remaining life by the service's clock, in whole seconds.
    expires_in: u64,
    is_valid: bool,
    country: Option<Country>,
    bank: Option<&'a str>,
    access: Access,
    #[serde(serialize_with = "serialize_time")]
    issued_at: DateTime<Utc>,
    /// The lifetime requested from the provider, in seconds.
    lifetime: i32,
    fingerprint: Fingerprint,
    /// `minted` or `reused`.
    outcome: &'static str,
    /// The link for the end user, as secret as the token in it. It is written without a buffer of its own.
    #[serde(serialize_with = "serialize_parts")]
    verification_url: (&'a str, PercentEncode<'a>),
}

impl<'a> TokenView<'a> {
    /// Creates the body of a handout. The percent-encoded token string is appended to the base URL.
    pub fn new(issued: &'a IssuedToken, verification_base_url: &'a str) -> Self {
        let token = issued.token();
        let token_string = token.token_string.expose();
        TokenView {
            id: token.id,
            user_id: &token.combination.user_id,
            token_string,
            expiration: token.expiration,
            expires_in: issued.expires_in,
            is_valid: true,
            country: token.combination.country,
            bank: token.combination.bank.as_deref(),
            access: token.combination.access,
            issued_at: token.issued_at,
            lifetime: token.lifetime,
            fingerprint: token.fingerprint,
            outcome: outcome(issued),
            verification_url: (
                verification_base_url,
                utf8_percent_encode(token_string, RESERVED),
            ),
        }
    }
}

fn serialize_parts<S: Serializer>(
    (base_url, token): &(&str, PercentEncode<'_>),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{base_url}{token}"))
}

/// Returns `minted` for the request that started the mint, and `reused` for all others.
pub fn outcome(issued: &IssuedToken) -> &'static str {
    if issued.minted { "minted" } else { "reused" }
}

/// The record of a token, without its token string.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordView<'a> {
    id: Uuid,
    user_id: &'a str,
    /// The expiration that the provider returned.
    expiration: DateTime<Utc>,
    /// True if the token was valid when the record was read.
    is_valid: bool,
    country: Option<Country>,
    bank: Option<&'a str>,
    access: Access,
    issued_at: DateTime<Utc>,
    /// The lifetime requested from the provider, in seconds.
    lifetime: i32,
    fingerprint: Fingerprint,
    invalidated_at: Option<DateTime<Utc>>,
    invalidation_reason: Option<InvalidationReason>,
}

impl<'a> RecordView<'a> {
    /// Creates the body of a record.
    pub fn new(token: &'a Token) -> Self {
        RecordView {
            id: token.id,
            user_id: &token.combination.user_id,
            expiration: token.expiration,
            is_valid: token.is_valid,
            country: token.combination.country,
            bank: token.combination.bank.as_deref(),
            access: token.combination.access,
            issued_at: token.issued_at,
            lifetime: token.lifetime,
            fingerprint: token.fingerprint,
            invalidated_at: token.invalidated_at,
            invalidation_reason: token.invalidation_reason,
        }
    }
}

/// A page of a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageView<T> {
    /// The items, at most `limit`.
    pub items: Vec<T>,
    /// The cursor of the next page. Null on the last page.
    pub next_cursor: Option<String>,
}
