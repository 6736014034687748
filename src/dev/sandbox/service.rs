//! Decides the answer to each request and records the request.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use actix_web::http::{Method, header};
use actix_web::{Error, HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::validation::{self, TokenRequest};
use super::{Answer, SandboxOptions, reply};

const HOUR: Duration = Duration::from_secs(3600);

/// The maximum number of requests in the ledger, about 100 MB.
const MAX_LEDGER: usize = 100_000;

/// A request to the sandbox and the token that it minted.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// The path without the query string.
    pub path: String,
    /// Every header, including `authorization`. Names are in lower case.
    pub headers: Vec<(String, String)>,
    /// The unchanged body.
    pub body: String,
    /// The minted token string, whatever the answer.
    pub token_string: Option<String>,
    /// The expiration in the answer.
    pub expires_at: Option<DateTime<Utc>>,
    /// True once the user has finished the verification.
    pub is_used: bool,
}

impl RecordedRequest {
    /// Returns the first header of that name, which must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(value)
    }
}

/// The state that requests and tests share.
#[derive(Default)]
pub(super) struct State {
    pub options: SandboxOptions,
    pub script: VecDeque<Answer>,
    pub default: Option<Answer>,
    pub requests: u64,
    pub minted: u64,
    pub ledger: VecDeque<RecordedRequest>,
    /// The times of the latest authenticated requests, at most `hourly_limit` of them.
    latest: VecDeque<Instant>,
}

impl State {
    pub fn new(options: SandboxOptions) -> Self {
        State {
            options,
            ..State::default()
        }
    }

    /// Decides the answer, mints and records, without waiting.
    ///
    /// Returns the answer, the body of the 201 or null, and the delay of the answer.
    fn handle(&mut self, request: &HttpRequest, body: Option<&[u8]>) -> (Answer, Value, Duration) {
        let mut delay = self.options.latency;
        let (mut answer, token_request) = match self.check(request, body) {
            Ok(token_request) => (self.next_answer(), Some(token_request)),
            Err(rejection) => (rejection, None),
        };
        while let Answer::Late(extra_delay, delayed) = answer {
            delay += extra_delay;
            answer = *delayed;
        }
        let token_request = token_request.filter(|_| !matches!(answer, Answer::Status(..)));
        let minted = token_request.map(|token_request| reply::mint(&token_request, &answer));
        let (token_string, document) = minted.unzip();
        let document = document.unwrap_or_default();
        let expires_at = document["expiration"].as_str();
        self.requests += 1;
        self.minted += u64::from(token_string.is_some());
        if self.ledger.len() == MAX_LEDGER {
            self.ledger.pop_front();
        }
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = request.headers().iter();
        self.ledger.push_back(RecordedRequest {
            path: request.path().to_owned(),
            headers: headers
                .map(|(name, value)| (name.to_string(), lossy(value.as_bytes())))
                .collect(),
            body: lossy(body.unwrap_or_default()),
            token_string,
            expires_at: expires_at.and_then(|text| text.parse().ok()),
            is_used: false,
        });
        (answer, document, delay)
    }

    /// Checks a request in the order of Django REST framework: authentication and rate limit before the method.
    fn check(
        &mut self,
        request: &HttpRequest,
        body: Option<&[u8]>,
    ) -> Result<TokenRequest, Answer> {
        let header = |name| request.headers().get(name)?.to_str().ok();
        let SandboxOptions {
            api_key,
            api_secret,
            ..
        } = &self.options;
        let credentials = STANDARD.encode(format!("{api_key}:{api_secret}"));
        if request.path() != "/bank/tokens/" {
            return Err(Answer::status(404));
        }
        match header(header::AUTHORIZATION).and_then(|value| value.split_once(' ')) {
            Some((scheme, given))
                if scheme.eq_ignore_ascii_case("basic") && given == credentials => {}
            _ => return Err(Answer::status(401)),
        }
        if !self.admit(Instant::now()) {
            return Err(Answer::status(429));
        }
        if request.method() != Method::POST {
            return Err(Answer::status(405));
        }
        let Some(body) = body else {
            let message = "The body is too large or incomplete.";
            return Err(Answer::error(400, "BAD_VALUE", message));
        };
        validation::parse(header(header::CONTENT_TYPE), body)
    }

    /// Counts an authenticated request. Returns false if it exceeds the hourly limit.
    fn admit(&mut self, now: Instant) -> bool {
        let limit = self.options.hourly_limit as usize;
        if limit == 0 {
            return true;
        }
        let is_full = self.latest.len() == limit;
        let oldest = self.latest.pop_front_if(|_| is_full);
        self.latest.push_back(now);
        oldest.is_none_or(|oldest| now.duration_since(oldest) >= HOUR)
    }

    fn next_answer(&mut self) -> Answer {
        let scripted = self.script.pop_front().or_else(|| self.default.clone());
        scripted.unwrap_or_else(|| match fastrand::f64() < self.options.fail_rate {
            true => Answer::status(500),
            false => Answer::Normal,
        })
    }
}

pub(super) async fn answer(
    request: HttpRequest,
    body: Result<web::Bytes, Error>,
    state: web::Data<Mutex<State>>,
) -> HttpResponse {
    #[expect(
        clippy::disallowed_methods,
        reason = "the sandbox acts as the provider, which has its own clock"
    )]
    let decided_at = Utc::now();
    let (answer, document, delay) = {
        let mut state = state.lock().expect("the lock is not poisoned");
        state.handle(&request, body.ok().as_deref())
    };
    tokio::time::sleep(delay).await;
    reply::send(&request, decided_at, answer, document).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hourly_limit_applies_to_a_rolling_hour() {
        let mut state = State::default();
        state.options.hourly_limit = 2;
        let now = Instant::now();
        let mut admit = |minute: u64| state.admit(now + Duration::from_secs(60 * minute));
        let admitted = [0, 30, 59, 61, 118, 122].map(&mut admit);
        assert_eq!(admitted, [true, true, false, false, false, true]);
    }
}
