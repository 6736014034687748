//! `token-vendor sandbox`.

use std::net::SocketAddr;
use std::time::Duration;

use super::{CliError, start_logs, told_to_stop};
use crate::config::{Flags, LogConfig, Source};
use crate::dev::sandbox::{Sandbox, SandboxOptions};

#[derive(Debug, clap::Args)]
pub(super) struct SandboxCommand {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// The API key that it takes.
    #[arg(long, value_name = "KEY", default_value = "sandbox-key")]
    api_key: String,
    /// The API secret that it takes.
    #[arg(long, value_name = "SECRET", default_value = "sandbox-secret")]
    api_secret: String,
    /// How long every answer takes, like 100ms.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// Requests in an hour before it answers 429; 0 for no limit.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    hourly_limit: u32,
    /// The share of requests that it answers with 500, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    fail_rate: f64,
    #[command(flatten)]
    settings: Flags<LogConfig>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

pub(super) async fn sandbox(command: SandboxCommand) -> Result<(), CliError> {
    let log = command.settings.load(Source::of_process())?;
    start_logs(log.format)?;
    let stop = told_to_stop()?;
    let sandbox = Sandbox::start(SandboxOptions {
        listen: command.listen,
        api_key: command.api_key,
        api_secret: command.api_secret,
        latency: command.latency,
        hourly_limit: command.hourly_limit,
        fail_rate: command.fail_rate,
    })
    .await?;
    tracing::info!(address = %sandbox.addr(), "standing in for the upstream");
    stop.await;
    sandbox.stop().await;
    Ok(())
}
