//! Clients, their scopes, and the caller of a request.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use ipnet::IpNet;
use serde::Serialize;

use super::named_enum::named_enum;

named_enum! {
    /// A permission of an API key.
    pub enum Scope {
        /// Request tokens.
        TokensIssue = "tokens:issue",
        /// Request a new token with `no-cache` although a valid one can be reused.
        TokensRenew = "tokens:renew",
        /// Read token records.
        TokensRead = "tokens:read",
        /// Invalidate tokens.
        TokensInvalidate = "tokens:invalidate",
        /// Read the audit log.
        AuditRead = "audit:read",
        /// Read the state of the cleanup and run it.
        Maintenance = "maintenance",
        /// Manage clients. A client can grant only scopes that it holds.
        ClientsManage = "clients:manage",
    }
}

/// An API key with its scopes. Only the hash of the secret is stored.
#[derive(Clone, Debug)]
pub struct Client {
    /// The username of HTTP Basic, `[A-Za-z0-9_-]+`.
    pub api_key: String,
    /// The display name.
    pub name: String,
    /// SHA-256 of the current secret. The console derives its form tokens from it.
    pub secret_sha256: Vec<u8>,
    /// The permissions.
    pub scopes: BTreeSet<Scope>,
    /// The limits.
    pub limits: ClientLimits,
    /// True if the use of the client on this day was recorded before it was read.
    pub is_use_recorded: bool,
}

/// The limits of a client.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientLimits {
    /// The maximum number of mints in an hour, over all replicas. `None` for no limit.
    pub mints_per_hour: Option<i32>,
    /// The maximum number of requests per second, per replica. `None` for `CLIENT_RATE_LIMIT`.
    pub requests_per_second: Option<i32>,
    /// The networks from which the client may call. `None` for any.
    pub allow_from: Option<Vec<IpNet>>,
}

/// The part of a client that an operator sets.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientSettings {
    /// The display name. Enabled clients have different names.
    pub name: String,
    /// The permissions.
    pub scopes: BTreeSet<Scope>,
    /// The limits.
    #[serde(flatten)]
    pub limits: ClientLimits,
    /// The time after which no secret of the client is accepted. `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// The `sub` of the bearer tokens of the client. A client that has one has no secret.
    pub oidc_subject: Option<String>,
}

/// A client without its secrets. The JSON form is part of the public interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientRecord {
    /// The API key.
    pub api_key: String,
    /// The part that an operator sets.
    #[serde(flatten)]
    pub settings: ClientSettings,
    /// False after the client was disabled.
    pub is_enabled: bool,
    /// The time of creation.
    pub created_at: DateTime<Utc>,
    /// The time of the last rotation.
    pub rotated_at: Option<DateTime<Utc>>,
    /// The day of the last use, in UTC.
    pub last_used_on: Option<NaiveDate>,
}

impl ClientRecord {
    /// Returns true if no secret of the client is accepted at the time `now`, because it expired.
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.settings.expires_at.is_some_and(|end| end <= now)
    }
}

/// A change of the settings of a client. A field of `None` stays as it is. An inner `None` removes the value.
#[derive(Clone, Default, Debug)]
pub struct ClientChange {
    /// The display name.
    pub name: Option<String>,
    /// The permissions.
    pub scopes: Option<BTreeSet<Scope>>,
    /// The maximum number of mints in an hour.
    pub mints_per_hour: Option<Option<i32>>,
    /// The maximum number of requests per second.
    pub requests_per_second: Option<Option<i32>>,
    /// The networks from which the client may call.
    pub allow_from: Option<Option<Vec<IpNet>>>,
    /// The time until the expiry, from now on.
    pub expires_in: Option<Option<Duration>>,
    /// The `sub` of the bearer tokens.
    pub oidc_subject: Option<Option<String>>,
}

impl ClientChange {
    /// Applies the change at the time `now`.
    pub fn apply(self, settings: &mut ClientSettings, now: DateTime<Utc>) {
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let expiry = |length| now + TimeDelta::from_std(length).unwrap_or_default();
        set(&mut settings.name, self.name);
        set(&mut settings.scopes, self.scopes);
        set(&mut settings.limits.mints_per_hour, self.mints_per_hour);
        let requests = &mut settings.limits.requests_per_second;
        set(requests, self.requests_per_second);
        set(&mut settings.limits.allow_from, self.allow_from);
        let expires_at = self.expires_in.map(|length| length.map(expiry));
        set(&mut settings.expires_at, expires_at);
        set(&mut settings.oidc_subject, self.oidc_subject);
    }
}

/// The one who changes clients.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The origin of the change, for the audit log.
    pub origin: Origin,
    /// The scopes that it can grant. `None` for a command, which can grant all.
    pub scopes: Option<BTreeSet<Scope>>,
}

/// The reason why a client was not created or changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientRefusal {
    /// No client has the key.
    #[error("no client has the API key {0:?}")]
    Unknown(String),
    /// The client is disabled, which cannot be undone.
    #[error("client {0:?} is disabled; create a new client")]
    Disabled(String),
    /// The key of the new client exists.
    #[error("a client with the API key {0:?} exists already")]
    KeyTaken(String),
    /// Another enabled client has the name.
    #[error("is the name of client {0} already; choose another name")]
    NameTaken(String),
    /// Another enabled client has the subject.
    #[error("is the subject of client {0} already; disable that client first")]
    SubjectTaken(String),
    /// The client has a subject, and so no secret.
    #[error("client {0:?} has no secret: it uses bearer tokens of the issuer")]
    NoSecret(String),
    /// The operator lacks a scope that the client has or gets.
    #[error("use another client: this one lacks the scope {0}, which the client has or would get")]
    ScopeNotHeld(String),
}

/// The origin of a maintenance operation.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An HTTP request.
    Request(Caller),
    /// An operator at a command line, `cli:USER@HOST`, or `schedule` for the service itself.
    Actor(String),
}

/// The caller of a request, as the audit log records it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The API key of the client.
    pub client: String,
    /// The `X-Request-Id` of the request, or the id that the service created.
    pub request_id: String,
    /// The source address of the request.
    pub source_ip: Option<String>,
}
