//! The sandbox: a stand-in for the provider that answers `POST /bank/tokens/` and has a verification page, with scripted
//! faults for tests.
//!
//! Its `Debug` output contains secrets, unlike the rest of the crate: its tokens give access to nothing.

mod answer;
mod reply;
mod service;
mod validation;
mod verification;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};

pub use answer::Answer;
pub use service::RecordedRequest;

use service::State;

/// The address and behaviour of the sandbox.
#[derive(Clone)]
pub struct SandboxOptions {
    /// The address to listen on; port 0 takes any free port.
    pub listen: SocketAddr,
    /// The username of the only client.
    pub api_key: String,
    /// The password of the only client.
    pub api_secret: String,
    /// The delay of each answer. The token is minted before the delay, so a caller that hangs up causes a mint too.
    pub latency: Duration,
    /// The maximum number of authenticated requests in a rolling hour. Further requests get 429 and count too.
    /// 0 = no limit.
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
    /// Starts the server on its own threads. The current runtime only starts and stops them.
    ///
    /// # Errors
    /// Fails if the address is in use or not permitted.
    pub async fn start(options: SandboxOptions) -> io::Result<Sandbox> {
        let listen = options.listen;
        let state = Arc::new(Mutex::new(State::new(options)));
        let data = web::Data::from(Arc::clone(&state));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .app_data(web::PayloadConfig::new(1 << 20))
                .service(
                    web::resource(verification::PATH)
                        .get(verification::verify)
                        .post(verification::verify),
                )
                .default_service(web::to(service::answer))
        })
        .workers(1)
        .backlog(8192)
        .max_connections(20_000)
        .tcp_nodelay(true)
        // Longer than clients keep idle connections: a request on a closing connection would look like a lost answer.
        .keep_alive(Duration::from_secs(120))
        .client_request_timeout(Duration::ZERO)
        // A caller that hangs up frees its connection, under `Answer::Hang` too.
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

    /// Returns `http://` and the address, without a final slash.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the base of verification links, to which a token string is appended.
    pub fn verification_base_url(&self) -> String {
        format!("{}{}?token=", self.base_url(), verification::PATH)
    }

    /// Returns the listening address with the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Queues one answer for each of the next requests that pass authentication, the hourly limit and validation.
    ///
    /// Queued answers take precedence over the default answer and the fail rate.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.lock().script.extend(answers);
    }

    /// Sets the answer for requests that find the script empty.
    pub fn set_default(&self, answer: Answer) {
        self.lock().default = Some(answer);
    }

    /// Restores normal answers for requests that find the script empty.
    pub fn clear_default(&self) {
        self.lock().default = None;
    }

    /// Changes the latency of subsequent requests.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().options.latency = latency;
    }

    /// Returns the number of requests since the start or the last reset, whatever their answer.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// Returns the number of tokens minted since the start or the last reset, including those whose answer was lost.
    pub fn minted(&self) -> u64 {
        self.lock().minted
    }

    /// Returns the last 100,000 requests, oldest first.
    pub fn ledger(&self) -> Vec<RecordedRequest> {
        self.lock().ledger.iter().cloned().collect()
    }

    /// Clears the ledger, the counts, the script, the default answer and the use of the hourly limit.
    /// The latency stays.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = State::new(state.options.clone());
    }

    /// Stops listening and drops every connection.
    pub async fn stop(self) {
        self.server.stop(false).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the lock is not poisoned")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The call sends the command; the future only waits for the confirmation.
        drop(self.server.stop(false));
    }
}
