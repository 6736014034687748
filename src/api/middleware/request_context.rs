//! The outermost middleware: a request's id, its one log line, and the shape of every refusal.

use std::cell::{Cell, OnceCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Instant;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, web};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::header::single_header;
use super::trace::Trace;
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::metrics::Metrics;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The longest request id that is taken over from a caller, in characters.
const MAX_REQUEST_ID: usize = 128;

/// A path of the table, as logs name it.
#[derive(Clone, Copy)]
pub struct Route(pub &'static str);

/// How problems are answered where a person's browser asks.
#[derive(Clone, Copy)]
pub struct HtmlProblems {
    /// Whether the path is one of a page.
    pub applies_to: fn(&str) -> bool,
    /// Renders the problem as a page; takes the request id, too.
    pub render: fn(&Problem, &str) -> HttpResponse,
}

/// What is known of a request beside the request itself. It is in the request's extensions.
pub struct RequestContext {
    request_id: HeaderValue,
    trace: Trace,
    /// Set where a person's browser asks: refusals are pages.
    html_problems: Option<HtmlProblems>,
    client: OnceCell<String>,
    route: Cell<&'static str>,
}

impl RequestContext {
    /// The context of a request.
    pub fn of(request: &HttpRequest) -> Rc<RequestContext> {
        let extensions = request.extensions();
        Rc::clone(extensions.get().expect("every request has a context"))
    }

    /// The caller's own id of this request, or ours: 1–128 printable ASCII characters.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().expect("printable ASCII")
    }

    /// Notes for the log whose request it is, and of which route.
    pub fn identify(&self, request: &HttpRequest, api_key: &str) {
        let _ = self.client.set(api_key.to_owned());
        self.note_route(request);
    }

    fn note_route(&self, request: &HttpRequest) {
        if let Some(Route(route)) = request.app_data() {
            self.route.set(route);
        }
    }

    /// Sets what every answer has.
    fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        headers.insert(X_REQUEST_ID, self.request_id.clone());
    }
}

/// What came of a request, for its log line; a handler puts it into its answer's extensions.
#[derive(Clone, Copy)]
pub struct Outcome(pub &'static str);

/// Gives the request an id, answers its problems and panics as RFC 9457 has it, and writes its
/// line, also where the caller hangs up before the answer.
pub async fn request_context(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse, Error> {
    // Methods are the caller's words, too: those that no route has are not repeated.
    let method = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
        .into_iter()
        .find(|known| *known == request.method().as_str())
        .unwrap_or("other");
    let context = Rc::new(RequestContext {
        request_id: request_id(request.headers()),
        trace: Trace::begin(method, request.headers()),
        html_problems: request
            .app_data::<HtmlProblems>()
            .filter(|pages| (pages.applies_to)(request.path()))
            .copied(),
        client: OnceCell::new(),
        route: Cell::new("unmatched"),
    });
    let state: &web::Data<ApiState> = request.app_data().expect("the state is registered");
    let metrics = state.metrics.clone();
    let mut line = LogLine::begin(method, Rc::clone(&context), metrics);
    request.extensions_mut().insert(Rc::clone(&context));
    let handled = AssertUnwindSafe(async { next.call(request).await }).catch_unwind();
    let handled = handled.instrument(context.trace.span.clone()).await;
    match handled.unwrap_or_else(|_| Err(Problem::internal("panic").into())) {
        Ok(mut response) => {
            context.note_route(response.request());
            if let Some(error) = response.response().error() {
                let answer = line.refuse(error);
                return Ok(response.into_response(answer));
            }
            let outcome = response.response().extensions().get().copied();
            line.outcome = outcome.map_or("ok", |Outcome(outcome)| outcome);
            line.status = Some(response.status());
            context.mark(response.headers_mut());
            Ok(response)
        }
        // The request itself is lost with an error or a panic: what is left answers by itself.
        Err(error) => Err(InternalError::from_response("refused", line.refuse(&error)).into()),
    }
}

/// The caller's own, if there is one and it is fit to be repeated, else a new UUID, by time, so
/// that the index over them grows at its end.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_fit = |own: &&HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&own.len())
            && own
                .as_bytes()
                .iter()
                .all(|byte| matches!(byte, b' '..=b'~'))
    };
    let own = single_header(headers, X_REQUEST_ID).filter(is_fit).cloned();
    own.unwrap_or_else(|| HeaderValue::try_from(Uuid::now_v7().to_string()).expect("ASCII"))
}

/// The one line of a request, written when it is dropped. It names the route as the route table
/// has it: never the path, which holds ids, nor the query, nor anything of a body.
struct LogLine {
    method: &'static str,
    started: Instant,
    context: Rc<RequestContext>,
    metrics: Metrics,
    status: Option<StatusCode>,
    outcome: &'static str,
    cause: Option<Box<str>>,
}

impl LogLine {
    fn begin(method: &'static str, context: Rc<RequestContext>, metrics: Metrics) -> Self {
        LogLine {
            method,
            started: Instant::now(),
            context,
            metrics,
            status: None,
            outcome: "hung-up",
            cause: None,
        }
    }

    /// The answer to an error, be it a problem of ours or the framework's own.
    fn refuse(&mut self, error: &Error) -> HttpResponse {
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
            html_problems,
            ..
        } = &*self.context;
        let mut answer = match html_problems {
            Some(pages) => (pages.render)(problem, self.context.request_id()),
            None => problem.answer(self.context.request_id(), trace.id()),
        };
        self.status = Some(answer.status());
        self.context.mark(answer.headers_mut());
        answer
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let LogLine {
            method,
            outcome,
            context,
            metrics,
            ..
        } = self;
        let (route, elapsed) = (context.route.get(), self.started.elapsed());
        let status = self.status.as_ref().map_or("hung-up", StatusCode::as_str);
        let counted = &metrics.http_requests_total;
        counted.with_label_values(&[route, method, status]).inc();
        let timed = &metrics.http_request_duration_seconds;
        let timed = timed.with_label_values(&[route]);
        timed.observe(elapsed.as_secs_f64());
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
