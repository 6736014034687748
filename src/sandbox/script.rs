//! What a test can have the sandbox answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An answer to a valid request. All but [`Status`](Answer::Status) mint a token first.
///
/// In JSON: `{"answer": "status", "status": 503, "identifier": "…", "message": "…"}`,
/// `{"answer": "override", "set": {"isValid": false}}`, `{"answer": "hang"}`, and so on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// What the provider would answer.
    Normal,
    /// The provider's error body under this status; nothing is minted.
    Status {
        /// The HTTP status; 500 in place of what is none (200–999 can be sent).
        status: u16,
        /// The provider's name for the error.
        identifier: String,
        /// Its explanation.
        message: String,
    },
    /// A 201 with some of its members changed, added or left out.
    Override {
        /// Members and the values that they get, of any type.
        #[serde(default)]
        set: Map<String, Value>,
        /// Members to leave out.
        #[serde(default)]
        remove: Vec<String>,
    },
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
        /// The HTTP status, as in [`Status`](Answer::Status).
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
    /// Another answer, later: this in addition to the sandbox's latency.
    Late {
        /// Milliseconds.
        by_ms: u64,
        /// The answer.
        then: Box<Answer>,
    },
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
    pub fn error(status: u16, identifier: &str, message: impl Into<String>) -> Self {
        Answer::Status {
            status,
            identifier: identifier.into(),
            message: message.into(),
        }
    }

    /// A 201 with one member changed or added.
    pub fn with(member: &str, value: impl Into<Value>) -> Self {
        Answer::Override {
            set: Map::from_iter([(member.into(), value.into())]),
            remove: Vec::new(),
        }
    }

    /// A 201 without one of its members.
    pub fn without(member: &str) -> Self {
        Answer::Override {
            set: Map::new(),
            remove: vec![member.into()],
        }
    }

    /// This answer, later by this in addition to the sandbox's latency.
    pub fn late(self, by: Duration) -> Self {
        Answer::Late {
            by_ms: by.as_millis() as u64,
            then: Box::new(self),
        }
    }

    /// The answer itself and how much later it comes.
    pub(super) fn unwrap_late(self) -> (Answer, Duration) {
        let (mut answer, mut delay) = (self, Duration::ZERO);
        while let Answer::Late { by_ms, then } = answer {
            delay += Duration::from_millis(by_ms);
            answer = *then;
        }
        (answer, delay)
    }

    /// The status that the caller will see, if any.
    pub(super) fn http_status(&self) -> Option<u16> {
        match self {
            Answer::Status { status, .. } | Answer::Raw { status, .. } => Some(*status),
            Answer::Redirect { .. } => Some(302),
            Answer::Reset | Answer::Verbatim { .. } | Answer::Hang => None,
            Answer::Late { then, .. } => then.http_status(),
            _ => Some(201),
        }
    }
}
