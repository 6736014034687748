//! `token-vendor seal`: manages the key that signs checkpoints of the audit log.

use super::{CliError, print};
use crate::config::{Flags, SealConfig, Source};
use crate::seal::checkpoint::generate_keys;

#[derive(Debug, clap::Subcommand)]
pub(super) enum SealCommand {
    /// Print a new key for SEAL_SIGNING_KEY, and below it the key that verifies its signatures.
    Keys {
        #[command(flatten)]
        settings: Flags<SealConfig>,
    },
}

pub(super) fn run(SealCommand::Keys { settings }: SealCommand) -> Result<(), CliError> {
    let config = settings.load(Source::from_process())?;
    let keys = generate_keys(&config.origin);
    Ok(print(format_args!(
        "{}\n{}",
        keys.signing_key, keys.verifier_key
    ))?)
}
