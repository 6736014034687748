//! `token-vendor audit`: exports the audit log. The other subcommands have files of their own.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;
use uuid::Uuid;

use super::audit_erase::{EraseArgs, erase};
use super::audit_follow::{FollowArgs, follow};
use super::audit_verify::{VerifyArgs, verify};
use super::progress::ProgressLine;
use super::{CliError, actor, connect, connector, start_logs, write_out};
use crate::config::{DatabaseCommandConfig, Flags, Source};
use crate::db::audit_events::{AuditReadRecord, EventPages, insert_audit_read};
use crate::db::clock::service_time;
use crate::db::connector::Role;
use crate::db::distribution::is_distributed;
use crate::db::event_page::EventFilter;
use crate::db::horizon::{advance_horizon, find_horizon, wait_for_horizon};
use crate::model::event_format::EventFormat;
use crate::model::rules;
use crate::model::time::parse_timestamp;
use crate::model::{EventKind, EventRef};

/// The time for which an export waits until no event can still appear before its end.
const MAX_WAIT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Subcommand)]
pub(super) enum AuditCommand {
    /// Write events to stdout, oldest first.
    Export(ExportArgs),
    /// Verify that no sealed event was changed. Exit code 0 = intact, 1 = changed, 2 = cannot tell.
    Verify(VerifyArgs),
    /// Write sealed events to stdout in the order of the log, without end.
    Follow(FollowArgs),
    /// Erase the data of a person from records and events.
    Erase(EraseArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Export only events at or after this RFC 3339 time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<DateTime<Utc>>,
    /// Export only events before this RFC 3339 time [default: now]. If the time is past, waits up to 2 minutes for
    /// transactions that may still write earlier events.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<DateTime<Utc>>,
    /// The output format.
    #[arg(long, default_value = "ndjson", value_parser = format_parser())]
    format: EventFormat,
    /// Export only events of this user.
    #[arg(long, value_name = "ID", value_parser = |text: &str| rules::user_id(text.into()))]
    user_id: Option<String>,
    /// Export only events of this token.
    #[arg(long, value_name = "UUID")]
    token_id: Option<Uuid>,
    /// Export only events of this client.
    #[arg(long, value_name = "KEY", value_parser = |text: &str| rules::api_key(text.into()))]
    client: Option<String>,
    /// Export only events of this kind. May be repeated.
    #[arg(long, value_parser = kind_parser())]
    kind: Vec<EventKind>,
    /// Leave out the events of this kind. May be repeated.
    #[arg(long, value_name = "KIND", value_parser = kind_parser())]
    exclude_kind: Vec<EventKind>,
    /// Export only events of this request.
    #[arg(long, value_name = "ID", value_parser = |text: &str| rules::printable(text.into()))]
    request_id: Option<String>,
    /// Export only events of the token string with this fingerprint.
    #[arg(long, value_name = "HEX", value_parser = |text: &str| rules::printable(text.into()))]
    fingerprint: Option<String>,
    #[command(flatten)]
    settings: Flags<DatabaseCommandConfig>,
}

pub(super) async fn run(command: AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Export(args) => export(args).await,
        AuditCommand::Verify(args) => verify(args).await,
        AuditCommand::Follow(args) => follow(args).await,
        AuditCommand::Erase(args) => erase(args).await,
    }
}

async fn export(args: ExportArgs) -> Result<(), CliError> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from > to
    {
        return Err(CliError::Usage(
            "--to must not be earlier than --from".into(),
        ));
    }
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let mut primary = connect(&config.database).await?;
    let mut filter = EventFilter {
        user_id: args.user_id,
        token_id: args.token_id,
        client: args.client,
        kinds: names(&args.kind),
        excluded_kinds: names(&args.exclude_kind),
        request_id: args.request_id,
        fingerprint: args.fingerprint,
        from: args.from,
        to: args.to,
    };
    let record = AuditReadRecord {
        caller: None,
        detail: json!({"actor": actor(), "filter": filter, "format": args.format}),
    };
    let read_at = insert_audit_read(&mut primary, &record).await?;
    // On Citus, the horizon stays behind.
    let waits = !is_distributed(&mut primary).await?;
    let required = args.to.filter(|to| waits && *to <= read_at);
    let find = async || {
        // No replica may be running.
        advance_horizon(&mut primary, service_time()).await?;
        find_horizon(&mut primary).await
    };
    let required = required.unwrap_or(DateTime::UNIX_EPOCH);
    let complete_until = wait_for_horizon(required, MAX_WAIT, find).await?;
    // Excludes the event of this export and all later ones, so that the export ends.
    let to = args.to.unwrap_or(read_at);
    filter.to = Some(to);
    let horizon = to.min(complete_until);
    let mut reads = match &config.database.read_url {
        Some(url) => {
            let mut standby = connector(url, Role::Standby).connect().await?;
            let find = async || find_horizon(&mut standby).await;
            wait_for_horizon(horizon, MAX_WAIT, find).await?;
            standby
        }
        None => primary,
    };

    write_out(args.format.head().unwrap_or_default().as_bytes())?;
    let mut pages = EventPages::new(filter, horizon).with_names(args.format == EventFormat::Csv);
    let (mut progress, mut total) = (ProgressLine::new(), 0);
    let mut rows = Vec::new();
    loop {
        let push = |event: &EventRef<'_>| args.format.push(&mut rows, event);
        let count = pages.read_next(&mut reads, push).await?;
        if count == 0 {
            break;
        }
        write_out(&rows)?;
        rows.clear();
        total += count;
        if let Some(at) = pages.read_up_to() {
            let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
            progress.update(format_args!("{total} events, up to {at}"));
        }
    }
    drop(progress);
    if complete_until < to {
        let complete_until = complete_until.to_rfc3339_opts(SecondsFormat::Micros, true);
        tracing::info!(%complete_until, "events after this time may still appear; continue with --from");
    }
    Ok(())
}

fn names(kinds: &[EventKind]) -> Vec<String> {
    kinds.iter().map(|kind| kind.name().into()).collect()
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    parse_timestamp(text)
        .map_err(|_| "must be an RFC 3339 time with an offset, such as 2026-11-22T11:39:08+02:00")
}

fn format_parser() -> impl TypedValueParser<Value = EventFormat> {
    PossibleValuesParser::new(EventFormat::ALL.iter().map(|format| format.name())).map(|name| {
        EventFormat::from_name(&name).expect("the parser accepts only names of formats")
    })
}

fn kind_parser() -> impl TypedValueParser<Value = EventKind> {
    PossibleValuesParser::new(EventKind::ALL.iter().map(|kind| kind.name()))
        .map(|name| EventKind::from_name(&name).expect("the parser accepts only names of kinds"))
}
