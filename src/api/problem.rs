//! What an answer says when it is not the thing asked for: RFC 9457.

use std::borrow::Cow;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use super::fault::{Fault, Faults};
use super::problem_kind::ProblemKind;
use crate::db::DbError;
use crate::model::FailureKind;
use crate::model::{Failure, UpstreamAnswer};

/// The challenge of a 401, RFC 7617.
const CHALLENGE: HeaderValue =
    HeaderValue::from_static(r#"Basic realm="token-vendor", charset="UTF-8""#);

/// The media type of RFC 9457.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A problem on its way to the caller, with what only the log may see.
///
/// It becomes a body in [`Problem::answer`], once the request id is at hand.
#[derive(Debug)]
pub struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    errors: Vec<Fault>,
    upstream: Option<UpstreamAnswer>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    cause: Option<String>,
}

impl Problem {
    /// A problem of that kind; `detail` is one sentence for the caller, nothing internal.
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Problem(Box::new(Parts {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            upstream: None,
            retry_after: None,
            allow: None,
            cause: None,
        }))
    }

    /// A mistake of ours: the cause is logged, not shown.
    pub fn internal(cause: impl fmt::Display) -> Self {
        let mut problem = Problem::new(
            ProblemKind::Failed(FailureKind::Internal),
            "the request failed by a mistake of this service",
        );
        problem.0.cause = Some(cause.to_string());
        problem
    }

    /// There is nothing at this path, or no such thing on record.
    pub fn not_found(detail: &'static str) -> Self {
        Problem::new(ProblemKind::NotFound, detail)
    }

    /// The path has other methods, listed as `Allow` lists them.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let mut problem = Problem::new(
            ProblemKind::MethodNotAllowed,
            format!("the methods of this path are {allow}"),
        );
        problem.0.allow = Some(allow);
        problem
    }

    /// The client's own limit is reached; it has room again after so many seconds.
    pub fn rate_limited(retry_after: u32) -> Self {
        let mut problem = Problem::new(
            ProblemKind::RateLimited,
            "this client's limit of requests a second is reached",
        );
        problem.0.retry_after = Some(retry_after);
        problem
    }

    /// Its class.
    pub fn kind(&self) -> ProblemKind {
        self.0.kind
    }

    /// What is behind it, for the log alone.
    pub fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// The problem behind an error that the framework turned into an answer.
    pub fn from_framework(error: &actix_web::Error) -> Self {
        let status = error.as_response_error().status_code();
        let kind = match status {
            StatusCode::NOT_FOUND => ProblemKind::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => ProblemKind::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => ProblemKind::RequestTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => ProblemKind::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ProblemKind::UnsupportedMediaType,
            _ if status.is_client_error() => ProblemKind::Malformed,
            _ => return Problem::internal(error),
        };
        Problem::new(kind, "the request could not be read")
    }

    /// The answer: `application/problem+json` and the headers that belong to it.
    pub fn answer(&self, request_id: &str) -> HttpResponse {
        let Parts {
            kind,
            detail,
            errors,
            upstream,
            retry_after,
            allow,
            ..
        } = &*self.0;
        let (slug, status, title) = kind.row();
        let mut answer = HttpResponse::build(status);
        answer.insert_header((header::CONTENT_TYPE, MEDIA_TYPE));
        if kind.may_be_retried() {
            answer.insert_header((header::RETRY_AFTER, retry_after.unwrap_or(1).max(1)));
        }
        if *kind == ProblemKind::Unauthenticated {
            answer.insert_header((header::WWW_AUTHENTICATE, CHALLENGE));
        }
        if let Some(allow) = allow {
            answer.insert_header((header::ALLOW, HeaderValue::from_static(allow)));
        }
        answer.json(ProblemView {
            type_uri: format!("urn:token-vendor:problem:{slug}"),
            title,
            status: status.as_u16(),
            detail,
            request_id,
            errors,
            upstream: upstream.as_ref(),
        })
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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [Fault],
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a UpstreamAnswer>,
}

