//! Logs: to stderr, as text or JSON, the level by `RUST_LOG`.

use std::env;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// What is logged where `RUST_LOG` is not set: our own `info`, and trouble of the libraries that
/// tell much.
const DEFAULT_LEVELS: &str = "info,sqlx=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,actix_server=warn,actix_http=warn";

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` cannot be understood.
    #[error("RUST_LOG: {0} (levels are like info or info,token_vendor=debug)")]
    Levels(String),
    /// Another subscriber or logger is in place.
    #[error("logs are already set up")]
    AlreadySet(#[source] TryInitError),
}

/// Sends the records of `tracing` and `log` to stderr, from now on and in the whole process.
///
/// Text is coloured where stderr is a terminal and `NO_COLOR` is unset or empty.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    let levels = match env::var("RUST_LOG") {
        Ok(levels) => levels,
        Err(env::VarError::NotPresent) => String::new(),
        Err(env::VarError::NotUnicode(_)) => {
            return Err(TelemetryError::Levels("is not valid UTF-8".into()));
        }
    };
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    subscriber(format, filter(&levels)?, colour, io::stderr)
        .try_init()
        .map_err(TelemetryError::AlreadySet)
}

fn filter(levels: &str) -> Result<EnvFilter, TelemetryError> {
    let levels = match levels.trim() {
        "" => DEFAULT_LEVELS,
        levels => levels,
    };
    EnvFilter::builder()
        .with_regex(false)
        .parse(levels)
        .map_err(|error| TelemetryError::Levels(error.to_string()))
}

/// What no `RUST_LOG` brings out, since it can hold a secret: at `trace` libraries show what goes
/// over the wire, and where sqlx warns about connection options it quotes them, passwords of
/// `.pgpass` included.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let most = if target.starts_with("sqlx_postgres::options") {
        Level::ERROR
    } else if target.starts_with(env!("CARGO_CRATE_NAME")) {
        Level::TRACE
    } else {
        Level::DEBUG
    };
    *metadata.level() <= most
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filtered = registry().with(filter).with(filter_fn(may_be_logged));
    let lines = fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => Box::new(filtered.with(lines.with_ansi(colour))),
        LogFormat::Json => Box::new(
            filtered.with(
                lines
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false),
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, levels: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(format, filter(levels).unwrap(), false, move || {
            writer.clone()
        });
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_flat_with_a_utc_time() {
        let line = logged(LogFormat::Json, "", || {
            tracing::info!(status = 200, "request");
        });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "request");
        assert_eq!(value["status"], 200);
        assert_eq!(value["level"], "INFO");
        let time = value["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z'), "{time}");
        chrono::DateTime::parse_from_rfc3339(time).unwrap();
    }

    #[test]
    fn text_has_no_colour_codes_away_from_a_terminal() {
        let line = logged(LogFormat::Text, "", || {
            tracing::info!(status = 200, "request")
        });
        assert!(line.contains("request status=200"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }

    #[test]
    fn libraries_tell_trouble_only_unless_asked() {
        let log = || {
            tracing::info!(target: "sqlx::query", "a statement");
            tracing::warn!(target: "sqlx::query", "a slow statement");
            tracing::debug!("detail");
        };
        let lines = logged(LogFormat::Text, "", log);
        assert!(lines.contains("a slow statement"));
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert_eq!(logged(LogFormat::Text, "debug", log).lines().count(), 3);
    }

    #[test]
    fn no_level_brings_out_what_may_hold_a_secret() {
        let lines = logged(LogFormat::Text, "trace,sqlx_postgres=trace", || {
            tracing::warn!(target: "sqlx_postgres::options::pgpass", "h:1:d:u:password");
            tracing::trace!(target: "hyper::proto", "bytes on the wire");
            tracing::trace!("our own");
        });
        assert!(lines.contains("our own"), "{lines}");
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }

    #[test]
    fn bad_levels_are_a_readable_complaint() {
        let error = filter("token_vendor=loud").unwrap_err().to_string();
        assert!(error.starts_with("RUST_LOG: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
