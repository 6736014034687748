//! The failures of a token request, as the caller sees them.

use serde::{Deserialize, Serialize};

use super::named_enum::named_enum;

named_enum! {
    /// The class of a failure. The names are problem slugs of the public interface.
    pub enum FailureKind {
        /// The provider rejected this request (its status 400, 409 or 422).
        UpstreamRejected = "upstream-rejected",
        /// The provider refused this service because of its credentials, credit or contract (its status 401 to 404).
        UpstreamRefused = "upstream-refused",
        /// The provider failed, the connection to it was lost after sending, or its answer breaks its contract.
        UpstreamFailed = "upstream-failed",
        /// The provider cannot be reached, limits the rate of this service, or failed 20 mints in a row.
        UpstreamUnavailable = "upstream-unavailable",
        /// The hourly budget of calls to the provider is spent.
        UpstreamBudgetSpent = "upstream-budget-spent",
        /// The client's own hourly quota of mints is spent. Stored tokens are still reused.
        MintQuotaSpent = "mint-quota-spent",
        /// The provider did not answer in time, or the token expired before it could be handed out.
        UpstreamTimeout = "upstream-timeout",
        /// This replica has too many requests in progress.
        Overloaded = "overloaded",
        /// The database is unavailable, or the outcome of a COMMIT is unknown.
        DatabaseUnavailable = "database-unavailable",
        /// The keys of the OIDC issuer have not been read since the start, so bearer tokens cannot be checked.
        IssuerUnavailable = "issuer-unavailable",
        /// A stored token cannot be decrypted: it was changed, or its key is missing in TOKEN_KEYS.
        TokenUnreadable = "token-unreadable",
        /// An error in this service.
        Internal = "internal",
    }
}

/// The provider's error answer, as the caller sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpstreamAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The error identifier, such as `BAD_VALUE`, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// The message, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The maximum length of the provider's message, in characters. The rest is cut off.
const MAX_MESSAGE: usize = 300;

impl UpstreamAnswer {
    /// Removes texts that contain a secret, and cuts the message to 300 characters.
    pub fn redact(&mut self, is_secret: impl Fn(&str) -> bool) {
        self.identifier.take_if(|text| is_secret(text));
        self.message.take_if(|text| is_secret(text));
        if let Some(message) = &mut self.message
            && let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE)
        {
            message.truncate(end);
        }
    }
}

/// The reason why a request got no token.
///
/// All requests that wait for the same mint get the same failure. The slot stores it during the cooldown, so that other
/// replicas repeat it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", kind.name())]
pub struct Failure {
    /// The class of failure.
    pub kind: FailureKind,
    /// One sentence for the caller, without internal data.
    pub detail: String,
    /// The provider's answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamAnswer>,
    /// Seconds after which the caller may retry. `None` if the caller must not retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Failure {
    /// Creates a failure with a `retry_after` of 1 second, or of `None` if a retry of the same request does not help.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let retry_after = !matches!(
            kind,
            FailureKind::UpstreamRejected | FailureKind::UpstreamRefused | FailureKind::Internal
        );
        Failure {
            kind,
            detail: detail.into(),
            upstream: None,
            retry_after: retry_after.then_some(1),
        }
    }

    /// Creates the failure of a database that is unavailable or whose COMMIT has an unknown outcome.
    pub fn database() -> Self {
        Failure::new(
            FailureKind::DatabaseUnavailable,
            "the database did not confirm this request",
        )
    }

    /// Creates the failure of an overloaded replica.
    pub fn overloaded() -> Self {
        Failure::new(
            FailureKind::Overloaded,
            "this replica has too many requests in progress",
        )
    }

    /// Creates the failure of a request that got no token in time.
    pub fn timeout() -> Self {
        Failure::new(
            FailureKind::UpstreamTimeout,
            "no token was available in time; a token that arrives later is kept for the next request",
        )
    }

    /// Creates the failure of an error in this service.
    pub fn internal() -> Self {
        Failure::new(FailureKind::Internal, "an internal error occurred")
    }

    /// Sets the provider's answer.
    pub fn with_upstream(mut self, answer: UpstreamAnswer) -> Self {
        self.upstream = Some(answer);
        self
    }

    /// Sets the seconds after which the caller may retry, at least 1.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }
}
