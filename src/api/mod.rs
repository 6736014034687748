//! HTTP in: the only folder that names actix.
//!
//! A request passes `request_context` (its id, its log line, the shape of a refusal), the route
//! table below (404, 405), an [`auth::Permit`] (401, 403, 429), its `body` (415, 413, 400), and its
//! handler in `tokens`, `invalidation`, `audit`, [`health`], or `console` for people. `openapi` tells
//! of all that.

mod audit;
pub mod auth;
mod body;
mod cache_control;
mod console;
mod cursor;
mod docs;
mod event_query;
pub mod event_rows;
mod fault;
mod fields;
pub mod glance;
pub mod health;
mod invalidation;
mod json;
mod maintenance;
pub mod metrics;
mod openapi;
mod problem;
mod query;
mod request_context;
mod routes;
mod source_ip;
mod token_view;
mod tokens;
mod trace;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use actix_web::dev::{Server, ServerHandle};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use ipnet::IpNet;

use self::auth::RateLimit;
use self::health::DatabaseCheck;
use self::metrics::Figures;
pub use self::openapi::document as openapi_document;
use self::problem::Problem;
pub use self::query::moment;
use self::routes::{Path, Route};
use crate::db::Database;
use crate::metrics::Metrics;
use crate::vending::Vendor;
use crate::vending::cleanup::Cleaner;
use crate::vending::denials::Denials;

/// What the handlers work with.
#[derive(Debug)]
pub struct ApiState {
    /// The decisions.
    pub vendor: Vendor,
    /// The primary: writes, and reads by id.
    pub db: Database,
    /// Where lists are read instead, if there is one.
    pub standby: Option<Database>,
    /// The cleanup of this replica.
    pub cleaner: Cleaner,
    /// The peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What a percent-encoded token string is appended to.
    pub verification_base_url: String,
    /// Counts what is refused with 401 and 403.
    pub denials: Denials,
    /// Each client's own limit.
    pub rate_limit: RateLimit,
    /// True once the service is to stop: readiness says so, requests are still served.
    pub stopping: Arc<AtomicBool>,
    /// The look at the database behind readiness.
    pub database_check: DatabaseCheck,
    /// What is counted and measured.
    pub metrics: Metrics,
    /// The look at the database behind some of it.
    pub figures: Figures,
}

impl ApiState {
    /// Where lists are read.
    pub fn reads(&self) -> &Database {
        self.standby.as_ref().unwrap_or(&self.db)
    }
}

/// The route table: every path with and without its final slash, every `GET` also as `HEAD`.
#[rustfmt::skip]
fn paths() -> Vec<Path> {
    vec![
        Path::new("/bank/tokens/").get(tokens::list_tokens).post(tokens::issue_token),
        Path::new("/bank/tokens/{id}").get(tokens::get_token),
        Path::new("/bank/tokens/{id}/invalidate").post(invalidation::invalidate_token),
        Path::new("/bank/tokens/invalidate").post(invalidation::invalidate_tokens),
        Path::new("/bank/tokens/lookup").post(invalidation::look_up_token),
        Path::new("/maintenance/cleanup").get(maintenance::get_cleanup).post(maintenance::run_cleanup),
        Path::new("/audit/events").get(audit::list_events),
        Path::new("/audit/events/export").get(audit::export_events),
        Path::new("/health/live").get(health::get_liveness),
        Path::new("/health/ready").get(health::get_readiness),
        Path::new("/metrics").get(metrics::get_metrics),
        Path::new("/openapi.json").get(docs::get_openapi),
        Path::new("/docs/").get(docs::get_docs),
        Path::new("/docs/{file}").page(docs::get_docs_file),
        Path::new("/console/").page(console::show_overview),
        Path::new("/console/search").page(console::show_search).form(console::look_up),
        Path::new("/console/users").page(console::show_user),
        Path::new("/console/tokens/{id}").page(console::show_token),
        Path::new("/console/audit").page(console::show_audit),
        Path::new("/console/invalidate").page(console::confirm_invalidation).form(console::invalidate),
        Path::new("/console/assets/{file}").page(console::get_asset),
    ]
}

fn configure(config: &mut web::ServiceConfig) {
    paths().iter().for_each(|path| path.register(config));
    config.default_service(web::to(async || {
        Err::<String, _>(Problem::not_found("there is nothing at this path"))
    }));
}

/// The field's value if the request has it once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(name);
    let first = lines.next()?;
    lines.next().is_none().then_some(first)
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
            .configure(configure)
            .wrap(from_fn(request_context::request_context))
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
