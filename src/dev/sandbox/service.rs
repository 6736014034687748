//! From a request to the answer that it gets.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use actix_web::http::{Method, header};
use actix_web::{Error, HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use serde_json::Value;

use super::validation::{self, TokenRequest};
use super::{Answer, SandboxOptions, reply};

const HOUR: Duration = Duration::from_secs(3600);

/// How many requests the ledger keeps: some 100 MB of them.
const LEDGER: usize = 100_000;

/// A request to the sandbox and the token that it minted.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path, without a query string.
    pub path: String,
    /// Every header, its name in lower case, `authorization` included.
    pub headers: Vec<(String, String)>,
    /// The body as it came.
    pub body: String,
    /// The token that was minted, whatever the answer said.
    pub token_string: Option<String>,
}

impl Entry {
    /// The first header of that name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(value)
    }
}

/// What the requests and the tests share.
#[derive(Default)]
pub(super) struct State {
    pub options: SandboxOptions,
    pub script: VecDeque<Answer>,
    pub default: Option<Answer>,
    pub requests: u64,
    pub minted: u64,
    pub ledger: VecDeque<Entry>,
    /// When the latest authenticated requests came, at most as many as the limit.
    latest: VecDeque<Instant>,
}

impl State {
    pub fn new(options: SandboxOptions) -> Self {
        State {
            options,
            ..State::default()
        }
    }

    /// Decides the answer, mints, and records, all at once and without waiting. The answer comes
    /// with the token's document, if there is one, and how long it is to wait.
    fn take(&mut self, request: &HttpRequest, body: Option<&[u8]>) -> (Answer, Value, Duration) {
        let mut delay = self.options.latency;
        let (mut answer, asked) = match self.check(request, body) {
            Ok(asked) => (self.next_answer(), Some(asked)),
            Err(refusal) => (refusal, None),
        };
        while let Answer::Late(by, then) = answer {
            delay += by;
            answer = *then;
        }
        let asked = asked.filter(|_| !matches!(answer, Answer::Status(..)));
        let minted = asked.map(|asked| reply::mint(&asked, &answer));
        let (token_string, document) = minted.unzip();
        self.requests += 1;
        self.minted += u64::from(token_string.is_some());
        if self.ledger.len() == LEDGER {
            self.ledger.pop_front();
        }
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = request.headers().iter();
        self.ledger.push_back(Entry {
            path: request.path().to_owned(),
            headers: headers
                .map(|(name, value)| (name.to_string(), lossy(value.as_bytes())))
                .collect(),
            body: lossy(body.unwrap_or_default()),
            token_string,
        });
        (answer, document.unwrap_or_default(), delay)
    }

    /// In the framework's order: authentication and rate limit come before the method.
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

    /// Counts an authenticated request; false where it is over the limit.
    pub fn admit(&mut self, now: Instant) -> bool {
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
        let told = self.script.pop_front().or_else(|| self.default.clone());
        told.unwrap_or_else(|| match fastrand::f64() < self.options.fail_rate {
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
    let at = Utc::now();
    let (answer, document, delay) = {
        let mut state = state.lock().expect("nobody panics with it");
        state.take(&request, body.ok().as_deref())
    };
    tokio::time::sleep(delay).await;
    reply::send(&request, at, answer, document).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_of_the_limit_rolls() {
        let mut state = State::default();
        state.options.hourly_limit = 2;
        let now = Instant::now();
        let mut admit = |minute: u64| state.admit(now + Duration::from_secs(60 * minute));
        let admitted = [0, 30, 59, 61, 118, 122].map(&mut admit);
        assert_eq!(admitted, [true, true, false, false, false, true]);
    }
}
