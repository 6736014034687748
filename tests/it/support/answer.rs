//! An answer of the service, read to its end.

use reqwest::header::HeaderMap;
use serde_json::Value;

/// Sends the request and reads the answer; there must be one.
pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    Answer::of(request).await.expect("an answer")
}

/// Status, headers and JSON body.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Sends the request and reads the answer; `None` if there was none.
    pub async fn of(request: reqwest::RequestBuilder) -> Option<Answer> {
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.ok()?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Some(Answer {
            status,
            headers,
            body,
        })
    }

    /// A header's text, empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// A member of the body as text, empty if it is none.
    pub fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_default()
    }

    /// The token string.
    pub fn token(&self) -> &str {
        self.text("tokenString")
    }

    /// Checks that it hands out a new token, come by so.
    #[track_caller]
    pub fn is_minted(&self, cache_status: &str) {
        assert_eq!(
            (self.status, self.text("outcome")),
            (201, "minted"),
            "{self:?}"
        );
        let expected = format!("token-vendor; {cache_status}");
        assert_eq!(self.header("cache-status"), expected);
    }

    /// Checks that it hands out the token of an earlier one again.
    #[track_caller]
    pub fn is_reused(&self, earlier: &Answer) {
        assert_eq!(
            (self.status, self.text("outcome")),
            (200, "reused"),
            "{self:?}"
        );
        let expected = format!("token-vendor; hit; ttl={}", self.body["expiresIn"]);
        assert_eq!(self.header("cache-status"), expected);
        assert_eq!(
            (self.text("id"), self.token()),
            (earlier.text("id"), earlier.token())
        );
    }

    /// The problem's slug; checks that the answer is a problem in the contract's shape.
    #[track_caller]
    pub fn problem(&self) -> &str {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{self:?}"
        );
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert_eq!(
            self.text("requestId"),
            self.header("x-request-id"),
            "{self:?}"
        );
        assert!(!self.text("title").is_empty(), "{self:?}");
        self.text("type")
            .strip_prefix("urn:token-vendor:problem:")
            .unwrap()
    }

    /// What the problem's errors point to, in order.
    pub fn pointers(&self) -> Vec<&str> {
        let errors = self.body["errors"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let kinds = ["pointer", "parameter", "header"];
        errors
            .iter()
            .map(|error| kinds.iter().find_map(|kind| error[kind].as_str()).unwrap())
            .collect()
    }

    /// Checks status and slug at once.
    #[track_caller]
    pub fn is_problem(&self, status: u16, slug: &str) {
        assert_eq!((self.status, self.problem()), (status, slug), "{self:?}");
    }

    /// Seconds in `Retry-After`, if there is one.
    pub fn retry_after(&self) -> Option<u32> {
        self.headers.get("retry-after")?.to_str().ok()?.parse().ok()
    }
}
