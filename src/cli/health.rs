//! `token-vendor health`: a health check for container images without an HTTP client.

use std::time::Duration;

use anyhow::{Context, anyhow};
use url::Url;

use super::CliError;
use crate::config::{Flags, HttpConfig, Source};
use crate::upstream;

/// The time limit of the check. Readiness needs less, even when the database does not respond.
const TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Debug, clap::Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    settings: Flags<HttpConfig>,
}

pub(super) async fn run(args: HealthArgs) -> Result<(), CliError> {
    let http = args.settings.load(Source::from_process())?;
    // A connection to an unspecified address such as 0.0.0.0 reaches this machine.
    let (address, has_tls) = match http.metrics_addr {
        Some(address) => (address, false),
        None => (http.listen_addr, http.has_tls()),
    };
    let scheme = if has_tls { "https" } else { "http" };
    let url = Url::parse(&format!("{scheme}://{address}/health/ready"))
        .context("the address gives no valid URL")?;
    // Accepts any certificate: the service's own does not name this address.
    match upstream::probe(&url, TIMEOUT, None, true).await? {
        status if status.is_success() => Ok(()),
        status => Err(anyhow!("{url} responds with status {status}").into()),
    }
}
