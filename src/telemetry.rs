//! Logs to stderr, as text or JSON, filtered by `RUST_LOG`. Traces to an OTLP collector.

use std::env;
use std::io::{self, IsTerminal};
use std::mem;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as SdkSpanExporter};
use tokio::task::spawn_blocking;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};
use url::Url;

use crate::config::LogFormat;

/// The log filter if `RUST_LOG` is not set: `info`, and `warn` for verbose libraries.
const DEFAULT_FILTER: &str = "info,sqlx=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,\
                              actix_server=warn,actix_http=warn";

/// Time limit for sending the last traces. A collector in the same network needs a few milliseconds.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// The minimum time between two log lines about failed exports.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Installs the process-wide subscriber. It writes records of `tracing` and `log` to stderr, and sends
/// spans to the collector if there is one.
///
/// Text is coloured if stderr is a terminal and `NO_COLOR` is unset or empty.
///
/// # Errors
/// Returns a message for the user if `RUST_LOG` or `OTEL_EXPORTER_OTLP_ENDPOINT` is invalid.
pub fn init(format: LogFormat, collector: Option<&Url>) -> Result<Traces, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tracing-subscriber defines this variable"
    )]
    let filter = env::var("RUST_LOG").unwrap_or_default();
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let traces = Traces(collector.map(tracer_provider).transpose()?);
    let subscriber = build_subscriber(format, &filter, colour, io::stderr, &traces)?;
    subscriber.try_init().map_err(|error| error.to_string())?;
    Ok(traces)
}

/// The exporter of spans, if there is a collector. Flush it before the process ends.
#[derive(Debug, Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Sends the remaining spans. Waits for the collector until the deadline, at most 500 ms.
    pub async fn flush(self, deadline: Option<tokio::time::Instant>) {
        let Some(provider) = self.0 else { return };
        let left = deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        let max_wait = left.unwrap_or(FLUSH_TIMEOUT).min(FLUSH_TIMEOUT);
        let result = spawn_blocking(move || provider.shutdown_with_timeout(max_wait)).await;
        if let Ok(Err(error)) = result {
            tracing::warn!(%error, ?max_wait, "the last traces could not be sent");
        }
    }
}

/// An exporter that logs failures itself, at most once a minute. The SDK would log each of them.
#[derive(Debug)]
struct QuietExporter<E> {
    exporter: E,
    failures: Mutex<Failures>,
}

/// The failed exports since the last log line about them.
#[derive(Debug, Default)]
struct Failures {
    spans: usize,
    logged_at: Option<Instant>,
}

impl<E> QuietExporter<E> {
    /// Counts the spans as lost, and logs their number if the last line is a minute old.
    fn record_failure(&self, error: &OTelSdkError, spans: usize, now: Instant) {
        let mut failures = self
            .failures
            .lock()
            .expect("nothing panics under this lock");
        failures.spans += spans;
        if failures
            .logged_at
            .is_none_or(|at| now - at >= WARN_INTERVAL)
        {
            let lost_spans = mem::take(&mut failures.spans);
            failures.logged_at = Some(now);
            tracing::warn!(%error, lost_spans, "traces could not be sent; check OTEL_EXPORTER_OTLP_ENDPOINT");
        }
    }
}

impl<E: SdkSpanExporter> SdkSpanExporter for QuietExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        if let Err(error) = self.exporter.export(batch).await {
            self.record_failure(&error, spans, Instant::now());
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

fn tracer_provider(collector: &Url) -> Result<SdkTracerProvider, String> {
    // Building the exporter's HTTP client requires a TLS provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoint = format!("{}/v1/traces", collector.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {error}"))?;
    let exporter = QuietExporter {
        exporter,
        failures: Mutex::default(),
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "OpenTelemetry defines this variable"
    )]
    let name = env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| env!("CARGO_PKG_NAME").into());
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder()
        .with_service_name(name)
        .with_attribute(version);
    Ok(SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_batch_exporter(exporter)
        .build())
}

