//! HTTP in: the only folder that names actix.
//!
//! A request passes `request_context` (its id, its log line, the shape of a refusal), the route
//! table below (404, 405), an [`auth::Authorized`] (401, 403, 429), its `body` (415, 413, 400), and its
//! handler in `tokens`, `invalidation`, `audit`, [`health`], or `console` for people. `openapi` tells
//! of all that.

mod console;
mod extract;
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
use self::middleware::request_context::{HtmlProblems, request_context};
pub use self::openapi::document as openapi_document;
use self::problem::Problem;
use self::state::ApiState;

fn configure(config: &mut web::ServiceConfig) {
    router::paths()
        .iter()
        .for_each(|path| path.register(config));
    config.default_service(web::to(async || {
        Err::<String, _>(Problem::not_found("there is nothing at this path"))
    }));
}

/// Serves on the listener, over TLS if given, until the returned server's handle stops it; then
/// what runs has `shutdown_timeout` to finish. It is to be polled on a tokio runtime; each worker
/// (one a core) is a thread of its own. Signals are the caller's business.
///
/// HTTP/1.1 alone: so is what TLS offers (ALPN).
pub fn serve(
    state: ApiState,
    listen: TcpListener,
    tls: Option<rustls::ServerConfig>,
    shutdown_timeout: Duration,
) -> std::io::Result<Server> {
    let state = web::Data::new(state);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(web::Data::new(OpenApiDocument(&openapi::DOCUMENT)))
            .app_data(HtmlProblems {
                applies_to: console::has,
                render: console::refuse,
            })
            .configure(configure)
            .wrap(from_fn(request_context))
    })
    // Longer than the usual 60 s of a proxy in front, which is then the one to close an idle
    // connection, and never sends a request into one that just closed.
    .keep_alive(Duration::from_secs(75))
    // A client that drips its request's head gets 408.
    .client_request_timeout(Duration::from_secs(5))
    .client_disconnect_timeout(Duration::from_secs(2))
    .tls_handshake_timeout(Duration::from_secs(5))
    // For each worker; more wait in the listener's backlog, as long as who bound it made it.
    .max_connections(10_000)
    .shutdown_timeout(shutdown_timeout.as_millis().div_ceil(1000) as u64)
    .disable_signals();
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listen, tls)?,
        None => server.listen(listen)?,
    };
    Ok(server.run())
}
