//! Clients that request and invalidate tokens at changing replicas, and record what they received.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use reqwest::RequestBuilder;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{ADMIN, Answer, http_client};

/// The base addresses of the replicas. An attack changes them while the clients run.
pub type Targets = Arc<Mutex<Vec<String>>>;

/// The load of an attack.
#[derive(Clone, Debug)]
pub struct Load {
    pub callers: usize,
    /// The number of users. Each has two combinations.
    pub users: u32,
    /// The requested lifetimes, in seconds.
    pub lifetimes: &'static [u32],
    /// The longest pause of a caller between two requests, in milliseconds.
    pub pause_ms: u64,
    /// The share of invalidations, 0.0–1.0.
    pub invalidations: f64,
    /// The longest wait for an answer.
    pub timeout: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            callers: 16,
            users: 20,
            lifetimes: &[1, 2, 3600],
            pause_ms: 40,
            invalidations: 0.08,
            timeout: Duration::from_secs(15),
        }
    }
}

/// A request of a client and the reply to it.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub started: Instant,
    pub ended: Instant,
    pub request_id: String,
    pub user: String,
    pub action: Action,
    pub reply: Reply,
}

/// The action that a request asked for.
#[derive(Clone, Debug)]
pub enum Action {
    Issue {
        bank: String,
    },
    InvalidateUser,
    /// The invalidation of the token with this id.
    InvalidateId(String),
    /// The invalidation of every token with this token string.
    InvalidateToken(String),
}

/// The reply to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    Answer(Answer),
    /// The connection was refused, so the request was not sent.
    Refused,
    /// No answer arrived, so the outcome is unknown.
    Lost,
}

impl Exchange {
    /// Returns the answer, if there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.reply {
            Reply::Answer(answer) => Some(answer),
            Reply::Refused | Reply::Lost => None,
        }
    }

    /// Returns the answer with a token to a token request.
    pub fn handout(&self) -> Option<&Answer> {
        let is_issue = matches!(self.action, Action::Issue { .. });
        self.answer()
            .filter(|answer| is_issue && matches!(answer.status, 200 | 201))
    }
}

/// Running clients.
pub struct Clients {
    callers: JoinSet<()>,
    stop: CancellationToken,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

/// One caller.
struct Caller {
    load: Load,
    targets: Targets,
    rng: Rng,
    http: reqwest::Client,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    /// The latest tokens that any caller received: user, id, token string.
    received: Arc<Mutex<Vec<[String; 3]>>>,
}

impl Clients {
    /// Starts the callers. They run until [`stop`](Self::stop).
    pub fn start(load: &Load, targets: &Targets, rng: &mut Rng) -> Clients {
        let mut clients = Clients {
            callers: JoinSet::new(),
            stop: CancellationToken::new(),
            exchanges: Arc::default(),
        };
        let (http, received) = (http_client(), Arc::default());
        for _ in 0..load.callers {
            let mut caller = Caller {
                load: load.clone(),
                targets: targets.clone(),
                rng: rng.fork(),
                http: http.clone(),
                exchanges: clients.exchanges.clone(),
                received: Arc::clone(&received),
            };
            let stop = clients.stop.clone();
            clients.callers.spawn(async move {
                while !stop.is_cancelled() {
                    caller.call().await;
                    sleep(Duration::from_millis(
                        caller.rng.u64(0..caller.load.pause_ms),
                    ))
                    .await;
                }
            });
        }
        clients
    }

    /// Returns the number of handouts so far.
    pub fn handouts(&self) -> usize {
        let exchanges = self.exchanges.lock().unwrap();
        exchanges
            .iter()
            .filter(|exchange| exchange.handout().is_some())
            .count()
    }

    /// Returns the longest time without a handout since this moment.
    pub fn longest_pause(&self, since: Instant) -> Duration {
        let exchanges = self.exchanges.lock().unwrap();
        let handouts = exchanges.iter().filter(|e| e.handout().is_some());
        let later = handouts.map(|e| e.ended).filter(|ended| *ended > since);
        let mut times: Vec<_> = later.chain([since]).collect();
        times.sort();
        let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
        pauses.max().unwrap_or_else(|| since.elapsed())
    }

