//! `token-vendor sandbox`: runs only the sandbox, which replaces the provider.

use std::net::SocketAddr;
use std::time::Duration;

use super::{CliError, shutdown_signal, start_logs};
use crate::config::{Flags, LogConfig, Source};
use crate::dev::sandbox::{Sandbox, SandboxOptions};

#[derive(Debug, clap::Args)]
pub(super) struct SandboxArgs {
    /// The address of the sandbox.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// The API key that the sandbox accepts.
    #[arg(long, value_name = "KEY", default_value = "sandbox-key")]
    api_key: String,
    /// The API secret that the sandbox accepts.
    #[arg(long, value_name = "SECRET", default_value = "sandbox-secret")]
    api_secret: String,
    /// The delay of every response, for example 100ms.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// The number of requests per hour before the sandbox responds with 429. 0 = no limit.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    hourly_limit: u32,
    /// The share of requests that get status 500, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    fail_rate: f64,
    #[command(flatten)]
    settings: Flags<LogConfig>,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

pub(super) async fn run(args: SandboxArgs) -> Result<(), CliError> {
    let log = args.settings.load(Source::from_process())?;
    start_logs(log.format)?;
    let shutdown = shutdown_signal()?;
    let sandbox = Sandbox::start(SandboxOptions {
        listen: args.listen,
        api_key: args.api_key,
        api_secret: args.api_secret,
        latency: args.latency,
        hourly_limit: args.hourly_limit,
        fail_rate: args.fail_rate,
    })
    .await?;
    tracing::info!(address = %sandbox.addr(), "sandbox started");
    shutdown.await;
    sandbox.stop().await;
    Ok(())
}
