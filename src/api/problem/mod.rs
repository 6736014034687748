//! What an answer says when it is not the thing asked for: RFC 9457.

pub mod field_error;

use std::borrow::Cow;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde::Serialize;

use self::field_error::{FieldError, FieldErrors};
use crate::db::DbError;
use crate::model::{Failure, FailureKind, UpstreamAnswer};

/// The challenge of a 401, RFC 7617.
const CHALLENGE: HeaderValue =
    HeaderValue::from_static(r#"Basic realm="token-vendor", charset="UTF-8""#);

/// The media type of RFC 9457.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

macro_rules! problem_kinds {
    ($($(#[doc = $meaning:literal])+ $variant:ident = ($slug:literal, $status:ident, $title:literal),)+) => {
        /// The class of a problem: everything about it that does not depend on the request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum ProblemKind {
            $($(#[doc = $meaning])+ $variant,)+
            /// A failure of the vending, named as the model names it.
            Failed(FailureKind),
        }

        impl ProblemKind {
            /// Every kind, in the contract's order.
            pub fn all() -> impl Iterator<Item = ProblemKind> {
                let failures = FailureKind::ALL.iter().copied().map(ProblemKind::Failed);
                [$(ProblemKind::$variant),+].into_iter().chain(failures)
            }

            /// The contract's table: slug, status, title, and when it is the answer.
            fn row(self) -> (&'static str, StatusCode, &'static str, &'static str) {
                match self {
                    $(Self::$variant => ($slug, StatusCode::$status, $title, concat!($($meaning),+).trim_start()),)+
                    Self::Failed(kind) => {
                        let (status, title) = failure(kind);
                        (kind.name(), status, title, kind.meaning())
                    }
                }
            }
        }
    };
}

problem_kinds! {
    /// The body is not JSON in UTF-8.
    Malformed = ("malformed", BAD_REQUEST, "The body is not JSON"),
    /// A field, a query parameter, a cursor or a header directive is wrong; `errors` names each.
    Validation = ("validation", BAD_REQUEST, "The request is not valid"),
    /// There is no client of this key and this secret.
    Unauthenticated = ("unauthenticated", UNAUTHORIZED, "Not authenticated"),
    /// The client lacks the scope.
    Forbidden = ("forbidden", FORBIDDEN, "Not allowed"),
    /// There is nothing at this path, or no such thing on record.
    NotFound = ("not-found", NOT_FOUND, "Not found"),
    /// The path has other methods, which `Allow` lists.
    MethodNotAllowed = ("method-not-allowed", METHOD_NOT_ALLOWED, "Method not allowed"),
    /// The body did not arrive within 10 seconds.
    RequestTimeout = ("request-timeout", REQUEST_TIMEOUT, "The body took too long"),
    /// The body has more than 16 KiB.
    BodyTooLarge = ("body-too-large", PAYLOAD_TOO_LARGE, "The body is too large"),
    /// The body is not declared as `application/json`, or has a `Content-Encoding`.
    UnsupportedMediaType = ("unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
    /// This client's own limit of requests a second is reached.
    RateLimited = ("rate-limited", TOO_MANY_REQUESTS, "Too many requests"),
}

#[rustfmt::skip]
fn failure(kind: FailureKind) -> (StatusCode, &'static str) {
    use {FailureKind as F, StatusCode as S};
    match kind {
        F::UpstreamRejected => (S::UNPROCESSABLE_ENTITY, "The upstream rejected the request"),
        F::UpstreamRefused => (S::BAD_GATEWAY, "The upstream refused this service"),
        F::UpstreamFailed => (S::BAD_GATEWAY, "The upstream failed"),
        F::UpstreamUnavailable => (S::SERVICE_UNAVAILABLE, "The upstream is unavailable"),
        F::UpstreamBudgetSpent => (S::SERVICE_UNAVAILABLE, "The upstream's budget is spent"),
        F::UpstreamTimeout => (S::GATEWAY_TIMEOUT, "The upstream took too long"),
        F::Overloaded => (S::SERVICE_UNAVAILABLE, "Overloaded"),
        F::DatabaseUnavailable => (S::SERVICE_UNAVAILABLE, "The database is unavailable"),
        F::TokenUnreadable => (S::SERVICE_UNAVAILABLE, "The token is unreadable"),
        F::Internal => (S::INTERNAL_SERVER_ERROR, "Internal error"),
    }
}

impl ProblemKind {
    /// The last part of its `type`.
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    /// Its `type`.
    pub fn type_uri(self) -> String {
        format!("urn:token-vendor:problem:{}", self.slug())
    }

    /// Its status.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// Its `title`.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// When it is the answer, in a sentence.
    pub fn meaning(self) -> &'static str {
        self.row().3
    }
}

/// A problem on its way to the caller, with what only the log may see.
///
/// It becomes a body in [`Problem::answer`], once the request id is at hand.
#[derive(Debug)]
pub struct Problem {
    /// Its class.
    pub kind: ProblemKind,
    /// One sentence for the caller.
    pub detail: Cow<'static, str>,
    /// All that is wrong with the request.
    pub errors: Vec<FieldError>,
    upstream: Option<Box<UpstreamAnswer>>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    /// What is behind it, for the log alone.
    pub cause: Option<Box<str>>,
}

impl Problem {
    /// A problem of that kind; `detail` is one sentence for the caller, nothing internal.
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Problem {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            upstream: None,
            retry_after: None,
            allow: None,
            cause: None,
        }
    }

    /// A mistake of ours: the cause is logged, not shown.
    pub fn internal(cause: impl fmt::Display) -> Self {
        let detail = "the request failed by a mistake of this service";
        Problem {
            cause: Some(cause.to_string().into()),
            ..Problem::new(ProblemKind::Failed(FailureKind::Internal), detail)
        }
    }

    /// There is nothing at this path, or no such thing on record.
    pub fn not_found(detail: &'static str) -> Self {
        Problem::new(ProblemKind::NotFound, detail)
    }

    /// The path has other methods, listed as `Allow` lists them.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("the methods of this path are {allow}");
        Problem {
            allow: Some(allow),
            ..Problem::new(ProblemKind::MethodNotAllowed, detail)
        }
    }

    /// The client's own limit is reached; it has room again after so many seconds.
    pub fn rate_limited(retry_after: u32) -> Self {
        let detail = "this client's limit of requests a second is reached";
        Problem {
            retry_after: Some(retry_after.max(1)),
            ..Problem::new(ProblemKind::RateLimited, detail)
        }
    }

    /// The problem behind an error that the framework turned into an answer.
    pub fn from_framework(error: &actix_web::Error) -> Self {
        if error.as_response_error().status_code().is_client_error() {
            return Problem::new(ProblemKind::Malformed, "the request could not be read");
        }
        Problem::internal(error)
    }

    /// The answer as a program reads it: `application/problem+json`.
    pub fn answer(&self, request_id: &str, trace_id: Option<String>) -> HttpResponse {
        let status = self.kind.status();
        let mut answer = self.head();
        answer.insert_header((header::CONTENT_TYPE, MEDIA_TYPE));
        answer.json(ProblemView {
            type_uri: self.kind.type_uri(),
            title: self.kind.title(),
            status: status.as_u16(),
            detail: &self.detail,
            request_id,
            trace_id,
            errors: &self.errors,
            upstream: self.upstream.as_deref(),
        })
    }

    /// The status and the headers that belong to it, before any body.
    pub fn head(&self) -> HttpResponseBuilder {
        let mut answer = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.retry_after {
            answer.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.kind == ProblemKind::Unauthenticated {
            answer.insert_header((header::WWW_AUTHENTICATE, CHALLENGE));
        }
        if let Some(allow) = self.allow {
            answer.insert_header((header::ALLOW, HeaderValue::from_static(allow)));
        }
        answer
    }
}

/// The members of the body, in the contract's order.
#[derive(Serialize)]
struct ProblemView<'a> {
    #[serde(rename = "type")]
    type_uri: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(rename = "requestId")]
    request_id: &'a str,
    #[serde(rename = "traceId", skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a UpstreamAnswer>,
}

impl From<FieldErrors> for Problem {
    fn from(errors: FieldErrors) -> Self {
        let detail = "the request has errors, each listed under `errors`";
        Problem {
            errors: errors.into_vec(),
            ..Problem::new(ProblemKind::Validation, detail)
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Problem {
            upstream: failure.upstream.map(Box::new),
            retry_after: failure.retry_after,
            ..Problem::new(ProblemKind::Failed(failure.kind), failure.detail)
        }
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        Problem {
            cause: Some(error.to_string().into()),
            ..Problem::from(Failure::database())
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.slug())
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind.status()
    }

    /// A placeholder: the outermost middleware replaces it by [`Problem::answer`].
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}
