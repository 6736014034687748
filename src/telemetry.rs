//! Logs: to stderr, as text or JSON, the level by `RUST_LOG`. Traces: to an OTLP collector.

use std::env;
use std::io::{self, IsTerminal};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::task::spawn_blocking;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};
use url::Url;

use crate::config::LogFormat;

/// What is logged where `RUST_LOG` is not set: our own `info`, and trouble of the libraries that
/// tell much.
const DEFAULT_LEVELS: &str = "info,sqlx=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,actix_server=warn,actix_http=warn";

/// How long the last traces may take on their way out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends the records of `tracing` and `log` to stderr, from now on and in the whole process, and
/// the spans to the collector, if there is one.
///
/// Text is coloured where stderr is a terminal and `NO_COLOR` is unset or empty.
///
/// # Errors
/// `RUST_LOG` cannot be understood, in words for who set it.
pub fn init(format: LogFormat, collector: Option<&Url>) -> Result<Traces, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tracing-subscriber defines this variable"
    )]
    let levels = env::var("RUST_LOG").unwrap_or_default();
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let traces = Traces(collector.map(tracer_provider).transpose()?);
    let subscriber = subscriber(format, &levels, colour, io::stderr, &traces)?;
    subscriber.try_init().map_err(|error| error.to_string())?;
    Ok(traces)
}

/// Where spans go. To be flushed before the process ends.
#[derive(Debug, Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Sends what is left, waiting for the collector no longer than two seconds.
    pub async fn flush(self) {
        let Some(provider) = self.0 else { return };
        let sent = spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

fn tracer_provider(collector: &Url) -> Result<SdkTracerProvider, String> {
    // The exporter's client needs it at once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoint = format!("{}/v1/traces", collector.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {error}"))?;
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

/// What no `RUST_LOG` brings out, since it can hold a secret: at `trace` libraries show what goes
/// over the wire, and where sqlx warns about connection options it quotes them, passwords of
/// `.pgpass` included.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let most = match metadata.target() {
        target if target.starts_with("sqlx_postgres::options") => Level::ERROR,
        target if target.starts_with(env!("CARGO_CRATE_NAME")) => Level::TRACE,
        _ => Level::DEBUG,
    };
    metadata.is_event() && *metadata.level() <= most
}

/// The same, and our own spans: what libraries put into theirs is their business. Ours are of the
/// level error, so that no `RUST_LOG` but `off` hides them.
fn may_be_told(metadata: &Metadata<'_>) -> bool {
    match metadata.is_span() {
        true => metadata.target().starts_with(env!("CARGO_CRATE_NAME")),
        false => may_be_logged(metadata),
    }
}

fn subscriber<W: for<'w> MakeWriter<'w> + Send + Sync + 'static>(
    format: LogFormat,
    levels: &str,
    colour: bool,
    writer: W,
    traces: &Traces,
) -> Result<Box<dyn Subscriber + Send + Sync>, String> {
    let levels = if levels.is_empty() {
        DEFAULT_LEVELS
    } else {
        levels
    };
    let filter = EnvFilter::builder().parse(levels).map_err(|error| {
        format!("RUST_LOG: {error} (levels are like info or info,token_vendor=debug)")
    })?;
    let lines = fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(colour).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Filters of the whole rather than of a layer each: with those, a library that only asks whether
    // a line would be logged makes the next one disappear (sqlx does, after each statement).
    let may_be: fn(&Metadata<'_>) -> bool = match &traces.0 {
        Some(_) => may_be_told,
        None => may_be_logged,
    };
    let filtered = registry().with(filter).with(filter_fn(may_be));
    let Some(provider) = &traces.0 else {
        return Ok(Box::new(filtered.with(lines)));
    };
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(env!("CARGO_PKG_NAME")))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    // This one says yes to every event, so that there is nothing to forget.
    let lines = lines.with_filter(filter_fn(|metadata| metadata.is_event()));
    Ok(Box::new(filtered.with(lines).with(spans)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn logged(format: LogFormat, levels: &str) -> String {
        let path = env::temp_dir().join(format!("token-vendor-{}", uuid::Uuid::new_v4()));
        let file = File::create(&path).unwrap();
        let subscriber = subscriber(format, levels, false, file, &Traces::default()).unwrap();
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
    fn a_line_is_text_or_flat_json() {
        let text = logged(LogFormat::Text, "");
        assert!(text.contains("request status=200\n"), "{text:?}");
        let json = logged(LogFormat::Json, "");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["message"], "request");
        assert_eq!(value["status"], 200);
    }

    #[test]
    fn no_level_brings_out_what_may_hold_a_secret() {
        let lines = logged(LogFormat::Text, "trace,sqlx_postgres=trace");
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(lines.contains("detail") && lines.contains("a statement"));
        let error = subscriber(
            LogFormat::Text,
            "a=loud",
            false,
            io::sink,
            &Traces::default(),
        )
        .err();
        assert!(error.unwrap().starts_with("RUST_LOG: "));
    }
}
