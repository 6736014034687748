//! `token-vendor keys`: the keys that stored tokens are encrypted under.

use std::io::IsTerminal;

use anyhow::{anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;
use tokio_util::sync::CancellationToken;

use super::client::{actor, connect, random};
use super::{CliError, print, print_json, start_logs, told_to_stop};
use crate::app::key_ring;
use crate::config::{Flags, KeysCommandConfig, Source, is_key_id};
use crate::jobs::key_rotation::rotate_keys;

#[derive(Debug, clap::Subcommand)]
pub(super) enum KeysCommand {
    /// Print a new key, as TOKEN_KEYS takes it.
    Generate {
        /// Its id, which no other key in TOKEN_KEYS may have [default: k and today's date].
        #[arg(long, value_parser = key_id)]
        id: Option<String>,
    },
    /// Re-encrypt every stored token under the first key in TOKEN_KEYS. Exit code 0 says that none
    /// is left under another.
    Rotate {
        #[command(flatten)]
        settings: Flags<KeysCommandConfig>,
    },
}

pub(super) async fn keys(command: KeysCommand) -> Result<(), CliError> {
    match command {
        KeysCommand::Generate { id } => {
            #[expect(clippy::disallowed_methods, reason = "the date is only a name")]
            let id = id.unwrap_or_else(|| Utc::now().format("k%Y%m%d").to_string());
            let key = BASE64_STANDARD.encode(random::<32>()?);
            Ok(print(format_args!("{id}:{key}"))?)
        }
        KeysCommand::Rotate { settings } => rotate(settings).await,
    }
}

async fn rotate(settings: Flags<KeysCommandConfig>) -> Result<(), CliError> {
    let config = settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    let pool = connect(&config.database).await?;
    let (stop, told) = (CancellationToken::new(), told_to_stop()?);
    tokio::spawn({
        let stop = stop.clone();
        async move {
            told.await;
            stop.cancel();
        }
    });
    let keys = key_ring(&config.keys);
    let (is_terminal, mut shown) = (std::io::stderr().is_terminal(), false);
    let progress = |done, total| {
        if is_terminal {
            shown = true;
            eprint!("\r{done} of {total} tokens re-encrypted");
        }
    };
    let rotation = rotate_keys(&pool, &keys, &actor(), &stop, progress).await?;
    if shown {
        eprintln!();
    }
    print_json(&rotation)?;
    match rotation.left.values().sum::<i64>() {
        0 => Ok(()),
        left => Err(
            anyhow!("{left} stored tokens are not under the first key in TOKEN_KEYS yet").into(),
        ),
    }
}

fn key_id(text: &str) -> anyhow::Result<String> {
    if !is_key_id(text) {
        bail!("must be 1 to 32 of A-Z, a-z, 0-9, _ and -");
    }
    Ok(text.to_owned())
}
