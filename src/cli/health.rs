//! `token-vendor health`: a probe for where there is no HTTP client but this program.

use std::time::Duration;

use anyhow::{Context, anyhow};
use url::Url;

use super::CliError;
use crate::config::{Flags, HttpConfig, Source};
use crate::upstream;

/// Longer than readiness waits for the database.
const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Debug, clap::Args)]
pub(super) struct Health {
    #[command(flatten)]
    settings: Flags<HttpConfig>,
}

pub(super) async fn health(health: Health) -> Result<(), CliError> {
    let http = health.settings.load(Source::of_process())?;
    // An unspecified address, connected to, is this machine.
    let address = http.listen_addr;
    let scheme = if http.has_tls() { "https" } else { "http" };
    let url = Url::parse(&format!("{scheme}://{address}/health/ready")).context("no address")?;
    // Our own certificate is not made out to this address.
    match upstream::probe(&url, PATIENCE, true).await? {
        status if status.is_success() => Ok(()),
        status => Err(anyhow!("{url} answers {status}").into()),
    }
}
