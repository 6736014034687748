//! From a request to the answer that it gets, and the sandbox's own calls.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::{Method, header};
use actix_web::{Error, HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use serde_json::{Map, Value, json};

use super::ledger::{Entry, Ledger};
use super::{Answer, SandboxOptions, TokenRequest, reply, validation};

const HOUR: Duration = Duration::from_secs(3600);

/// What the requests share.
pub(super) struct State {
    /// The base64 of the key pair.
    credentials: String,
    hourly_limit: usize,
    fail_rate: f64,
    changing: Mutex<Changing>,
}

/// The part that requests and tests change.
#[derive(Default)]
pub(super) struct Changing {
    pub script: VecDeque<Answer>,
    pub default: Option<Answer>,
    pub latency: Duration,
    pub ledger: Ledger,
    /// When the latest authenticated requests came, at most as many as the limit.
    latest: VecDeque<Instant>,
}

impl State {
    pub fn new(options: SandboxOptions) -> Self {
        State {
            credentials: STANDARD.encode(format!("{}:{}", options.api_key, options.api_secret)),
            hourly_limit: options.hourly_limit as usize,
            fail_rate: options.fail_rate,
            changing: Mutex::new(Changing {
                latency: options.latency,
                ..Changing::default()
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides the answer, mints, and records, all at once and without waiting.
    fn take(
        &self,
        request: &HttpRequest,
        body: Option<&[u8]>,
    ) -> (Answer, Option<Map<String, Value>>, Duration) {
        let mut changing = self.lock();
        let (answer, asked) = match self.check(&mut changing, request, body) {
            Ok(asked) => (self.next_answer(&mut changing), Some(asked)),
            Err(refusal) => (refusal, None),
        };
        let (answer, delay) = answer.unwrap_late();
        let token = match (&asked, &answer) {
            (None, _) | (_, Answer::Status { .. }) => None,
            (Some(asked), answer) => Some(reply::mint(asked, answer)),
        };
        changing.ledger.record(Entry {
            at: Utc::now(),
            method: request.method().to_string(),
            path: request.path().to_owned(),
            headers: headers(request),
            body: String::from_utf8_lossy(body.unwrap_or_default()).into_owned(),
            request: asked,
            status: answer.http_status(),
            token_string: token.as_ref().map(|token| token.token_string.clone()),
        });
        let delay = changing.latency + delay;
        (answer, token.map(|token| token.document), delay)
    }

    /// In the framework's order: authentication and rate limit come before the method.
    fn check(
        &self,
        changing: &mut Changing,
        request: &HttpRequest,
        body: Option<&[u8]>,
    ) -> Result<TokenRequest, Answer> {
        if request.path() != "/bank/tokens/" {
            return Err(Answer::status(404));
        }
        self.authenticate(request)?;
        if !changing.admit(self.hourly_limit, Instant::now()) {
            return Err(Answer::status(429));
        }
        if request.method() != Method::POST {
            return Err(Answer::status(405));
        }
        let Some(body) = body else {
            let message = "The body is too large or incomplete.";
            return Err(Answer::error(400, "BAD_VALUE", message));
        };
        let content_type = request.headers().get(header::CONTENT_TYPE);
        validation::parse(content_type.and_then(|value| value.to_str().ok()), body)
    }

    fn authenticate(&self, request: &HttpRequest) -> Result<(), Answer> {
        let header = request.headers().get(header::AUTHORIZATION);
        match header.and_then(|value| value.to_str().ok()?.split_once(' ')) {
            Some((scheme, credentials))
                if scheme.eq_ignore_ascii_case("basic") && credentials == self.credentials =>
            {
                Ok(())
            }
            _ => Err(Answer::status(401)),
        }
    }

    fn next_answer(&self, changing: &mut Changing) -> Answer {
        if let Some(answer) = changing.script.pop_front() {
            return answer;
        }
        if let Some(answer) = &changing.default {
            return answer.clone();
        }
        let chance = f64::from(getrandom::u32().expect("the system's random source works"));
        if chance < self.fail_rate * (f64::from(u32::MAX) + 1.0) {
            return Answer::status(500);
        }
        Answer::Normal
    }
}

impl Changing {
    /// Counts an authenticated request; false where it is over the limit.
    pub fn admit(&mut self, limit: usize, now: Instant) -> bool {
        if limit == 0 {
            return true;
        }
        let oldest = (self.latest.len() == limit).then(|| self.latest.pop_front());
        self.latest.push_back(now);
        !matches!(oldest, Some(Some(oldest)) if now.duration_since(oldest) < HOUR)
    }

    pub fn reset(&mut self) {
        *self = Changing {
            latency: self.latency,
            ..Changing::default()
        };
    }
}

fn headers(request: &HttpRequest) -> Vec<(String, String)> {
    let headers = request.headers().iter();
    headers
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.as_str().to_owned(), value.into_owned())
        })
        .collect()
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/sandbox/script", web::post().to(append_script))
        .service(
            web::resource("/sandbox/ledger")
                .get(get_ledger)
                .delete(reset_ledger),
        )
        .default_service(web::to(answer));
}

async fn answer(
    request: HttpRequest,
    body: Result<web::Bytes, Error>,
    state: web::Data<State>,
) -> HttpResponse {
    let at = Utc::now();
    let (answer, document, delay) = state.take(&request, body.ok().as_deref());
    tokio::time::sleep(delay).await;
    reply::send(&request, at, answer, document).await
}

async fn append_script(
    request: HttpRequest,
    body: web::Bytes,
    state: web::Data<State>,
) -> HttpResponse {
    let queued = state.authenticate(&request).and_then(|()| {
        let answers: Vec<Answer> = serde_json::from_slice(&body)
            .map_err(|error| Answer::error(400, "JSON_ERROR", error.to_string()))?;
        state.lock().script.extend(answers);
        Ok(())
    });
    match queued {
        Ok(()) => HttpResponse::NoContent().finish(),
        Err(refusal) => reply::send(&request, Utc::now(), refusal, None).await,
    }
}

async fn get_ledger(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    if let Err(refusal) = state.authenticate(&request) {
        return reply::send(&request, Utc::now(), refusal, None).await;
    }
    let (requests, minted, entries) = {
        let changing = state.lock();
        let ledger = &changing.ledger;
        (ledger.requests, ledger.minted, ledger.entries())
    };
    HttpResponse::Ok().json(json!({ "requests": requests, "minted": minted, "entries": entries }))
}

async fn reset_ledger(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    if let Err(refusal) = state.authenticate(&request) {
        return reply::send(&request, Utc::now(), refusal, None).await;
    }
    state.lock().reset();
    HttpResponse::NoContent().finish()
}
