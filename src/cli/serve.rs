//! `token-vendor serve`: runs the service.

use std::pin::pin;

use super::{CliError, shutdown_signal, start_telemetry};
use crate::app::Service;
use crate::auth::oidc::IssuerError;
use crate::config::{Config, Flags, Source};
use crate::db::schema;

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Apply pending migrations before the start.
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    settings: Flags<Config>,
}

pub(super) async fn run(args: ServeArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    let traces = start_telemetry(config.log.format, config.traces.endpoint.as_ref())?;
    let options = schema::connect_options(&config.database.url)?;
    if let Some(url) = &config.database.read_url {
        schema::connect_options(url)?;
    }
    let mut shutdown = pin!(shutdown_signal()?);
    let start = async {
        if args.migrate {
            schema::wait_for_database(&options, config.database.startup_wait).await?;
            schema::migrate(&options).await?;
        }
        let started = Service::start(config).await;
        started.map_err(|error| match error.downcast_ref::<IssuerError>() {
            Some(error) => CliError::Usage(error.to_string()),
            None => error.into(),
        })
    };
    // Before the start is complete, there is no request to finish.
    let service = tokio::select! {
        started = start => started?,
        () = &mut shutdown => return Ok(()),
    };
    tracing::info!(address = %service.addr(), "service started");
    let stopped = service.run_until(shutdown).await;
    traces.flush(stopped.as_ref().ok().copied()).await;
    stopped?;
    Ok(())
}
