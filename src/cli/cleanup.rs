//! `token-vendor cleanup`: runs one cleanup.

use std::time::Duration;

use tokio::time::sleep;

use super::progress::ProgressLine;
use super::{CliError, actor, cancel_on_shutdown, find_database, print_json, start_logs};
use crate::app::retention;
use crate::config::{Flags, RetentionCommandConfig, Source};
use crate::db::Database;
use crate::jobs::cleanup::{Cleaner, CleanupOptions};
use crate::metrics::Families;
use crate::model::Origin;

#[derive(Debug, clap::Args)]
pub(super) struct CleanupArgs {
    /// Change nothing and print what a run would do.
    #[arg(long)]
    dry_run: bool,
    /// The maximum number of rows per transaction.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    batch_size: i64,
    /// Stop after this time, for example 10m. The next run continues.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    max_runtime: Duration,
    #[command(flatten)]
    settings: Flags<RetentionCommandConfig>,
}

pub(super) async fn run(args: CleanupArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let shutdown = cancel_on_shutdown()?;
    // One connection for the run and one for the progress line. That of authentication stays closed.
    let database = Database::new(find_database(&config.database).await?, 3);
    let options = CleanupOptions {
        dry_run: args.dry_run,
        batch_size: args.batch_size,
        max_runtime: args.max_runtime,
    };
    let cleaner = Cleaner::new(
        database,
        retention(&config.retention),
        None,
        Families::at_zero(),
        shutdown,
    );
    let mut progress = ProgressLine::new();
    let is_visible = progress.is_visible();
    if is_visible {
        show_backlog(&cleaner, &mut progress).await;
    }
    let summary = tokio::select! {
        summary = cleaner.run(options, Origin::Actor(actor())) => summary?,
        () = refresh_backlog(&cleaner, &mut progress), if is_visible => unreachable!("it never ends"),
    };
    drop(progress);
    print_json(&summary)
}

async fn refresh_backlog(cleaner: &Cleaner, progress: &mut ProgressLine) {
    loop {
        sleep(Duration::from_secs(1)).await;
        show_backlog(cleaner, progress).await;
    }
}

async fn show_backlog(cleaner: &Cleaner, progress: &mut ProgressLine) {
    if let Ok(backlog) = cleaner.find_backlog().await {
        let overdue = backlog.overdue_tokens;
        progress.update(format_args!(
            "{overdue} expired tokens left to mark, then old records"
        ));
    }
}