    /// Stops the callers after their last request and returns all exchanges.
    pub async fn stop(mut self) -> Vec<Exchange> {
        self.stop.cancel();
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.exchanges.lock().unwrap())
    }
}

impl Caller {
    /// Sends one random request and records the exchange.
    async fn call(&mut self) {
        let base = {
            let targets = self.targets.lock().unwrap();
            match self.rng.choice(&*targets) {
                Some(base) => base.clone(),
                None => return,
            }
        };
        let (user, action, request) = match self.rng.f64() < self.load.invalidations {
            true => self.invalidation(&base),
            false => self.token_request(&base),
        };
        let request_id = Uuid::new_v4().to_string();
        let request = request
            .basic_auth(ADMIN.0, Some(ADMIN.1))
            .header("content-type", "application/json")
            .header("x-request-id", &request_id)
            .timeout(self.load.timeout);
        let started = Instant::now();
        let reply = send(request).await;
        let exchange = Exchange {
            started,
            ended: Instant::now(),
            request_id,
            user,
            action,
            reply,
        };
        if let Some(answer) = exchange.handout() {
            let [id, token] = ["id", "tokenString"].map(|member| answer.text(member).to_owned());
            let mut received = self.received.lock().unwrap();
            if received.len() >= 64 {
                let index = self.rng.usize(0..received.len());
                received.swap_remove(index);
            }
            received.push([exchange.user.clone(), id, token]);
        }
        self.exchanges.lock().unwrap().push(exchange);
    }

    fn token_request(&mut self, base: &str) -> (String, Action, RequestBuilder) {
        let user = self.random_user();
        let bank = format!("{user}.{}", self.rng.u32(0..2));
        let lifetime = *self.rng.choice(self.load.lifetimes).expect("a lifetime");
        let body = json!({"userId": user, "bank": bank, "lifetime": lifetime});
        let request = self
            .http
            .post(format!("{base}/bank/tokens/"))
            .body(body.to_string());
        let request = match self.rng.u32(0..12) {
            0 => request.header("cache-control", "no-cache"),
            1 => request.header("cache-control", "min-fresh=1"),
            _ => request,
        };
        (user, Action::Issue { bank }, request)
    }

    /// Builds an invalidation by id, by token string or by user.
    fn invalidation(&mut self, base: &str) -> (String, Action, RequestBuilder) {
        let received = self.rng.choice(&*self.received.lock().unwrap()).cloned();
        let kind = self.rng.u32(0..3);
        let (user, action, path, body) = match received {
            Some([user, id, _]) if kind == 0 => {
                let path = format!("/bank/tokens/{id}/invalidate");
                let action = Action::InvalidateId(id);
                (user, action, path, json!({"reason": "used"}))
            }
            Some([user, _, token]) if kind == 1 => {
                let body = json!({"reason": "compromised", "tokenString": token});
                let action = Action::InvalidateToken(token);
                (user, action, "/bank/tokens/invalidate".into(), body)
            }
            _ => {
                let user = self.random_user();
                let body = json!({"reason": "requested", "userId": user});
                let path = "/bank/tokens/invalidate".into();
                (user, Action::InvalidateUser, path, body)
            }
        };
        let request = self.http.post(format!("{base}{path}"));
        (user, action, request.body(body.to_string()))
    }

    fn random_user(&mut self) -> String {
        format!("u-{}", self.rng.u32(0..self.load.users))
    }
}

/// Sends a request and reads the reply completely.
async fn send(request: RequestBuilder) -> Reply {
    let read = async {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
        Ok::<_, reqwest::Error>(Answer {
            status,
            headers,
            body,
        })
    };
    match read.await {
        Ok(answer) => Reply::Answer(answer),
        Err(error) if error.is_connect() => Reply::Refused,
        Err(_) => Reply::Lost,
    }
}
