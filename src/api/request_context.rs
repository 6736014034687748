//! The outermost middleware: a request's id, its one log line, and the shape of every refusal.

use std::cell::{Cell, OnceCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Instant;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse};
use futures_util::FutureExt;
use uuid::Uuid;

use super::Route;
use super::problem::Problem;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The longest request id that is taken over from a caller, in characters.
const MAX_REQUEST_ID: usize = 128;

/// What is known of a request beside the request itself. It is in the request's extensions.
pub struct RequestContext {
    request_id: HeaderValue,
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
    let context = Rc::new(RequestContext {
        request_id: request_id(request.headers()),
        client: OnceCell::new(),
        route: Cell::new("unmatched"),
    });
    let mut line = LogLine::begin(request.method(), Rc::clone(&context));
    request.extensions_mut().insert(Rc::clone(&context));
    let handled = AssertUnwindSafe(async { next.call(request).await });
    // The request itself is lost with an error or a panic: what is left answers by itself.
    let answer = match handled.catch_unwind().await {
        Ok(Ok(response)) => return Ok(finish(response, &context, &mut line)),
        Ok(Err(error)) => refuse(&error, &context, &mut line),
        Err(_) => refuse(&Problem::internal("panic").into(), &context, &mut line),
    };
    Err(InternalError::from_response("refused", answer).into())
}

/// Puts an answer into its final shape.
fn finish(
    mut response: ServiceResponse,
    context: &RequestContext,
    line: &mut LogLine,
) -> ServiceResponse {
    context.note_route(response.request());
    if let Some(error) = response.response().error() {
        let answer = refuse(error, context, line);
        return response.into_response(answer);
    }
    set_headers(response.headers_mut(), context);
    let outcome = response.response().extensions().get().copied();
    line.status = Some(response.status());
    line.outcome = outcome.map_or("ok", |Outcome(outcome)| outcome);
    response
}

/// The answer to an error, be it a problem of ours or the framework's own.
fn refuse(error: &Error, context: &RequestContext, line: &mut LogLine) -> HttpResponse {
    let from_framework;
    let problem = match error.as_error::<Problem>() {
        Some(problem) => problem,
        None => {
            from_framework = Problem::from_framework(error);
            &from_framework
        }
    };
    line.status = Some(problem.kind().status());
    line.outcome = problem.kind().slug();
    line.cause = problem.cause().map(str::to_owned);
    let mut answer = problem.answer(context.request_id());
    set_headers(answer.headers_mut(), context);
    answer
}

fn set_headers(headers: &mut HeaderMap, context: &RequestContext) {
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(X_REQUEST_ID, context.request_id.clone());
}

/// The caller's own, if there is one and it is fit to be repeated, else a new UUID.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let mut lines = headers.get_all(X_REQUEST_ID);
    if let (Some(own), None) = (lines.next(), lines.next()) {
        let is_printable = own
            .as_bytes()
            .iter()
            .all(|byte| matches!(byte, b' '..=b'~'));
        if is_printable && (1..=MAX_REQUEST_ID).contains(&own.len()) {
            return own.clone();
        }
    }
    HeaderValue::try_from(Uuid::new_v4().to_string()).expect("ASCII")
}

/// The one line of a request, written when it is dropped. It names the route as the route table
/// has it: never the path, which holds ids, nor the query, nor anything of a body.
struct LogLine {
    method: &'static str,
    started: Instant,
    context: Rc<RequestContext>,
    status: Option<StatusCode>,
    outcome: &'static str,
    cause: Option<String>,
}

impl LogLine {
    fn begin(method: &Method, context: Rc<RequestContext>) -> Self {
        // Methods are the caller's words, too: those that no route has are not repeated.
        let method = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
            .into_iter()
            .find(|known| *known == method.as_str());
        LogLine {
            method: method.unwrap_or("other"),
            started: Instant::now(),
            context,
            status: None,
            outcome: "hung-up",
            cause: None,
        }
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let LogLine {
            method,
            outcome,
            context,
            ..
        } = self;
        macro_rules! write {
            ($level:ident) => {
                tracing::$level!(
                    method,
                    route = context.route.get(),
                    status = self.status.map(|status| status.as_u16()),
                    elapsed_ms = self.started.elapsed().as_micros() as f64 / 1000.0,
                    request_id = context.request_id(),
                    client = context.client.get().map(String::as_str),
                    outcome,
                    cause = self.cause.as_deref(),
                    "{method} {}: {outcome}",
                    context.route.get(),
                )
            };
        }
        match self.status {
            Some(status) if status.is_server_error() => write!(warn),
            _ => write!(info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printable_request_id_is_taken_over() {
        let longest = "x".repeat(128);
        for good in ["r-1", "a b~!", longest.as_str()] {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_str(good).unwrap());
            assert_eq!(request_id(&headers), good);
        }
    }

    #[test]
    fn any_other_is_replaced() {
        let over = "x".repeat(129);
        for bad in [&b""[..], b"a\tb", b"\xc5\xbe", over.as_bytes()] {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(bad).unwrap());
            let ours = request_id(&headers);
            assert!(Uuid::try_parse_ascii(ours.as_bytes()).is_ok());
        }
        let mut twice = HeaderMap::new();
        for id in ["a", "b"] {
            twice.append(X_REQUEST_ID, HeaderValue::from_static(id));
        }
        assert_eq!(request_id(&twice).len(), 36);
    }
}
