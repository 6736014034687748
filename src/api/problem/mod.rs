//! Error responses as `application/problem+json` (RFC 9457).

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

/// The authentication challenges of a 401 (RFC 7617, RFC 6750).
const CHALLENGE: HeaderValue =
    HeaderValue::from_static(r#"Basic realm="token-vendor", charset="UTF-8""#);
const BEARER_CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Bearer realm="token-vendor""#);

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A kind of problem. It decides everything that does not depend on the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProblemKind {
    Malformed,
    Validation,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    RateLimited,
    /// A failure of `vending`. The model gives its slug and its meaning.
    Failed(FailureKind),
}

#[rustfmt::skip]
impl ProblemKind {
    /// Returns every kind, in the contract's order.
    pub fn all() -> impl Iterator<Item = ProblemKind> {
        use ProblemKind::*;
        [Malformed, Validation, Unauthenticated, Forbidden, NotFound, MethodNotAllowed, RequestTimeout, BodyTooLarge,
            UnsupportedMediaType, RateLimited]
            .into_iter()
            .chain(FailureKind::ALL.iter().copied().map(Failed))
    }

    /// Returns the slug, the status, the title and the meaning.
    fn row(self) -> (&'static str, StatusCode, &'static str, &'static str) {
        use {ProblemKind::*, StatusCode as S};
        match self {
            Malformed => ("malformed", S::BAD_REQUEST, "The body is not valid JSON", "The body is not JSON in UTF-8."),
            Validation => ("validation", S::BAD_REQUEST, "The request is not valid",
                "A field, a query parameter, a cursor or a header directive is invalid. `errors` names each one."),
            Unauthenticated => ("unauthenticated", S::UNAUTHORIZED, "Authentication required",
                "The credentials are missing or wrong."),
            Forbidden => ("forbidden", S::FORBIDDEN, "Not allowed", "The client lacks the required scope, or may not call from this address."),
            NotFound => ("not-found", S::NOT_FOUND, "Not found", "The path or the record does not exist."),
            MethodNotAllowed => ("method-not-allowed", S::METHOD_NOT_ALLOWED, "Method not allowed",
                "The path does not have this method. `Allow` lists its methods."),
            RequestTimeout => ("request-timeout", S::REQUEST_TIMEOUT, "The body did not arrive in time",
                "The body did not arrive within 10 seconds."),
            BodyTooLarge => ("body-too-large", S::PAYLOAD_TOO_LARGE, "The body is too large", "The body is over 16 KiB."),
            UnsupportedMediaType => ("unsupported-media-type", S::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type",
                "The body is not declared as `application/json`, or it has a `Content-Encoding`."),
            RateLimited => ("rate-limited", S::TOO_MANY_REQUESTS, "Too many requests",
                "The client exceeded its own limit of requests per second."),
            Failed(kind) => {
                let (status, title) = describe_failure(kind);
                (kind.name(), status, title, kind.meaning())
            }
        }
    }
}

#[rustfmt::skip]
fn describe_failure(kind: FailureKind) -> (StatusCode, &'static str) {
    use {FailureKind as F, StatusCode as S};
    match kind {
        F::UpstreamRejected => (S::UNPROCESSABLE_ENTITY, "The provider rejected the request"),
        F::UpstreamRefused => (S::BAD_GATEWAY, "The provider refused this service"),
        F::UpstreamFailed => (S::BAD_GATEWAY, "The provider failed"),
        F::UpstreamUnavailable => (S::SERVICE_UNAVAILABLE, "The provider is unavailable"),
        F::UpstreamBudgetSpent => (S::SERVICE_UNAVAILABLE, "The hourly budget of provider calls is spent"),
        F::MintQuotaSpent => (S::TOO_MANY_REQUESTS, "The client's hourly quota of mints is spent"),
        F::UpstreamTimeout => (S::GATEWAY_TIMEOUT, "The provider did not answer in time"),
        F::Overloaded => (S::SERVICE_UNAVAILABLE, "The service is overloaded"),
        F::DatabaseUnavailable => (S::SERVICE_UNAVAILABLE, "The database is unavailable"),
        F::IssuerUnavailable => (S::SERVICE_UNAVAILABLE, "The OIDC issuer is unavailable"),
        F::TokenUnreadable => (S::SERVICE_UNAVAILABLE, "The stored token cannot be decrypted"),
        F::Internal => (S::INTERNAL_SERVER_ERROR, "Internal error"),
    }
}

impl ProblemKind {
    /// Returns the last part of `type`.
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    /// Returns the `type` member.
    pub fn type_uri(self) -> String {
        format!("urn:token-vendor:problem:{}", self.slug())
    }

    /// Returns the HTTP status.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// Returns the `title` member.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// Returns one sentence that says when this problem occurs.
    pub fn meaning(self) -> &'static str {
        self.row().3
    }
}