/// Returns whether a record may be logged. Records that can contain a secret are dropped, whatever
/// `RUST_LOG` says.
///
/// At `trace`, libraries log data on the wire. The warnings of sqlx about connection options quote them,
/// including passwords of `.pgpass`. The OTLP exporter logs each failed export, at `debug` with the collector's response.
/// [`QuietExporter`] logs failures instead.
fn is_safe_event(metadata: &Metadata<'_>) -> bool {
    let max_level = match metadata.target() {
        target if target.starts_with("sqlx_postgres::options") => Level::ERROR,
        target if target.starts_with("opentelemetry-otlp") => Level::ERROR,
        target if target.starts_with(env!("CARGO_CRATE_NAME")) => Level::TRACE,
        _ => Level::DEBUG,
    };
    metadata.is_event() && *metadata.level() <= max_level
}

/// Returns whether a record may be logged or a span exported. Spans of libraries are dropped.
///
/// The spans of this crate have the level `error`, so that every `RUST_LOG` except `off` keeps them.
fn is_safe_event_or_own_span(metadata: &Metadata<'_>) -> bool {
    match metadata.is_span() {
        true => metadata.target().starts_with(env!("CARGO_CRATE_NAME")),
        false => is_safe_event(metadata),
    }
}

fn build_subscriber<W: for<'w> MakeWriter<'w> + Send + Sync + 'static>(
    format: LogFormat,
    filter: &str,
    colour: bool,
    writer: W,
    traces: &Traces,
) -> Result<Box<dyn Subscriber + Send + Sync>, String> {
    let filter = if filter.is_empty() {
        DEFAULT_FILTER
    } else {
        filter
    };
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        format!("RUST_LOG: {error}; use a filter such as info or info,token_vendor=debug")
    })?;
    let lines = fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(colour).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The filters apply to the whole subscriber. Filters of single layers lose the next record after a
    // library checks whether a level is enabled, which sqlx does after each statement.
    let is_allowed: fn(&Metadata<'_>) -> bool = match &traces.0 {
        Some(_) => is_safe_event_or_own_span,
        None => is_safe_event,
    };
    let filtered = registry().with(filter).with(filter_fn(is_allowed));
    let Some(provider) = &traces.0 else {
        return Ok(Box::new(filtered.with(lines)));
    };
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(env!("CARGO_PKG_NAME")))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    // A layer filter is safe here: it accepts every event, so no record can be lost.
    let lines = lines.with_filter(filter_fn(|metadata| metadata.is_event()));
    Ok(Box::new(filtered.with(lines).with(spans)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn logged(format: LogFormat, filter: &str) -> String {
        let path = env::temp_dir().join(format!("token-vendor-{}", uuid::Uuid::new_v4()));
        let file = File::create(&path).unwrap();
        let subscriber = build_subscriber(format, filter, false, file, &Traces::default()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(status = 200, "request");
            tracing::trace!("detail");
            tracing::info!(target: "sqlx::query", "a statement");
            tracing::warn!(target: "sqlx_postgres::options::pgpass", "h:1:d:u:password");
            tracing::trace!(target: "hyper::proto", "bytes on the wire");
        });
        let lines = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        lines
    }

    #[test]
    fn a_record_is_one_line_of_text_or_flat_json() {
        let text = logged(LogFormat::Text, "");
        assert!(text.contains("request status=200\n"), "{text:?}");
        let json = logged(LogFormat::Json, "");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["message"], "request");
        assert_eq!(value["status"], 200);
    }

    #[test]
    fn no_filter_logs_records_that_may_hold_a_secret() {
        let lines = logged(LogFormat::Text, "trace,sqlx_postgres=trace");
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(lines.contains("detail") && lines.contains("a statement"));
    }

    #[test]
    fn an_invalid_filter_is_an_error_that_names_the_variable() {
        let result = build_subscriber(
            LogFormat::Text,
            "a=loud",
            false,
            io::sink,
            &Traces::default(),
        );
        assert!(result.err().unwrap().starts_with("RUST_LOG: "));
    }
}
