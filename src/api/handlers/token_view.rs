//! Tokens as callers see them.

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use uuid::Uuid;

use crate::model::time::serialize_time;
use crate::model::{Access, Country, Fingerprint, InvalidationReason, Token};
use crate::vending::IssuedToken;

/// What RFC 3986 §2.3 does not call unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A token that is handed out, with its secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenView<'a> {
    id: Uuid,
    user_id: &'a str,
    /// The bearer secret.
    token_string: &'a str,
    /// When it ends, by the upstream's word.
    #[serde(serialize_with = "serialize_time")]
    expiration: DateTime<Utc>,
    /// Whole seconds that are left, by our clock.
    expires_in: u64,
    is_valid: bool,
    country: Option<Country>,
    bank: Option<&'a str>,
    access: Access,
    #[serde(serialize_with = "serialize_time")]
    issued_at: DateTime<Utc>,
    /// Seconds that were asked of the upstream.
    lifetime: i32,
    fingerprint: Fingerprint,
    /// `minted` or `reused`.
    outcome: &'static str,
    /// The link for the end user, as secret as the token in it.
    verification_url: String,
}

impl<'a> TokenView<'a> {
    /// The view of a handout; the token is appended to the base address, percent-encoded.
    pub fn new(issued: &'a IssuedToken, verification_base_url: &str) -> Self {
        let token = issued.token();
        let token_string = token.token_string.expose();
        let encoded = utf8_percent_encode(token_string, RESERVED);
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
            verification_url: format!("{verification_base_url}{encoded}"),
        }
    }
}

/// `minted` for the request that started the mint, `reused` for every other.
pub fn outcome(issued: &IssuedToken) -> &'static str {
    if issued.minted { "minted" } else { "reused" }
}

/// The record of a token, without its secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordView<'a> {
    id: Uuid,
    user_id: &'a str,
    /// When it ends, by the upstream's word.
    expiration: DateTime<Utc>,
    /// As of the reading.
    is_valid: bool,
    country: Option<Country>,
    bank: Option<&'a str>,
    access: Access,
    issued_at: DateTime<Utc>,
    /// Seconds that were asked of the upstream.
    lifetime: i32,
    fingerprint: Fingerprint,
    invalidated_at: Option<DateTime<Utc>>,
    invalidation_reason: Option<InvalidationReason>,
}

impl<'a> RecordView<'a> {
    /// The view of a record.
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
    /// At most as many as were asked for.
    pub items: Vec<T>,
    /// Gives the next page; null on the last one.
    pub next_cursor: Option<String>,
}
