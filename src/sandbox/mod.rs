//! The stand-in upstream: it takes and answers `POST /bank/tokens/` as the provider does, and
//! misbehaves on request.
//!
//! Beside the provider's one call it has three of its own, with the same key pair:
//!
//! | Call | Does |
//! | --- | --- |
//! | `POST /sandbox/script` | queues a JSON array of [`Answer`]s; 204 |
//! | `GET /sandbox/ledger` | `{"requests", "minted", "entries"}`: the counts, and each [`Entry`], oldest first |
//! | `DELETE /sandbox/ledger` | [`Sandbox::reset`]; 204 |
//!
//! Unlike the rest of the crate it prints secrets freely: what it mints opens nothing.

mod ledger;
mod reply;
mod script;
mod service;
#[cfg(test)]
mod tests;
mod validation;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::rt::System;
use actix_web::{App, HttpServer, web};
use tokio::sync::oneshot;

pub use ledger::Entry;
pub use script::Answer;
pub use validation::TokenRequest;

use service::State;
use wire::Wire;

/// How the sandbox listens and behaves.
#[derive(Clone)]
pub struct SandboxOptions {
    /// Where to listen; port 0 takes any free one. Default `127.0.0.1:8081`.
    pub listen: SocketAddr,
    /// The username of the one key pair. Default `sandbox-key`.
    pub api_key: String,
    /// Its password. Default `sandbox-secret`.
    pub api_secret: String,
    /// How long each answer waits. A token is minted before the wait, so that a caller who hangs
    /// up has caused a mint nevertheless. Default none.
    pub latency: Duration,
    /// Authenticated requests taken in any rolling hour, those refused for it included; further
    /// ones get 429. 0 is no limit. Default 10,000, as the provider's.
    pub hourly_limit: u32,
    /// The share of valid requests, 0.0–1.0, that get a 500 and mint nothing. Default 0.
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
    state: Arc<State>,
    server: ServerHandle,
}

impl Sandbox {
    /// Listens and serves, on threads of its own, so that it neither slows the caller's runtime
    /// nor needs it in order to stop.
    ///
    /// # Errors
    /// The address is taken or may not be listened on, or no thread can be had.
    pub async fn start(options: SandboxOptions) -> io::Result<Sandbox> {
        let listen = options.listen;
        let state = Arc::new(State::new(options));
        let data = web::Data::from(Arc::clone(&state));
        let (sender, receiver) = oneshot::channel();
        thread::Builder::new()
            .name("sandbox".into())
            .spawn(move || {
                System::new().block_on(async move {
                    match serve(listen, data) {
                        Ok((addr, server)) => {
                            let _ = sender.send(Ok((addr, server.handle())));
                            let _ = server.await;
                        }
                        Err(error) => drop(sender.send(Err(error))),
                    }
                })
            })?;
        let (addr, server) = receiver.await.map_err(io::Error::other)??;
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
        self.state.lock().script.extend(answers);
    }

    /// How many scripted answers are still to be given.
    pub fn scripted(&self) -> usize {
        self.state.lock().script.len()
    }

    /// Answers so whenever the script is empty, until changed.
    pub fn set_default(&self, answer: Answer) {
        self.state.lock().default = Some(answer);
    }

    /// Behaves as the provider again whenever the script is empty.
    pub fn clear_default(&self) {
        self.state.lock().default = None;
    }

    /// Changes the latency of requests that come from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.state.lock().latency = latency;
    }

    /// Requests since the start or the last reset, whatever they were answered, the sandbox's own
    /// calls aside.
    pub fn requests(&self) -> u64 {
        self.state.lock().ledger.requests
    }

    /// Tokens minted since the start or the last reset, whether or not their answer arrived.
    pub fn minted(&self) -> u64 {
        self.state.lock().ledger.minted
    }

    /// The last 100,000 requests, oldest first.
    pub fn ledger(&self) -> Vec<Entry> {
        self.state.lock().ledger.entries()
    }

    /// Forgets the ledger and its counts, the script, the default answer and what was used of the
    /// hourly limit. The latency stays.
    pub fn reset(&self) {
        self.state.lock().reset();
    }

    /// Stops listening and drops every connection. Its state goes with it.
    pub async fn stop(self) {
        self.server.stop(false).await;
    }
}

fn serve(listen: SocketAddr, state: web::Data<State>) -> io::Result<(SocketAddr, Server)> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(web::PayloadConfig::new(1 << 20))
            .configure(service::routes)
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
    .on_connect(Wire::keep)
    .disable_signals()
    .bind(listen)?;
    Ok((server.addrs()[0], server.run()))
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The command is sent at once; the future is only its confirmation.
        drop(self.server.stop(false));
    }
}
