//! Callers that behave like clients under overload: they hang up after a while and wait for `Retry-After`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::load::{Connection, token_request};
use crate::world::AUTHORIZATION;

/// The time after which a caller hangs up: a timeout of 2 s, less 0.5 s for the caller's own work.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// The wait of a caller that got no answer, in seconds. It is the shortest `Retry-After`.
const RETRY_AFTER: u32 = 1;
/// The time over which the callers start.
const RAMP: Duration = Duration::from_millis(500);
/// The load before a measurement: the ramp, and the patience of the last caller.
const WARM_UP: Duration = Duration::from_secs(2);

/// The longest wait for the service to recover. After it, the next measurement starts anyway.
const MAX_RECOVERY: Duration = Duration::from_secs(60);
/// The number of fast answers in a row that show a recovery.
const FAST_ANSWERS: u32 = 5;

/// Callers that send one request after the other, each on its own connection.
#[derive(Clone)]
pub struct Callers {
    pub count: u32,
    /// Returns the text of the next request.
    request: Arc<dyn Fn() -> String + Send + Sync>,
    /// False for callers that ignore `Retry-After`.
    is_patient: bool,
}

/// The number of requests by result.
#[derive(Default)]
struct Tally {
    /// Answers with a token.
    good: AtomicU64,
    /// Answers with `Retry-After`.
    refused: AtomicU64,
    /// Answers 401.
    denied: AtomicU64,
    /// Callers that hung up, and connections that the service closed.
    lost: AtomicU64,
}

impl Tally {
    fn counts(&self) -> [u64; 4] {
        [&self.good, &self.refused, &self.denied, &self.lost].map(|count| count.load(Relaxed))
    }
}

impl Callers {
    fn new(count: u32, request: impl Fn() -> String + Send + Sync + 'static) -> Callers {
        Callers {
            count,
            request: Arc::new(request),
            is_patient: true,
        }
    }

    /// Creates callers that request a token for a new user each time.
    pub fn cold(count: u32) -> Callers {
        Callers::new(count, cold_request)
    }

    /// Creates callers that send these bodies in any order.
    pub fn warm(count: u32, bodies: &Arc<[String]>) -> Callers {
        let bodies = bodies.clone();
        Callers::new(count, move || {
            token_request(AUTHORIZATION, &bodies[fastrand::usize(..bodies.len())])
        })
    }

    /// Creates callers that send another unknown API key each time.
    pub fn with_unknown_keys(count: u32) -> Callers {
        Callers::new(count, || {
            let credentials = BASE64_STANDARD.encode(format!("{:016x}:bench", fastrand::u64(..)));
            token_request(&format!("Basic {credentials}"), r#"{"userId":"u"}"#)
        })
    }

    /// Makes the callers ignore `Retry-After`.
    pub fn without_patience(mut self) -> Callers {
        self.is_patient = false;
        self
    }
}

fn cold_request() -> String {
    let user_id = format!("cold-{:016x}", fastrand::u64(..));
    let body = format!(r#"{{"userId":"{user_id}","country":"LT"}}"#);
    token_request(AUTHORIZATION, &body)
}

/// Loads a server with groups of callers at the same time. Returns the goodput of each group: the tokens per second
/// that reached a caller before it hung up.
pub async fn measure_goodput(
    server: SocketAddr,
    groups: &[Callers],
    duration: Duration,
) -> Result<Vec<f64>> {
    let tallies: Vec<Arc<Tally>> = groups.iter().map(|_| Arc::default()).collect();
    let mut tasks = JoinSet::new();
    for (callers, tally) in groups.iter().zip(&tallies) {
        for _ in 0..callers.count {
            let connection = Connection::open(server).await;
            let connection = connection.context("opening a connection; see `ulimit -n`")?;
            tasks.spawn(call(server, callers.clone(), connection, tally.clone()));
        }
    }
    let measure = async {
        sleep(WARM_UP).await;
        let before: Vec<_> = tallies.iter().map(|tally| tally.counts()).collect();
        let began = Instant::now();
        sleep(duration).await;
        let seconds = began.elapsed().as_secs_f64();
        let mut goodput = Vec::new();
        for ((tally, before), Callers { count, .. }) in tallies.iter().zip(before).zip(groups) {
            let after = tally.counts();
            let [good, refused, denied, lost] =
                std::array::from_fn(|at| (after[at] - before[at]) as f64 / seconds);
            eprintln!(
                "  {count:4} callers, per second: {good:5.0} good, {refused:5.0} refused, {denied:5.0} denied, {lost:4.0} lost"
            );
            goodput.push(good);
        }
        goodput
    };
    tokio::select! {
        goodput = measure => Ok(goodput),
        Some(ended) = tasks.join_next() => {
            ended??;
            bail!("a caller ended early");
        }
    }
}

/// Sends requests until the task is aborted. A request that fails is sent again, after `Retry-After` and a random
/// time up to its value.
async fn call(
    server: SocketAddr,
    callers: Callers,
    connection: Connection,
    tally: Arc<Tally>,
) -> Result<()> {
    sleep(RAMP.mul_f64(fastrand::f64())).await;
    let mut connection = Some(connection);
    loop {
        let request = (callers.request)();
        while let Some(seconds) = attempt(server, &mut connection, &request, &tally).await? {
            if callers.is_patient {
                sleep(Duration::from_secs(seconds.into()).mul_f64(1.0 + fastrand::f64())).await;
            }
        }
    }
}

/// Sends a request once and counts the result. Returns the seconds to wait if it may be sent again.
///
/// # Errors
/// Fails if an error status forbids a retry, except for 401.
async fn attempt(
    server: SocketAddr,
    connection: &mut Option<Connection>,
    request: &str,
    tally: &Tally,
) -> Result<Option<u32>> {
    // The connection is closed if this future is dropped.
    let exchange = async {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(server).await?,
        };
        let answer = open.exchange(request).await?;
        anyhow::Ok((open, answer))
    };
    let Ok(Ok((open, answer))) = timeout(PATIENCE, exchange).await else {
        tally.lost.fetch_add(1, Relaxed);
        return Ok(Some(RETRY_AFTER));
    };
    *connection = (!answer.closes).then_some(open);
    let count = match (answer.status, answer.retry_after) {
        (200 | 201, _) => &tally.good,
        (401, _) => &tally.denied,
        (_, Some(_)) => &tally.refused,
        (status, None) => bail!("an answer with status {status}"),
    };
    count.fetch_add(1, Relaxed);
    Ok(answer.retry_after)
}

/// Sends cold requests until the service answers several in a row within `max_latency`. Returns the seconds.
pub async fn recover(server: SocketAddr, max_latency: Duration) -> f64 {
    let (began, mut fast) = (Instant::now(), 0);
    while fast < FAST_ANSWERS && began.elapsed() < MAX_RECOVERY {
        let exchange = async { Connection::open(server).await?.send(&cold_request()).await };
        match timeout(max_latency, exchange).await {
            Ok(Ok(())) => fast += 1,
            Ok(Err(_)) | Err(_) => {
                fast = 0;
                sleep(max_latency).await;
            }
        }
    }
    began.elapsed().as_secs_f64()
}
