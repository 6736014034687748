//! Logs: to stderr, as text or JSON, the level by `RUST_LOG`.

use std::env;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// What is logged where `RUST_LOG` is not set: our own `info`, and trouble of the libraries that
/// tell much.
const DEFAULT_LEVELS: &str = "info,sqlx=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,actix_server=warn,actix_http=warn";

/// Sends the records of `tracing` and `log` to stderr, from now on and in the whole process.
///
/// Text is coloured where stderr is a terminal and `NO_COLOR` is unset or empty.
///
/// # Errors
/// `RUST_LOG` cannot be understood, in words for who set it.
pub fn init(format: LogFormat) -> Result<(), String> {
    let levels = env::var("RUST_LOG").unwrap_or_default();
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let subscriber = subscriber(format, &levels, colour, io::stderr)?;
    subscriber.try_init().map_err(|error| error.to_string())
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
    *metadata.level() <= most
}

fn subscriber<W: for<'w> MakeWriter<'w> + Send + Sync + 'static>(
    format: LogFormat,
    levels: &str,
    colour: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, String> {
    let levels = if levels.is_empty() {
        DEFAULT_LEVELS
    } else {
        levels
    };
    let filter = EnvFilter::builder().parse(levels).map_err(|error| {
        format!("RUST_LOG: {error} (levels are like info or info,token_vendor=debug)")
    })?;
    let filtered = registry().with(filter).with(filter_fn(may_be_logged));
    let lines = fmt::layer().with_writer(writer);
    Ok(match format {
        LogFormat::Text => Box::new(filtered.with(lines.with_ansi(colour))),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            Box::new(filtered.with(lines))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn logged(format: LogFormat, levels: &str) -> String {
        let path = env::temp_dir().join(format!("token-vendor-{}", uuid::Uuid::new_v4()));
        let file = File::create(&path).unwrap();
        let subscriber = subscriber(format, levels, false, file).unwrap();
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
        let error = subscriber(LogFormat::Text, "a=loud", false, io::sink).err();
        assert!(error.unwrap().starts_with("RUST_LOG: "));
    }
}
