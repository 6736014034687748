//! The stand-in upstream: it takes and answers `POST /bank/tokens/` as the provider does, and
//! misbehaves on request.
//!
//! Unlike the rest of the crate it prints secrets freely: what it mints opens nothing.

mod answer;
mod reply;
mod service;
mod validation;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};

pub use answer::Answer;
pub use service::Entry;

use service::State;

/// How the sandbox listens and behaves.
#[derive(Clone)]
pub struct SandboxOptions {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The username of the one key pair.
    pub api_key: String,
    /// Its password.
    pub api_secret: String,
    /// How long each answer waits. A token is minted before the wait, so that a caller who hangs
    /// up has caused a mint nevertheless.
    pub latency: Duration,
    /// Authenticated requests taken in any rolling hour, those refused for it included; further
    /// ones get 429. 0 is no limit.
    pub hourly_limit: u32,
    /// The share of valid requests, 0.0–1.0, that get a 500 and mint nothing.
    pub fail_rate: f64,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        SandboxOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            api_key: "sandbox-key".into(),
            api_secret: "sandbox-secret".into(),
            latency: Duration::ZERO,
            hourly_limit: 10_000,
            fail_rate: 0.0,
        }
    }
}

/// A running sandbox. Dropping it stops it.
pub struct Sandbox {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    server: ServerHandle,
}

impl Sandbox {
    /// Listens and serves, on threads of its own; the current runtime only starts and stops them.
    ///
    /// # Errors
    /// The address is taken or may not be listened on.
    pub async fn start(options: SandboxOptions) -> io::Result<Sandbox> {
        let listen = options.listen;
        let state = Arc::new(Mutex::new(State::new(options)));
        let data = web::Data::from(Arc::clone(&state));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .app_data(web::PayloadConfig::new(1 << 20))
                .default_service(web::to(service::answer))
        })
        .workers(1)
        .backlog(8192)
        .max_connections(20_000)
        .tcp_nodelay(true)
        // Longer than a client's pool keeps its idle connections: a request that meets a closing
        // connection would look like a lost answer.
        .keep_alive(Duration::from_secs(120))
        .client_request_timeout(Duration::ZERO)
        // Whoever hangs up frees the connection, also under `Answer::Hang`.
        .h1_allow_half_closed(false)
        .on_connect(reply::keep_handle)
        .disable_signals()
        .bind(listen)?;
        let addr = server.addrs()[0];
        let running = server.run();
        let server = running.handle();
        tokio::spawn(running);
        Ok(Sandbox {
            addr,
            state,
            server,
        })
    }

    /// `http://` and the address, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where it listens, with the port that it was given.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Queues answers, one for each of the next requests that pass authentication, the hourly
    /// limit and validation. They come before the default answer and the fail rate.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.lock().script.extend(answers);
    }

    /// Answers so whenever the script is empty, until changed.
    pub fn set_default(&self, answer: Answer) {
        self.lock().default = Some(answer);
    }

    /// Behaves as the provider again whenever the script is empty.
    pub fn clear_default(&self) {
        self.lock().default = None;
    }

    /// Changes the latency of requests that come from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().options.latency = latency;
    }

    /// Requests since the start or the last reset, whatever they were answered.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// Tokens minted since the start or the last reset, whether or not their answer arrived.
    pub fn minted(&self) -> u64 {
        self.lock().minted
    }

    /// The last 100,000 requests, oldest first.
    pub fn ledger(&self) -> Vec<Entry> {
        self.lock().ledger.iter().cloned().collect()
    }

    /// Forgets the ledger and its counts, the script, the default answer and what was used of the
    /// hourly limit. The latency stays.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = State::new(state.options.clone());
    }

    /// Stops listening and drops every connection. Its state goes with it.
    pub async fn stop(self) {
        self.server.stop(false).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The command is sent at once; the future is only its confirmation.
        drop(self.server.stop(false));
    }
}
