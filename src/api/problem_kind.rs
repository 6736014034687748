//! The classes of problems: the one table that slug, status and title come from.

use actix_web::http::StatusCode;

use crate::model::FailureKind;

/// The class of a problem: everything about it that does not depend on the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProblemKind {
    /// The body is not JSON in UTF-8.
    Malformed,
    /// A field, a query parameter or a header directive is wrong.
    Validation,
    /// No client of ours says this.
    Unauthenticated,
    /// The client lacks the scope.
    Forbidden,
    /// There is nothing at this path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The body is over its bound.
    BodyTooLarge,
    /// The body is not declared as plain `application/json`.
    UnsupportedMediaType,
    /// The client asks more often than it may.
    RateLimited,
    /// A failure of the vending, named as the model names it.
    Failed(FailureKind),
}

impl ProblemKind {
    /// The contract's table: slug, status, title.
    #[rustfmt::skip]
    pub fn row(self) -> (&'static str, StatusCode, &'static str) {
        use FailureKind as F;
        use StatusCode as S;
        match self {
            Self::Malformed => ("malformed", S::BAD_REQUEST, "The body is not JSON"),
            Self::Validation => ("validation", S::BAD_REQUEST, "The request is not valid"),
            Self::Unauthenticated => ("unauthenticated", S::UNAUTHORIZED, "Not authenticated"),
            Self::Forbidden => ("forbidden", S::FORBIDDEN, "Not allowed"),
            Self::NotFound => ("not-found", S::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => ("method-not-allowed", S::METHOD_NOT_ALLOWED, "Method not allowed"),
            Self::RequestTimeout => ("request-timeout", S::REQUEST_TIMEOUT, "The body took too long"),
            Self::BodyTooLarge => ("body-too-large", S::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => ("unsupported-media-type", S::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
            Self::RateLimited => ("rate-limited", S::TOO_MANY_REQUESTS, "Too many requests"),
            Self::Failed(kind) => {
                let (status, title) = match kind {
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
                };
                (kind.name(), status, title)
            }
        }
    }

    /// The last part of its `type`.
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    /// Its HTTP status.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// Whether the same request may succeed later: exactly these answers carry `Retry-After`.
    pub fn may_be_retried(self) -> bool {
        match self {
            ProblemKind::Failed(kind) => !matches!(
                kind,
                FailureKind::UpstreamRejected
                    | FailureKind::UpstreamRefused
                    | FailureKind::Internal
            ),
            _ => self == ProblemKind::RateLimited,
        }
    }
}
