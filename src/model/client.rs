//! Clients, their scopes, and the caller of a request.

use std::collections::BTreeSet;

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
    }
}

/// An API key with its scopes. Only the hash of the secret is stored.
#[derive(Clone, Debug)]
pub struct Client {
    /// The username of HTTP Basic, `[A-Za-z0-9_-]+`.
    pub api_key: String,
    /// The display name.
    pub name: String,
    /// SHA-256 of the secret.
    pub secret_sha256: Vec<u8>,
    /// SHA-256 of the previous secret. `None` unless that secret was valid when the client was read, by the database's
    /// clock.
    pub previous_secret_sha256: Option<Vec<u8>>,
    /// The permissions.
    pub scopes: BTreeSet<Scope>,
    /// False after the client was disabled.
    pub is_enabled: bool,
    /// The `sub` of the bearer tokens of this client. Nobody knows the secret of a client that has one.
    pub oidc_subject: Option<String>,
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
