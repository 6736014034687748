//! `token-vendor audit follow`: streams the sealed audit log.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{CliError, actor, connect, connector, start_logs, write_out};
use crate::config::{DatabaseCommandConfig, Flags, Source};
use crate::db::audit_events::{AuditReadRecord, insert_audit_read};
use crate::db::audit_log::{Position, find_log, find_position, list_log_events};
use crate::db::connector::Role;
use crate::db::distribution::reject_distributed;
use crate::db::{Checkout, Database, DbError, Lane};
use crate::model::EventRef;
use crate::model::event_format::EventFormat;

/// Time between two reads while there is nothing new, and after a failed read.
const POLL: Duration = Duration::from_secs(1);

/// The maximum number of events in one read.
const PAGE: i64 = 2_000;

#[derive(Debug, clap::Args)]
pub(super) struct FollowArgs {
    /// Start at the entry with this index. It is the number of lines that earlier calls from 0 have written.
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    settings: Flags<DatabaseCommandConfig>,
}

/// Writes sealed events until the reader closes the pipe. Outlives a database that is away.
pub(super) async fn follow(args: FollowArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let mut primary = connect(&config.database).await?;
    reject_distributed(&mut primary).await?;
    let log = find_log(&mut primary).await?;
    if args.after > log.size as u64 {
        let size = log.size;
        return Err(CliError::Usage(format!(
            "--after: the log has only {size} entries"
        )));
    }
    let Some(start) = find_position(&mut primary, args.after as i64).await? else {
        return Err(CliError::Usage(format!(
            "--after: retention has deleted the event of entry {}",
            args.after
        )));
    };
    let record = AuditReadRecord {
        caller: None,
        detail: json!({"actor": actor(), "follow": args.after}),
    };
    insert_audit_read(&mut primary, &record).await?;
    drop(primary);
    let connector = match &config.database.read_url {
        Some(url) => connector(url, Role::Standby),
        None => connector(&config.database.url, Role::Primary),
    };
    let db = Database::new(connector, config.database.max_connections);
    let mut after = start;
    loop {
        let lines = match read_lines(&db, after).await {
            Ok(lines) => lines,
            Err(error) => {
                tracing::warn!(%error, "reading the log failed; trying again");
                Vec::new()
            }
        };
        let Some((last, _)) = lines.last() else {
            sleep(POLL).await;
            continue;
        };
        after = Some(*last);
        for (_, line) in &lines {
            write_out(line)?;
        }
    }
}

/// Reads the next sealed events.
async fn read_lines(
    db: &Database,
    after: Option<Position>,
) -> Result<Vec<(Position, Vec<u8>)>, DbError> {
    db.run(Lane::Reads, async move |mut connection: Checkout| {
        let log = find_log(&mut connection).await?;
        let line = |event: &EventRef<'_>| {
            let mut line = Vec::new();
            EventFormat::Ndjson.push(&mut line, event);
            line
        };
        let mut lines = list_log_events(&mut connection, after, PAGE, line).await?;
        lines.retain(|(position, _)| log.size > 0 && *position <= (log.last_at, log.last_id));
        Ok(lines)
    })
    .await
}
