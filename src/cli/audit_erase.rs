//! `token-vendor audit erase`: redacts what identifies a person.

use serde_json::json;

use super::progress::ProgressLine;
use super::{CliError, actor, connect, print_json, start_logs};
use crate::config::{DatabaseCommandConfig, Flags, Source};
use crate::db::DbError;
use crate::db::distribution::reject_distributed;
use crate::db::erasure::{READS, list_identifiers, redact_events, redact_reads, redact_records};
use crate::db::service_role::is_owner;
use crate::jobs::sealing::hash_event;
use crate::model::rules;

#[derive(Debug, clap::Args)]
pub(super) struct EraseArgs {
    /// The user to erase. First make sure that no service requests tokens for it any more.
    #[arg(long, value_name = "ID", value_parser = |text: &str| rules::user_id(text.into()))]
    user: String,
    #[command(flatten)]
    settings: Flags<DatabaseCommandConfig>,
}

/// Redacts batches until nothing of the user is left. A repeated call continues.
pub(super) async fn erase(args: EraseArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let mut connection = connect(&config.database).await?;
    if is_owner(&mut connection, None).await? == Some(false) {
        return Err(DbError::NotOwner.into());
    }
    // It moves rows to the empty user id, and Citus moves no row to another shard.
    reject_distributed(&mut connection).await?;
    let (user, actor) = (args.user, actor());
    let mut line = ProgressLine::new();
    let (mut tokens, mut mints, mut events) = (0, 0, 0);
    while let Some((more_tokens, more_mints)) = redact_records(&mut connection, &user).await? {
        tokens += more_tokens;
        mints += more_mints;
        line.update(format_args!("{tokens} tokens redacted"));
    }
    // The reads come first, because the events have the identifiers by which the reads are found.
    let identifiers = list_identifiers(&mut connection, &user).await?;
    for kind in READS {
        let mut after = None;
        loop {
            let reads = redact_reads(
                &mut connection,
                kind,
                &identifiers,
                &actor,
                after,
                hash_event,
            );
            let (more, last) = reads.await?;
            events += more;
            if last.is_none() {
                break;
            }
            after = last;
        }
    }
    while let more @ 1.. = redact_events(&mut connection, &user, &actor, hash_event).await? {
        events += more;
        line.update(format_args!("{events} events redacted"));
    }
    drop(line);
    print_json(&json!({"tokens": tokens, "mints": mints, "events": events}))
}
