//! `token-vendor audit`: the trail as a file.

use std::io::{self, IsTerminal, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;
use uuid::Uuid;

use super::client::{actor, connect};
use super::{CliError, start_logs};
use crate::config::{DatabaseCommandConfig, Flags, Source};
use crate::db::audit_events::{AuditReadRecord, EventPages, insert_audit_read};
use crate::db::event_page::EventFilter;
use crate::db::schema;
use crate::model::event_format::EventFormat;
use crate::model::time::parse_timestamp;
use crate::model::{EventKind, EventRef};

#[derive(Debug, clap::Subcommand)]
pub(super) enum AuditCommand {
    /// Write events to stdout, oldest first.
    Export(Export),
}

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// At or after, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<DateTime<Utc>>,
    /// Before, RFC 3339; now, unless given.
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<DateTime<Utc>>,
    /// How they are written.
    #[arg(long, default_value = "ndjson", value_parser = format_parser())]
    format: EventFormat,
    /// About this user.
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// About this token.
    #[arg(long, value_name = "UUID")]
    token_id: Option<Uuid>,
    /// By this client.
    #[arg(long, value_name = "KEY")]
    client: Option<String>,
    /// Of this kind.
    #[arg(long, value_parser = kind_parser())]
    kind: Option<EventKind>,
    /// In this request.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// About the token string of this fingerprint.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    #[command(flatten)]
    settings: Flags<DatabaseCommandConfig>,
}

pub(super) async fn audit(AuditCommand::Export(export): AuditCommand) -> Result<(), CliError> {
    if let (Some(from), Some(to)) = (export.from, export.to)
        && from > to
    {
        return Err(CliError::Usage("--to must not lie before --from".into()));
    }
    let config = export.settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    let primary = connect(&config.database).await?;
    let reads = match &config.database.read_url {
        Some(url) => schema::open_pool(schema::connect_options(url)?, 1),
        None => primary.clone(),
    };
    let mut filter = EventFilter {
        user_id: export.user_id,
        token_id: export.token_id,
        client: export.client,
        kind: export.kind,
        request_id: export.request_id,
        fingerprint: export.fingerprint,
        from: export.from,
        to: export.to,
    };
    let reading = AuditReadRecord {
        caller: None,
        detail: json!({"actor": actor(), "filter": filter, "format": export.format}),
    };
    let read_at = insert_audit_read(&primary, &reading).await?;
    filter.to = filter.to.or(Some(read_at));

    let mut out = io::stdout().lock();
    out.write_all(export.format.head().unwrap_or_default().as_bytes())?;
    let mut pages = EventPages::new(filter);
    let mut progress = Progress::new();
    let mut rows = Vec::new();
    loop {
        let push = |event: &EventRef<'_>| export.format.push(&mut rows, event);
        let count = pages.read_next(&reads, push).await?;
        if count == 0 {
            break;
        }
        out.write_all(&rows)?;
        rows.clear();
        progress.show(count, pages.read_up_to());
    }
    Ok(out.flush()?)
}

/// A line on the terminal, rewritten as the work goes on; nothing where there is no terminal.
struct Progress {
    is_shown: bool,
    events: usize,
}

impl Progress {
    fn new() -> Self {
        Progress {
            is_shown: io::stderr().is_terminal(),
            events: 0,
        }
    }

    fn show(&mut self, more: usize, up_to: Option<DateTime<Utc>>) {
        self.events += more;
        if let Some(at) = up_to.filter(|_| self.is_shown) {
            let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
            let _ = write!(io::stderr(), "\r{} events, up to {at}\x1b[K", self.events);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown && self.events > 0 {
            let _ = writeln!(io::stderr());
        }
    }
}

fn time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    parse_timestamp(text)
        .map_err(|_| "must be an RFC 3339 time with its offset, as 2026-11-22T11:39:08+02:00")
}

fn format_parser() -> impl TypedValueParser<Value = EventFormat> {
    PossibleValuesParser::new(EventFormat::ALL.iter().map(|format| format.name()))
        .map(|name| EventFormat::from_name(&name).expect("only names of formats come here"))
}

fn kind_parser() -> impl TypedValueParser<Value = EventKind> {
    PossibleValuesParser::new(EventKind::ALL.iter().map(|kind| kind.name()))
        .map(|name| EventKind::from_name(&name).expect("only names of kinds come here"))
}
