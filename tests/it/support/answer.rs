//! A response of the service, read completely.

use reqwest::header::HeaderMap;
use serde_json::Value;

/// Sends the request and returns the response. Panics if the connection ends without one.
pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    Answer::of(request).await.expect("a response")
}

/// Status, headers and JSON body of a response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Sends the request and returns the response, or `None` if the connection ends without one.
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

    /// Returns the value of a header, or an empty string if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Returns a string member of the body, or an empty string if it is missing or not a string.
    pub fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_default()
    }

    /// Returns the token string.
    pub fn token(&self) -> &str {
        self.text("tokenString")
    }

    /// Asserts that the response contains a new token and has this `Cache-Status`.
    #[track_caller]
    pub fn assert_minted(&self, cache_status: &str) {
        assert_eq!(
            (self.status, self.text("outcome")),
            (201, "minted"),
            "{self:?}"
        );
        let expected = format!("token-vendor; {cache_status}");
        assert_eq!(self.header("cache-status"), expected);
    }

    /// Asserts that the response contains the same token as the earlier one, from the cache.
    #[track_caller]
    pub fn assert_reused(&self, earlier: &Answer) {
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

    /// Returns the slug of the problem. Asserts that the response is a complete problem document.
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

    /// Returns the pointer, parameter or header of each field error, in the order of the response.
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

    /// Asserts the status and the slug of a problem.
    #[track_caller]
    pub fn assert_problem(&self, status: u16, slug: &str) {
        assert_eq!((self.status, self.problem()), (status, slug), "{self:?}");
    }

    /// Returns the seconds of `Retry-After`.
    pub fn retry_after(&self) -> Option<u32> {
        self.headers.get("retry-after")?.to_str().ok()?.parse().ok()
    }
}
