//! `token-vendor health`: a health check for container images without an HTTP client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use url::Url;

use super::CliError;
use crate::config::{CommandConfig, HttpConfig, Source};
use crate::upstream;

/// The time limit of the check. Readiness needs less, even when the database does not respond.
const TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Debug, clap::Args)]
pub(super) struct HealthArgs {
    /// The address of `/health/ready`
    /// [env: METRICS_ADDR, or LISTEN_ADDR if it is not set].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(args: HealthArgs) -> Result<(), CliError> {
    let http = HttpConfig::load(Source::from_process())?;
    // A connection to an unspecified address such as 0.0.0.0 reaches this machine.
    let address = args
        .listen
        .or(http.metrics_addr)
        .unwrap_or(http.listen_addr);
    let has_tls = http.has_tls() && http.metrics_addr != Some(address);
    let scheme = if has_tls { "https" } else { "http" };
    let url = Url::parse(&format!("{scheme}://{address}/health/ready"))
        .context("the address gives no valid URL")?;
    // Accepts any certificate: the service's own does not name this address.
    match upstream::probe(&url, TIMEOUT, None, true).await? {
        status if status.is_success() => Ok(()),
        status => Err(anyhow!("{url} responds with status {status}").into()),
    }
}
