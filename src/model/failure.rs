//! How a mint can fail, in the caller's terms.

use serde::{Deserialize, Serialize};

use super::named_enum::named_enum;

named_enum! {
    /// What the caller is told of a mint that did not give a token. The names are the contract's
    /// problem slugs.
    pub enum FailureKind {
        /// The upstream refused this request itself (its 400, 409, 422).
        UpstreamRejected = "upstream-rejected",
        /// The upstream refused us: credentials, credit, contract (its 401, 402, 403, 404).
        UpstreamRefused = "upstream-refused",
        /// It failed, was lost after sending, or answered what is not its contract.
        UpstreamFailed = "upstream-failed",
        /// It could not be reached, limits our rate, or our circuit is open.
        UpstreamUnavailable = "upstream-unavailable",
        /// The hourly budget of calls is used up.
        UpstreamBudgetSpent = "upstream-budget-spent",
        /// No answer in time, or the token's life was over before it could be handed out.
        UpstreamTimeout = "upstream-timeout",
        /// This replica has too much in hand.
        Overloaded = "overloaded",
        /// The database cannot be reached or did not say whether it committed.
        DatabaseUnavailable = "database-unavailable",
        /// A stored token does not open: tampered with, or its key is missing.
        TokenUnreadable = "token-unreadable",
        /// A fault of this program.
        Internal = "internal",
    }
}

/// What the upstream said when it refused, for the caller to see.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpstreamAnswer {
    /// Its HTTP status.
    pub status: u16,
    /// Its error identifier (`BAD_VALUE`, …), if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// Its message, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What is kept of the upstream's message, in characters.
const MAX_MESSAGE: usize = 300;

impl UpstreamAnswer {
    /// Drops the texts that may not be told, and cuts what remains to 300 characters.
    pub fn shorten(&mut self, may_be_told: impl Fn(&str) -> bool) {
        self.identifier.take_if(|text| !may_be_told(text));
        self.message.take_if(|text| !may_be_told(text));
        if let Some(message) = &mut self.message
            && let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE)
        {
            message.truncate(end);
        }
    }
}

/// Why there is no token: shared by all who wait for the same mint, and kept in the slot for its
/// cooldown so that other replicas repeat it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", kind.name())]
pub struct Failure {
    /// The class of failure.
    pub kind: FailureKind,
    /// One sentence for the caller; nothing internal.
    pub detail: String,
    /// The upstream's own answer, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamAnswer>,
    /// Seconds after which trying again makes sense, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Failure {
    /// A failure that may be tried again after a second.
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

    /// The database cannot be used now, or did not say whether it committed.
    pub fn database() -> Self {
        Failure::new(
            FailureKind::DatabaseUnavailable,
            "the database is unavailable; nothing was handed out",
        )
    }

    /// This replica has too much in hand.
    pub fn overloaded() -> Self {
        Failure::new(FailureKind::Overloaded, "too many requests are in hand")
    }

    /// There was no token in time.
    pub fn timeout() -> Self {
        Failure::new(
            FailureKind::UpstreamTimeout,
            "there was no token in time; one that comes later is kept for the next request",
        )
    }

    /// A fault of this program.
    pub fn internal() -> Self {
        Failure::new(FailureKind::Internal, "something went wrong here")
    }

    /// Sets the upstream's own answer.
    pub fn with_upstream(mut self, answer: UpstreamAnswer) -> Self {
        self.upstream = Some(answer);
        self
    }

    /// Sets the seconds to wait before trying again.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }
}
