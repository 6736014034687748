//! `token-vendor keys`: manages the keys that encrypt stored tokens.

use anyhow::{anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;

use super::progress::ProgressLine;
use super::{
    CliError, actor, cancel_on_shutdown, connect, print, print_json, random_bytes, start_logs,
};
use crate::app::key_ring;
use crate::config::{Flags, KeysCommandConfig, Source, is_key_id};
use crate::jobs::key_rotation::rotate_keys;

#[derive(Debug, clap::Subcommand)]
pub(super) enum KeysCommand {
    /// Print a new key in the format of TOKEN_KEYS.
    Generate {
        /// The id of the key, unique in TOKEN_KEYS [default: k and today's date].
        #[arg(long, value_parser = parse_key_id)]
        id: Option<String>,
    },
    /// Re-encrypt every stored token under the first key in TOKEN_KEYS. Exit code 0 means that no
    /// token is left under another key.
    Rotate {
        #[command(flatten)]
        settings: Flags<KeysCommandConfig>,
    },
}

pub(super) async fn run(command: KeysCommand) -> Result<(), CliError> {
    match command {
        KeysCommand::Generate { id } => {
            #[expect(clippy::disallowed_methods, reason = "the date is only a name")]
            let id = id.unwrap_or_else(|| Utc::now().format("k%Y%m%d").to_string());
            let key = BASE64_STANDARD.encode(random_bytes::<32>()?);
            Ok(print(format_args!("{id}:{key}"))?)
        }
        KeysCommand::Rotate { settings } => rotate(settings).await,
    }
}

async fn rotate(settings: Flags<KeysCommandConfig>) -> Result<(), CliError> {
    let config = settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let mut connection = connect(&config.database).await?;
    let shutdown = cancel_on_shutdown()?;
    let keys = key_ring(&config.keys);
    let mut line = ProgressLine::new();
    let progress = |done, total| {
        line.update(format_args!("{done} of {total} tokens re-encrypted"));
    };
    let rotation = rotate_keys(&mut connection, &keys, &actor(), &shutdown, progress).await?;
    drop(line);
    print_json(&rotation)?;
    match rotation.left.values().sum::<i64>() {
        0 => Ok(()),
        left => Err(anyhow!(
            "{left} stored tokens are not yet encrypted under the first key in TOKEN_KEYS; \
             run the command again, or see the log for tokens that cannot be decrypted"
        )
        .into()),
    }
}

fn parse_key_id(text: &str) -> anyhow::Result<String> {
    if !is_key_id(text) {
        bail!("must be 1 to 32 characters from A-Z, a-z, 0-9, _ and -");
    }
    Ok(text.to_owned())
}
