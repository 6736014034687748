//! `token-vendor audit verify`: verifies the sealed audit log.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::progress::ProgressLine;
use super::{CliError, connect, connector, print_json, start_logs};
use crate::config::{Flags, RetentionCommandConfig, Source};
use crate::db::Database;
use crate::db::connector::Role;
use crate::jobs::verification::{Evidence, VerifyError, verify_log};
use crate::seal::checkpoint::open_checkpoint;

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// A checkpoint that was kept. The log must continue it. May be repeated.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// The key that signed the checkpoints, in signed-note format.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Compare the log with this NDJSON export instead of the events of the database.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    #[command(flatten)]
    settings: Flags<RetentionCommandConfig>,
}

/// Verifies the log. Every failure but a change has exit code 2.
pub(super) async fn verify(args: VerifyArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let mut evidence = Evidence {
        token_retention: config.retention.tokens,
        ..Evidence::default()
    };
    if let Some(path) = &args.public_key {
        evidence.verifier_key = Some(read_file(path)?.trim().to_owned());
    }
    for path in &args.checkpoint {
        let name = path.display().to_string();
        let head = open_checkpoint(&read_file(path)?, evidence.verifier_key.as_deref());
        let head = head.map_err(|why| CliError::Usage(format!("{name}: {why}")))?;
        evidence.checkpoints.push((name, head));
    }
    let export = match &args.export {
        Some(path) => {
            let file = File::open(path).map_err(|why| cannot_read(path, &why))?;
            Some(Box::new(BufReader::new(file)) as Box<dyn BufRead>)
        }
        None => None,
    };
    let cannot_tell = |error: CliError| match error {
        CliError::Failed(error) => CliError::Usage(error.to_string()),
        usage => usage,
    };
    // Waits for the database and checks its schema.
    drop(connect(&config.database).await.map_err(cannot_tell)?);
    let connector = match &config.database.read_url {
        Some(url) => connector(url, Role::Standby),
        None => connector(&config.database.url, Role::Primary),
    };
    let max_connections = config.database.max_connections;
    let db = Database::new(connector, max_connections);
    // Reads may use half of the connections. More of them would wait, and fail.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parallelism = cores.min(max_connections as usize / 2);
    let mut line = ProgressLine::new();
    let progress = |done, all| line.update(format_args!("{done} of {all} entries verified"));
    let verified = verify_log(&db, &evidence, export, parallelism, progress).await;
    drop(line);
    db.close();
    match verified {
        Ok(verified) => print_json(&verified),
        Err(VerifyError::Changed(what)) => Err(CliError::Failed(anyhow!(what))),
        Err(error) => Err(CliError::Usage(error.to_string())),
    }
}

fn read_file(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|why| cannot_read(path, &why))
}

fn cannot_read(path: &Path, why: &io::Error) -> CliError {
    CliError::Usage(format!("{} cannot be read: {why}", path.display()))
}
