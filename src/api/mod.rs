//! HTTP in: the only folder that names actix.
//!
//! A request passes `request_context` (its id, its log line, the shape of a refusal), the route
//! table below (404, 405), an [`auth::Permit`] (401, 403, 429), its `body` (415, 413, 400), and its
//! handler in `tokens`, `invalidation`, `audit`, [`health`], or `console` for people.

mod audit;
pub mod auth;
mod body;
mod cache_control;
mod console;
mod cursor;
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
mod problem;
mod query;
mod request_context;
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
use actix_web::web::post;
use actix_web::{App, FromRequest, Handler, HttpServer, Resource, Responder, guard, web};
use ipnet::IpNet;

use self::auth::RateLimit;
use self::health::DatabaseCheck;
use self::metrics::Figures;
use self::problem::Problem;
pub use self::query::moment;
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
    /// The primary: reads by id.
    pub db: Database,
    /// Where lists are read, perhaps a standby.
    pub reads: Database,
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

/// The route table: every path with and without its final slash, every `GET` also as `HEAD`.
#[rustfmt::skip]
pub fn configure(config: &mut web::ServiceConfig) {
    route(config, "/bank/tokens/", "GET, HEAD, POST", |path| {
        path.route(get(tokens::list_tokens)).route(post().to(tokens::issue_token))
    });
    route(config, "/bank/tokens/{id}", "GET, HEAD", |path| path.route(get(tokens::get_token)));
    route(config, "/bank/tokens/{id}/invalidate", "POST", |path| {
        path.route(post().to(invalidation::invalidate_token))
    });
    route(config, "/bank/tokens/invalidate", "POST", |path| {
        path.route(post().to(invalidation::invalidate_tokens))
    });
    route(config, "/bank/tokens/lookup", "POST", |path| {
        path.route(post().to(invalidation::look_up_token))
    });
    route(config, "/maintenance/cleanup", "GET, HEAD, POST", |path| {
        path.route(get(maintenance::get_cleanup)).route(post().to(maintenance::run_cleanup))
    });
    route(config, "/audit/events", "GET, HEAD", |path| path.route(get(audit::list_events)));
    route(config, "/audit/events/export", "GET, HEAD", |path| {
        path.route(get(audit::export_events))
    });
    route(config, "/health/live", "GET, HEAD", |path| path.route(get(health::get_liveness)));
    route(config, "/health/ready", "GET, HEAD", |path| path.route(get(health::get_readiness)));
    route(config, "/metrics", "GET, HEAD", |path| path.route(get(metrics::get_metrics)));
    route(config, "/console/", "GET, HEAD", |path| path.route(get(console::show_overview)));
    route(config, "/console/search", "GET, HEAD, POST", |path| {
        path.route(get(console::show_search)).route(post().to(console::look_up))
    });
    route(config, "/console/users", "GET, HEAD", |path| path.route(get(console::show_user)));
    route(config, "/console/tokens/{id}", "GET, HEAD", |path| path.route(get(console::show_token)));
    route(config, "/console/audit", "GET, HEAD", |path| path.route(get(console::show_audit)));
    route(config, "/console/invalidate", "GET, HEAD, POST", |path| {
        path.route(get(console::confirm_invalidation)).route(post().to(console::invalidate))
    });
    route(config, "/console/assets/{file}", "GET, HEAD", |path| path.route(get(console::get_asset)));
    config.default_service(web::to(async || {
        Err::<String, _>(Problem::not_found("there is nothing at this path"))
    }));
}

/// A segment that is a UUID; any other makes a path that is not there, before anyone is asked who
/// they are.
const UUID_SEGMENT: &str =
    "{id:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}}";

/// A path of the table, as logs name it.
#[derive(Clone, Copy)]
struct Route(&'static str);

/// Two literal paths rather than one that is normalised or matched by an expression: comparing
/// them costs a hot request nothing.
fn route(
    config: &mut web::ServiceConfig,
    name: &'static str,
    methods: &'static str,
    handlers: impl Fn(Resource) -> Resource,
) {
    let with_slash = name.trim_end_matches('/').replace("{id}", UUID_SEGMENT) + "/";
    for pattern in [with_slash.trim_end_matches('/'), &with_slash] {
        let not_allowed =
            move || async move { Err::<String, _>(Problem::method_not_allowed(methods)) };
        let resource = web::resource(pattern)
            .app_data(Route(name))
            .default_service(web::to(not_allowed));
        config.service(handlers(resource));
    }
}

fn get<F, Args>(handler: F) -> actix_web::Route
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let reads = guard::Any(guard::Get()).or(guard::Head());
    web::route().guard(reads).to(handler)
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
