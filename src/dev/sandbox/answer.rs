//! The answers that a test can script.

use std::time::Duration;

use serde_json::Value;

/// An answer to a valid request. Every variant except [`Status`](Answer::Status) mints a token first.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The provider's normal 201.
    Normal,
    /// The provider's error body: HTTP status (200–999), identifier, message. Mints nothing.
    Status(u16, &'static str, String),
    /// A 201 with one member changed or added, or left out for `None`.
    Override(&'static str, Option<Value>),
    /// A 201 with this expiration, whatever the requested lifetime.
    Expires {
        /// Milliseconds from now; negative for the past.
        after_ms: i64,
    },
    /// A 201 from a provider whose clock is wrong, in the expiration and in `Date`.
    Skewed {
        /// Seconds that the clock is ahead; negative for behind.
        ahead_secs: i64,
    },
    /// A 201 without a `Date` header. The connection closes after it.
    WithoutDate,
    /// Any status and body.
    Raw {
        /// The HTTP status, 200–999.
        status: u16,
        /// The `Content-Type`.
        content_type: String,
        /// The whole body.
        body: String,
    },
    /// A 302.
    Redirect {
        /// The `Location`.
        location: String,
    },
    /// Closes the connection without an answer.
    Reset,
    /// Sends these bytes instead of an HTTP response and closes the connection: a partial response, or no HTTP at all.
    /// Text that does not fit into the socket's buffer is cut off (64 KiB is safe).
    Verbatim {
        /// The bytes to send.
        text: String,
    },
    /// No answer. The connection stays open until the caller closes it.
    Hang,
    /// A 201 with an immediate head and a body that is sent byte by byte.
    Drip {
        /// Milliseconds before each byte.
        pause_ms: u64,
    },
    /// A 201 with an endless body.
    Flood,
    /// Another answer after this delay, in addition to the sandbox's latency.
    Late(Duration, Box<Answer>),
}

impl Answer {
    /// Returns the provider's error answer of this status, with the identifier that the provider uses.
    pub fn status(status: u16) -> Self {
        let (identifier, message) = match status {
            400 => ("BAD_VALUE", "Bad value."),
            401 => ("UNAUTHORIZED", "Invalid API key or secret."),
            402 => ("PARTNER_CONTRACT_ERROR", "The contract has no credit left."),
            403 => ("PERMISSIONS_ERROR", "This feature is not enabled."),
            405 => ("METHOD_NOT_ALLOWED", "Method not allowed."),
            429 => ("TOO_MANY_REQUESTS", "Request was throttled."),
            // The provider publishes no identifier for "not found" or "conflict".
            404 | 409 => ("BAD_VALUE", "Requested resource cannot be used."),
            _ => ("INTERNAL_ERROR", "Internal error."),
        };
        Answer::error(status, identifier, message)
    }

    /// Returns the provider's error body with this status.
    pub fn error(status: u16, identifier: &'static str, message: impl Into<String>) -> Self {
        Answer::Status(status, identifier, message.into())
    }

    /// Returns a 201 with one member changed or added.
    pub fn with(member: &'static str, value: impl Into<Value>) -> Self {
        Answer::Override(member, Some(value.into()))
    }

    /// Returns a 201 without one of its members.
    pub fn without(member: &'static str) -> Self {
        Answer::Override(member, None)
    }

    /// Delays this answer.
    pub fn late(self, delay: Duration) -> Self {
        Answer::Late(delay, Box::new(self))
    }
}
