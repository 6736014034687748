//! Incoming HTTP. This is the only folder that names actix.
//!
//! A request passes these parts in order:
//!
//! 1. `middleware::request_context` assigns the request id, writes the log line and formats problems.
//! 2. `router` finds the handler (404, 405).
//! 3. `extract::authorization` checks the caller (401, 403, 429).
//! 4. `extract::body` reads the body (415, 413, 408, 400).
//! 5. A function in `handlers` or `console` answers.
//!
//! `openapi` generates the OpenAPI document from the same route table.

mod console;
mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handlers;
mod middleware;
mod openapi;
mod problem;
mod router;
mod routes;
pub mod state;

use std::net::TcpListener;
use std::time::Duration;

pub use actix_web::dev::{Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};

use self::handlers::docs::OpenApiDocument;
use self::middleware::request_context::{HtmlProblemRenderer, request_context};
pub use self::openapi::document as openapi_document;
use self::problem::Problem;
use self::state::ApiState;

/// The paths that `METRICS_ADDR` takes over.
fn is_for_operators(path: &str) -> bool {
    path == "/metrics" || path.starts_with("/health/")
}

/// The state that the servers of a service share.
pub type SharedState = web::Data<ApiState>;

/// The choice of paths of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paths {
    /// All paths.
    All,
    /// The paths that stay at `LISTEN_ADDR` beside a `METRICS_ADDR`.
    WithoutOperators,
    /// `/metrics` and `/health/`.
    Operators,
}

impl Paths {
    fn configure(self, config: &mut web::ServiceConfig) {
        for path in router::paths() {
            if self == Paths::All || is_for_operators(path.name) == (self == Paths::Operators) {
                path.register(config);
            }
        }
        config.default_service(web::to(async || {
            Err::<String, _>(Problem::not_found("there is nothing at this path"))
        }));
    }
}

/// Serves HTTP/1.1 on the listener, with TLS if `tls` is given.
///
/// The caller polls the returned server on a tokio runtime and stops it through its handle. Running
/// requests then have `shutdown_timeout` to finish. Each worker is a thread, one per core, and one for the operators.
/// The server handles no signals.
pub fn serve(
    state: SharedState,
    paths: Paths,
    listen: TcpListener,
    tls: Option<rustls::ServerConfig>,
    shutdown_timeout: Duration,
) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(web::Data::new(OpenApiDocument(&openapi::DOCUMENT)))
            .app_data(HtmlProblemRenderer {
                applies_to: console::is_console_path,
                render: console::render_problem,
            })
            .configure(|config| paths.configure(config))
            .wrap(from_fn(request_context))
    })
    // Longer than the usual 60 s of a proxy in front. The proxy then closes idle connections first and
    // never sends a request into a connection that was just closed.
    .keep_alive(Duration::from_secs(75))
    // A client that sends its request head too slowly gets 408.
    .client_request_timeout(Duration::from_secs(5))
    .client_disconnect_timeout(Duration::from_secs(2))
    // A FIN of the caller drops its request. The cost: a caller that closes only its sending side
    // after the request gets no response.
    .h1_allow_half_closed(false)
    .tls_handshake_timeout(Duration::from_secs(5))
    // Per worker. Further connections wait in the backlog of the listener.
    .max_connections(10_000)
    .shutdown_timeout(shutdown_timeout.as_millis().div_ceil(1000) as u64)
    .disable_signals();
    let server = match paths {
        Paths::Operators => server.workers(1),
        _ => server,
    };
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listen, tls)?,
        None => server.listen(listen)?,
    };
    Ok(server.run())
}
