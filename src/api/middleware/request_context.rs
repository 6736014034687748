//! The outermost middleware: assigns the request id, writes the log line and formats problems.

use std::cell::{Cell, OnceCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use actix_web::body::BoxBody;
use actix_web::dev::{ResponseHead, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, web};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::header::single_header;
use super::trace::Trace;
use crate::api::problem::Problem;
use crate::api::state::ApiState;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// The maximum length of a caller's request id, in characters.
const MAX_REQUEST_ID: usize = 128;

/// A path of the route table, for logs and metrics.
#[derive(Clone, Copy)]
pub struct Route(pub &'static str);

/// Renders problems as HTML pages for the console.
#[derive(Clone, Copy)]
pub struct HtmlProblemRenderer {
    /// Returns true if problems of this path are rendered as HTML.
    pub applies_to: fn(&str) -> bool,
    /// Renders the problem as a page that shows this request id.
    pub render: fn(&Problem, &str) -> HttpResponse,
}

/// The id, trace, client and route of a request. Stored in the request's extensions.
pub struct RequestContext {
    request_id: HeaderValue,
    trace: Trace,
    /// Set if the path belongs to the console.
    html_renderer: Option<HtmlProblemRenderer>,
    client: OnceCell<String>,
    route: Cell<&'static str>,
}

impl RequestContext {
    /// Returns the context of a request.
    pub fn of(request: &HttpRequest) -> Rc<RequestContext> {
        let extensions = request.extensions();
        Rc::clone(extensions.get().expect("every request has a context"))
    }

    /// Returns the caller's request id or a generated one: 1–128 printable ASCII characters.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().expect("printable ASCII")
    }

    /// Records the client and the route for the log line.
    pub fn record_client(&self, request: &HttpRequest, api_key: &str) {
        let _ = self.client.set(api_key.to_owned());
        self.record_route(request);
    }

    fn record_route(&self, request: &HttpRequest) {
        if let Some(Route(route)) = request.app_data() {
            self.route.set(route);
        }
    }
}

/// The outcome of a request in its log line. A handler stores it in the extensions of its response.
#[derive(Clone, Copy)]
pub struct LoggedOutcome(pub &'static str);

/// Adds a [`RequestContext`] to the request and converts problems and panics into error responses.
///
/// Writes one log line, even if the caller hangs up before the response.
pub async fn request_context(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse, Error> {
    // The caller chooses the method's text. Only known methods become metric labels.
    let method = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
        .into_iter()
        .find(|known| *known == request.method().as_str())
        .unwrap_or("other");
    let context = Rc::new(RequestContext {
        request_id: request_id(request.headers()),
        trace: Trace::begin(method, request.headers()),
        html_renderer: request
            .app_data::<HtmlProblemRenderer>()
            .filter(|renderer| (renderer.applies_to)(request.path()))
            .copied(),
        client: OnceCell::new(),
        route: Cell::new("unmatched"),
    });
    let state: &web::Data<ApiState> = request.app_data().expect("the state is registered");
    let mut line = LogLine::start(method, Rc::clone(&context), state.clone());
    request.extensions_mut().insert(Rc::clone(&context));
    let handled = AssertUnwindSafe(async { next.call(request).await }).catch_unwind();
    let handled = handled.instrument(context.trace.span.clone()).await;
    match handled.unwrap_or_else(|_| Err(Problem::internal("panic").into())) {
        Ok(mut response) => {
            context.record_route(response.request());
            if let Some(error) = response.response().error() {
                let error_response = line.build_error_response(error);
                return Ok(response.into_response(error_response));
            }
            let outcome = response.response().extensions().get().copied();
            line.outcome = outcome.map_or("ok", |LoggedOutcome(outcome)| outcome);
            line.status = Some(response.status());
            line.set_headers(response.response_mut().head_mut());
            Ok(response)
        }
        // An error or a panic consumed the request, so the response travels inside an error.
        Err(error) => {
            let error_response = line.build_error_response(&error);
            Err(InternalError::from_response("request failed", error_response).into())
        }
    }
}

/// Returns the caller's request id if it is 1–128 printable ASCII characters, or a new UUID.
///
/// A UUIDv7 increases with time, so the database index over request ids grows at its end.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_valid = |own: &&HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&own.len())
            && own
                .as_bytes()
                .iter()
                .all(|byte| matches!(byte, b' '..=b'~'))
    };
    let own = single_header(headers, X_REQUEST_ID)
        .filter(is_valid)
        .cloned();
    own.unwrap_or_else(|| HeaderValue::try_from(Uuid::now_v7().to_string()).expect("ASCII"))
}

/// The log line of a request, written on drop.
///
/// It contains the route from the route table. It never contains the path, the query or the body,
/// because they contain ids.
struct LogLine {
    method: &'static str,
    started: Instant,
    context: Rc<RequestContext>,
    state: web::Data<ApiState>,
    status: Option<StatusCode>,
    outcome: &'static str,
    cause: Option<Box<str>>,
}

impl LogLine {
    fn start(
        method: &'static str,
        context: Rc<RequestContext>,
        state: web::Data<ApiState>,
    ) -> Self {
        LogLine {
            method,
            started: Instant::now(),
            context,
            state,
            status: None,
            outcome: "hung-up",
            cause: None,
        }
    }

    /// Sets the headers that every response has. During shutdown, each response closes its connection, so
    /// that the caller sends its next request to another replica.
    fn set_headers(&self, head: &mut ResponseHead) {
        let request_id = self.context.request_id.clone();
        let headers = head.headers_mut();
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        headers.insert(X_REQUEST_ID, request_id);
        if self.state.stopping.load(Ordering::Relaxed) {
            head.set_connection_type(ConnectionType::Close);
        }
    }

    /// Builds the response to an error and records its outcome for the log.
    fn build_error_response(&mut self, error: &Error) -> HttpResponse {
        let from_framework;
        let problem = match error.as_error::<Problem>() {
            Some(problem) => problem,
            None => {
                from_framework = Problem::from_framework(error);
                &from_framework
            }
        };
        self.outcome = problem.kind.slug();
        self.cause = problem.cause.clone();
        let RequestContext {
            trace,
            html_renderer,
            ..
        } = &*self.context;
        let mut response = match html_renderer {
            Some(renderer) => (renderer.render)(problem, self.context.request_id()),
            None => problem.to_response(self.context.request_id(), trace.id()),
        };
        self.status = Some(response.status());
        self.set_headers(response.head_mut());
        response
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let LogLine {
            method,
            outcome,
            context,
            state,
            ..
        } = self;
        let (route, elapsed) = (context.route.get(), self.started.elapsed());
        let status = self.status.as_ref().map_or("hung-up", StatusCode::as_str);
        let requests = &state.metrics.http_requests_total;
        requests.with_label_values(&[route, method, status]).inc();
        let duration = &state.metrics.http_request_duration_seconds;
        let duration = duration.with_label_values(&[route]);
        duration.observe(elapsed.as_secs_f64());
        let status = self.status.map(|status| status.as_u16());
        context.trace.end(method, route, status, outcome);
        macro_rules! write {
            ($level:ident) => {
                tracing::$level!(
                    method,
                    route,
                    status,
                    elapsed_ms = elapsed.as_micros() as f64 / 1000.0,
                    request_id = context.request_id(),
                    trace_id = context.trace.id(),
                    client = context.client.get().map(String::as_str),
                    outcome,
                    cause = self.cause.as_deref(),
                    "{method} {route}: {outcome}",
                )
            };
        }
        match self.status {
            Some(status) if status.is_server_error() => write!(warn),
            _ => write!(info),
        }
    }
}
