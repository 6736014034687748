//! What a test can have the sandbox answer.

use std::time::Duration;

use serde_json::Value;

/// An answer to a valid request. All but [`Status`](Answer::Status) mint a token first.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// What the provider would answer.
    Normal,
    /// The provider's error body: HTTP status (200–999), identifier, message; nothing is minted.
    Status(u16, &'static str, String),
    /// A 201 with a member changed or added, or, for `None`, left out.
    Override(&'static str, Option<Value>),
    /// A 201 whose expiration lies this long after now, whatever lifetime was asked.
    Expires {
        /// Milliseconds; negative for the past.
        after_ms: i64,
    },
    /// A 201 by a clock that is off, in the expiration and in `Date`.
    Skewed {
        /// Seconds that the clock is ahead; negative for behind.
        ahead_secs: i64,
    },
    /// A 201 without a `Date` header, on a connection that is closed after it.
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
    /// The connection is closed without a byte of an answer.
    Reset,
    /// These bytes in place of an HTTP response, then the connection is closed: half an answer,
    /// or what is no HTTP. At most what the socket takes at once is sent (64 KiB is safe).
    Verbatim {
        /// What is sent.
        text: String,
    },
    /// No answer ever; the connection stays open until the caller closes it.
    Hang,
    /// The 201, its head at once and its body byte by byte.
    Drip {
        /// Milliseconds before each byte.
        pause_ms: u64,
    },
    /// A 201 whose body never ends.
    Flood,
    /// Another answer, so much later, in addition to the sandbox's latency.
    Late(Duration, Box<Answer>),
}

impl Answer {
    /// The provider's error answer of this status, with the identifier that it uses for it.
    pub fn status(status: u16) -> Self {
        let (identifier, message) = match status {
            400 => ("BAD_VALUE", "Bad value."),
            401 => ("UNAUTHORIZED", "Invalid API key or secret."),
            402 => ("PARTNER_CONTRACT_ERROR", "The contract has no credit left."),
            403 => ("PERMISSIONS_ERROR", "This feature is not enabled."),
            405 => ("METHOD_NOT_ALLOWED", "Method not allowed."),
            429 => ("TOO_MANY_REQUESTS", "Request was throttled."),
            // The published identifiers name neither "not found" nor "conflict".
            404 | 409 => ("BAD_VALUE", "Requested resource cannot be used."),
            _ => ("INTERNAL_ERROR", "Internal error."),
        };
        Answer::error(status, identifier, message)
    }

    /// The provider's error body under this status.
    pub fn error(status: u16, identifier: &'static str, message: impl Into<String>) -> Self {
        Answer::Status(status, identifier, message.into())
    }

    /// A 201 with one member changed or added.
    pub fn with(member: &'static str, value: impl Into<Value>) -> Self {
        Answer::Override(member, Some(value.into()))
    }

    /// A 201 without one of its members.
    pub fn without(member: &'static str) -> Self {
        Answer::Override(member, None)
    }

    /// This answer, so much later.
    pub fn late(self, by: Duration) -> Self {
        Answer::Late(by, Box::new(self))
    }
}
