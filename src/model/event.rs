//! Audit events and their kinds.

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
        /// A token was minted for the request with this `requestId`.
        TokenMinted = "token.minted",
        /// A token on record was handed out, or its handout was authorised.
        TokenReused = "token.reused",
        /// A mint failed. `detail.possiblyMinted` counts the attempts that may have minted a token.
        TokenMintFailed = "token.mint_failed",
        /// The outcome of a mint is unknown: the provider may have minted a token.
        TokenMintUnknown = "token.mint_unknown",
        /// A token was invalidated.
        TokenInvalidated = "token.invalidated",
        /// A token expired.
        TokenExpired = "token.expired",
        /// The record of a token string was searched.
        TokenLookedUp = "token.looked_up",
        /// Token records were read.
        TokenRead = "token.read",
        /// A cleanup run made changes.
        CleanupRan = "cleanup.ran",
        /// Requests were refused with 401 or 403. `detail.count` is their number.
        AccessDenied = "access.denied",
        /// The audit log was read.
        AuditRead = "audit.read",
        /// A client was created.
        ClientCreated = "client.created",
        /// The name, scopes, limits or expiry of a client changed. `detail` has the values before and after.
        ClientUpdated = "client.updated",
        /// A client was disabled.
        ClientDisabled = "client.disabled",
        /// The secret of a client was rotated.
        ClientRotated = "client.rotated",
        /// Stored tokens were encrypted again, under the first key.
        KeysRotated = "keys.rotated",
        /// The data of a person was erased. `detail.leafIndexes` has the redacted entries of the sealed log.
        UserErased = "user.erased",
    }
}

/// A recorded audit event. Its JSON form is part of the public interface. It owns its data, except as [`EventRef`].
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent<Text = String, Detail = Value> {
    /// The unique id.
    pub id: Uuid,
    /// The time of the event, in microseconds.
    #[serde(serialize_with = "serialize_time")]
    pub occurred_at: DateTime<Utc>,
    /// The name of an [`EventKind`], or of a kind that a later version added.
    pub kind: Text,
    /// The API key of the caller.
    pub client: Option<Text>,
    /// The name of that client when the event was read. It is not part of the event, and an entry of the sealed log has
    /// none.
    #[serde(skip)]
    pub client_name: Option<Text>,
    /// The `X-Request-Id` of the request, or the id that the service created.
    pub request_id: Option<Text>,
    /// The source address of the request.
    pub source_ip: Option<Text>,
    /// The user of the token.
    pub user_id: Option<Text>,
    /// The country of the token. `None` for "any" and for events without a token.
    pub country: Option<Text>,
    /// The bank of the token. `None` for "any" and for events without a token.
    pub bank: Option<Text>,
    /// The access of the token.
    pub access: Option<Access>,
    /// The id of the token, or of the mint that gave no token.
    pub token_id: Option<Uuid>,
    /// The fingerprint of the token string.
    pub fingerprint: Option<Text>,
    /// Further members, which depend on the kind.
    pub detail: Option<Detail>,
}

/// An event that borrows its data from a database row.
pub type EventRef<'r> = AuditEvent<&'r str, &'r RawValue>;

impl From<&EventRef<'_>> for AuditEvent {
    fn from(event: &EventRef<'_>) -> Self {
        AuditEvent {
            id: event.id,
            occurred_at: event.occurred_at,
            kind: event.kind.to_owned(),
            client: event.client.map(str::to_owned),
            client_name: event.client_name.map(str::to_owned),
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
