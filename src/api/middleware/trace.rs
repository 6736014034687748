//! The trace span of a request (W3C Trace Context).

use actix_web::http::header::{HeaderMap, HeaderName};
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Status, TraceContextExt, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, error_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::api::middleware::header::single_header;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The span of a request and its trace id.
pub struct Trace {
    /// The span. It is disabled if no traces are exported.
    pub span: Span,
    id: Option<TraceId>,
}

impl Trace {
    /// Continues the caller's trace from `traceparent`, or starts a new trace.
    pub fn begin(method: &'static str, headers: &HeaderMap) -> Self {
        let span = error_span!(
            "request",
            otel.kind = "server",
            http.request.method = method
        );
        let trace_of = |context: &opentelemetry::Context| {
            let id = context.span().span_context().trace_id();
            (id != TraceId::INVALID).then_some(id)
        };
        let mut id = None;
        if headers.contains_key(TRACEPARENT) {
            let parent = TraceContextPropagator::new().extract(&Fields(headers));
            id = trace_of(&parent);
            if id.is_some() && !span.is_disabled() {
                let _ = span.set_parent(parent);
            }
        }
        if !span.is_disabled() {
            id = trace_of(&span.context());
        }
        Trace { span, id }
    }

    /// Returns the trace id as 32 hexadecimal digits, if the caller or this service traces.
    pub fn id(&self) -> Option<String> {
        self.id.map(|id| id.to_string())
    }

    /// Adds the result of the request to the span.
    pub fn end(
        &self,
        method: &str,
        route: &'static str,
        status: Option<u16>,
        outcome: &'static str,
    ) {
        if self.span.is_disabled() {
            return;
        }
        // Changes the OpenTelemetry span directly. The tracing layer ignores changes to a span whose id
        // has been read.
        let context = self.span.context();
        let span = context.span();
        span.update_name(format!("{method} {route}"));
        span.set_attribute(KeyValue::new("http.route", route));
        if let Some(status) = status {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status),
            ));
        }
        if status.is_none_or(|status| status >= 400) {
            span.set_attribute(KeyValue::new("error.type", outcome));
        }
        if status.is_some_and(|status| status >= 500) {
            span.set_status(Status::error(outcome));
        }
    }
}

/// Header fields that are present exactly once.
struct Fields<'a>(&'a HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let name = HeaderName::try_from(key).ok()?;
        single_header(self.0, name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