impl From<Faults> for Problem {
    fn from(faults: Faults) -> Self {
        let mut problem = Problem::new(
            ProblemKind::Validation,
            "the request has errors, each listed under `errors`",
        );
        problem.0.errors = faults.into_vec();
        problem
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let mut problem = Problem::new(ProblemKind::Failed(failure.kind), failure.detail);
        problem.0.upstream = failure.upstream;
        problem.0.retry_after = failure.retry_after;
        problem
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        let mut problem = Problem::from(Failure::database());
        problem.0.cause = Some(error.to_string());
        problem
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().slug())
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind().status()
    }

    /// A placeholder: the outermost middleware replaces it by [`Problem::answer`].
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::FailureKind;

    async fn parts(problem: &Problem) -> (HttpResponse<()>, Value) {
        let (head, body) = problem.answer("r-1").into_parts();
        let body = to_bytes(body).await.expect("a body in memory");
        (head, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn every_failure_has_its_status_and_says_whether_to_retry() {
        let expected = [
            ("upstream-rejected", 422, false),
            ("upstream-refused", 502, false),
            ("upstream-failed", 502, true),
            ("upstream-unavailable", 503, true),
            ("upstream-budget-spent", 503, true),
            ("upstream-timeout", 504, true),
            ("overloaded", 503, true),
            ("database-unavailable", 503, true),
            ("token-unreadable", 503, true),
            ("internal", 500, false),
        ];
        assert_eq!(expected.len(), FailureKind::ALL.len());
        for (slug, status, retry) in expected {
            let kind = FailureKind::from_name(slug).expect("a kind");
            let failure = Failure::new(kind, "why").with_retry_after(7);
            let (head, body) = parts(&failure.into()).await;
            assert_eq!(head.status().as_u16(), status, "{slug}");
            assert_eq!(body["status"], status);
            assert_eq!(body["type"], format!("urn:token-vendor:problem:{slug}"));
            let retry_after = head.headers().get(header::RETRY_AFTER);
            assert_eq!(
                retry_after.map(HeaderValue::as_bytes),
                retry.then_some(&b"7"[..])
            );
        }
    }

    #[tokio::test]
    async fn faults_are_listed() {
        let mut faults = Faults::default();
        faults.pointer("#/country", "must be one of …");
        faults.parameter("limit", "must be …");
        faults.header("Cache-Control", "bad");
        let (head, body) = parts(&faults.into()).await;
        assert_eq!(head.headers().get(header::CONTENT_TYPE), Some(&MEDIA_TYPE));
        assert_eq!(
            body["errors"],
            json!([
                {"detail": "must be one of …", "pointer": "#/country"},
                {"detail": "must be …", "parameter": "limit"},
                {"detail": "bad", "header": "Cache-Control"},
            ])
        );
        assert_eq!(body["requestId"], "r-1");
        assert_eq!(body.get("upstream"), None);
    }

    #[tokio::test]
    async fn the_upstreams_answer_is_shown_and_a_cause_is_not() {
        let answer = UpstreamAnswer {
            status: 409,
            identifier: Some("BAD_VALUE".into()),
            message: None,
        };
        let failure = Failure::new(FailureKind::UpstreamRejected, "why").with_upstream(answer);
        let (_, body) = parts(&failure.into()).await;
        assert_eq!(
            body["upstream"],
            json!({"status": 409, "identifier": "BAD_VALUE"})
        );

        let (head, body) = parts(&Problem::internal("secret cause")).await;
        assert_eq!(head.status().as_u16(), 500);
        assert!(!body.to_string().contains("secret cause"));
    }

    #[tokio::test]
    async fn a_401_challenges_and_a_405_lists_the_methods() {
        let problem = Problem::new(ProblemKind::Unauthenticated, "no");
        let (head, _) = parts(&problem).await;
        assert_eq!(
            head.headers().get(header::WWW_AUTHENTICATE),
            Some(&CHALLENGE)
        );
        let (head, _) = parts(&Problem::method_not_allowed("GET, HEAD")).await;
        assert_eq!(head.headers().get(header::ALLOW).unwrap(), "GET, HEAD");
    }
}