/// An error that a handler returns. Only the log shows its `cause`.
///
/// The outermost middleware turns it into a response with [`Problem::to_response`], because the body
/// contains the request id.
#[derive(Debug)]
pub struct Problem {
    /// The kind of problem.
    pub kind: ProblemKind,
    /// One sentence for the caller.
    pub detail: Cow<'static, str>,
    /// The invalid fields, parameters and headers of the request, at most 20.
    pub errors: Vec<FieldError>,
    upstream: Option<Box<UpstreamAnswer>>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    accepts_bearer: bool,
    /// The cause, for the log only.
    pub cause: Option<Box<str>>,
}

impl Problem {
    /// Creates a problem. `detail` is one sentence for the caller and contains nothing internal.
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Problem {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            upstream: None,
            retry_after: None,
            allow: None,
            accepts_bearer: false,
            cause: None,
        }
    }

    /// Creates a 500. The cause is logged and not shown to the caller.
    pub fn internal(cause: impl fmt::Display) -> Self {
        let detail = "this service failed because of an internal error; report the request id to its operator";
        Problem {
            cause: Some(cause.to_string().into()),
            ..Problem::new(ProblemKind::Failed(FailureKind::Internal), detail)
        }
    }

    /// Creates a 401 for missing or wrong credentials. Its challenges include Bearer if `accepts_bearer` is true.
    pub fn unauthenticated(are_missing: bool, accepts_bearer: bool) -> Self {
        let detail = match (are_missing, accepts_bearer) {
            (true, false) => {
                "send HTTP Basic credentials: an API key as username and its secret as password"
            }
            (true, true) => {
                "send HTTP Basic credentials, or a bearer token of the OIDC issuer whose `sub` is that of a client"
            }
            (false, false) => {
                "these credentials are wrong: send a valid API key as username and its secret as password"
            }
            (false, true) => {
                "these credentials are wrong: send a valid API key with its secret, or a valid bearer token of the OIDC issuer whose `sub` is that of a client"
            }
        };
        Problem {
            accepts_bearer,
            ..Problem::new(ProblemKind::Unauthenticated, detail)
        }
    }

    /// Creates a 404 for a path or a record that does not exist.
    pub fn not_found(detail: &'static str) -> Self {
        Problem::new(ProblemKind::NotFound, detail)
    }

    /// Creates a 405. `allow` is the value of the `Allow` header.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this path accepts only {allow}");
        Problem {
            allow: Some(allow),
            ..Problem::new(ProblemKind::MethodNotAllowed, detail)
        }
    }

    /// Creates a 429 for a client that exceeded its own limit. `retry_after` is in seconds.
    pub fn rate_limited(detail: &'static str, retry_after: u32) -> Self {
        Problem {
            retry_after: Some(retry_after.max(1)),
            ..Problem::new(ProblemKind::RateLimited, detail)
        }
    }

    /// Converts an error of actix itself.
    pub fn from_framework(error: &actix_web::Error) -> Self {
        if error.as_response_error().status_code().is_client_error() {
            let detail = "the request could not be parsed; check its path, headers and body";
            return Problem::new(ProblemKind::Malformed, detail);
        }
        Problem::internal(error)
    }

    /// Builds the `application/problem+json` response.
    pub fn to_response(&self, request_id: &str, trace_id: Option<String>) -> HttpResponse {
        let status = self.kind.status();
        let mut response = self.head();
        response.insert_header((header::CONTENT_TYPE, MEDIA_TYPE));
        response.json(ProblemView {
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

    /// Starts a response with the status and the headers of this problem.
    pub fn head(&self) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.kind == ProblemKind::Unauthenticated {
            response.insert_header((header::WWW_AUTHENTICATE, CHALLENGE));
        }
        if self.accepts_bearer {
            response.append_header((header::WWW_AUTHENTICATE, BEARER_CHALLENGE));
        }
        if let Some(allow) = self.allow {
            response.insert_header((header::ALLOW, HeaderValue::from_static(allow)));
        }
        response
    }
}

/// The body of a problem, in the contract's order.
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
        let detail = "correct each entry of `errors` and send the request again";
        let detail = match errors.unlisted() {
            0 => Cow::from(detail),
            more => format!("{detail}; {more} more errors are not listed").into(),
        };
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
            ..Problem::from(Failure::from(&error))
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

    /// Returns a placeholder. The outermost middleware replaces it by [`Problem::to_response`].
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}
