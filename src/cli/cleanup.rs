//! `token-vendor cleanup`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::actor;
use super::{CliError, print_json, start_logs, told_to_stop};
use crate::app::retention;
use crate::config::{CleanupCommandConfig, Flags, Source};
use crate::db::{Database, schema};
use crate::jobs::cleanup::{Cleaner, CleanupOptions};
use crate::metrics::Families;
use crate::model::Origin;

#[derive(Debug, clap::Args)]
pub(super) struct Cleanup {
    /// Change nothing and print what there would be to do.
    #[arg(long)]
    dry_run: bool,
    /// Rows in one transaction.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    batch_size: i64,
    /// Stop after this, like 10m.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    max_runtime: Duration,
    #[command(flatten)]
    settings: Flags<CleanupCommandConfig>,
}

pub(super) async fn cleanup(cleanup: Cleanup) -> Result<(), CliError> {
    let config = cleanup.settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    let (told, stop) = (told_to_stop()?, CancellationToken::new());
    let cancel = stop.clone();
    tokio::spawn(async move {
        told.await;
        cancel.cancel();
    });
    let options = schema::connect_options(&config.database.url)?;
    let patience = config.database.startup_wait;
    schema::check_fitness(&mut schema::wait_for_database(&options, patience).await?).await?;
    let pool = schema::open_pool(options, 2);
    let run = CleanupOptions {
        dry_run: cleanup.dry_run,
        batch_size: cleanup.batch_size,
        max_runtime: cleanup.max_runtime,
    };
    let cleaner = Cleaner::new(
        Database::new(pool),
        retention(&config.retention),
        None,
        Families::at_zero(),
        stop,
    );
    let is_watched = io::stderr().is_terminal();
    if is_watched {
        show_backlog(&cleaner).await;
    }
    let summary = tokio::select! {
        summary = cleaner.run(run, Origin::Actor(actor())) => summary?,
        () = show_progress(&cleaner), if is_watched => unreachable!("it has no end"),
    };
    if is_watched {
        eprint!("\x1b[K");
    }
    print_json(&summary)
}

async fn show_progress(cleaner: &Cleaner) {
    loop {
        sleep(Duration::from_secs(1)).await;
        show_backlog(cleaner).await;
    }
}

/// A line on the terminal, which the next one replaces.
async fn show_backlog(cleaner: &Cleaner) {
    if let Ok(backlog) = cleaner.find_backlog().await {
        let left = backlog.overdue_tokens;
        eprint!("\r{left} ended tokens left to mark, then old records\x1b[K\r");
    }
}
