//! What is written to the audit trail.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::combination::Access;
use super::named_enum::named_enum;
use super::time::serialize_time;

named_enum! {
    /// The kind of an audit event.
    pub enum EventKind {
        /// A token was minted, for the request named.
        TokenMinted = "token.minted",
        /// A token on record was handed out, or authorised to be.
        TokenReused = "token.reused",
        /// A mint failed, and the upstream made nothing that we know of.
        TokenMintFailed = "token.mint_failed",
        /// Nobody knows whether the upstream minted.
        TokenMintUnknown = "token.mint_unknown",
        /// A token was ended before its time.
        TokenInvalidated = "token.invalidated",
        /// A token's time was over.
        TokenExpired = "token.expired",
        /// A cleanup did something.
        CleanupRan = "cleanup.ran",
        /// Calls were refused with 401 or 403; how many, `detail.count` says.
        AccessDenied = "access.denied",
        /// The trail was read.
        AuditRead = "audit.read",
        /// A client was created.
        ClientCreated = "client.created",
        /// A client was disabled.
        ClientDisabled = "client.disabled",
        /// A client was given a new secret.
        ClientRotated = "client.rotated",
        /// Stored tokens were sealed anew, under the first key.
        KeysRotated = "keys.rotated",
    }
}

/// An event as it is on record; as JSON, its members are the contract's. It owns what it says unless
/// it is an [`EventRef`].
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent<Text = String, Detail = Value> {
    /// Unique, given by whoever wrote it.
    pub id: Uuid,
    /// When, to the microsecond.
    #[serde(serialize_with = "serialize_time")]
    pub occurred_at: DateTime<Utc>,
    /// An [`EventKind`], or a later version's.
    pub kind: Text,
    /// The API key of the caller.
    pub client: Option<Text>,
    /// The caller's own `X-Request-Id`, or ours.
    pub request_id: Option<Text>,
    /// The address that the request came from.
    pub source_ip: Option<Text>,
    /// The user whose token it is about.
    pub user_id: Option<Text>,
    /// The token's country; none for "any" and where it is about no token. So is the bank.
    pub country: Option<Text>,
    /// The token's bank.
    pub bank: Option<Text>,
    /// What the token gives access to.
    pub access: Option<Access>,
    /// The token, or the mint that made none.
    pub token_id: Option<Uuid>,
    /// The name of the token string.
    pub fingerprint: Option<Text>,
    /// What else there is to say, by kind.
    pub detail: Option<Detail>,
}

/// An event that is in a row as it came from the database.
pub type EventRef<'r> = AuditEvent<&'r str, &'r RawValue>;

impl From<&EventRef<'_>> for AuditEvent {
    fn from(event: &EventRef<'_>) -> Self {
        AuditEvent {
            id: event.id,
            occurred_at: event.occurred_at,
            kind: event.kind.to_owned(),
            client: event.client.map(str::to_owned),
            request_id: event.request_id.map(str::to_owned),
            source_ip: event.source_ip.map(str::to_owned),
            user_id: event.user_id.map(str::to_owned),
            country: event.country.map(str::to_owned),
            bank: event.bank.map(str::to_owned),
            access: event.access,
            token_id: event.token_id,
            fingerprint: event.fingerprint.map(str::to_owned),
            detail: event.detail.map(|detail| json!(detail)),
        }
    }
}
