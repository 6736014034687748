//! Who calls, and what they may do.

use std::collections::BTreeSet;

use super::named_enum::named_enum;

named_enum! {
    /// A permission of an API key.
    pub enum Scope {
        /// Get a token.
        TokensIssue = "tokens:issue",
        /// Pass over a fresh token with `no-cache`.
        TokensRenew = "tokens:renew",
        /// Read token records.
        TokensRead = "tokens:read",
        /// End tokens.
        TokensInvalidate = "tokens:invalidate",
        /// Read the audit trail.
        AuditRead = "audit:read",
        /// See and run maintenance.
        Maintenance = "maintenance",
    }
}

/// An API key and what it may do. Its secret is known only as a hash.
#[derive(Clone, Debug)]
pub struct Client {
    /// The username of HTTP Basic, `[A-Za-z0-9_-]+`.
    pub api_key: String,
    /// What people call it.
    pub name: String,
    /// SHA-256 of its secret.
    pub secret_sha256: Vec<u8>,
    /// SHA-256 of the secret before it, while that is still good: as of the reading, by our
    /// database's clock.
    pub previous_secret_sha256: Option<Vec<u8>>,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// False once disabled.
    pub is_enabled: bool,
}

/// Who had something done that is not a handout.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A request.
    Request(Caller),
    /// Somebody at a command line, `cli:USER@HOST`, or the service itself.
    Actor(String),
}

/// Who is behind a request, as the audit names them.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The API key.
    pub client: String,
    /// The caller's own `X-Request-Id`, or ours.
    pub request_id: String,
    /// The address that the request came from.
    pub source_ip: Option<String>,
}
