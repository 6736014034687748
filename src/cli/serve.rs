//! `token-vendor serve`.

use std::pin::pin;

use super::{CliError, start_telemetry, told_to_stop};
use crate::app::Service;
use crate::config::{Config, Flags, Source};
use crate::db::schema;

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Apply pending migrations first.
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    settings: Flags<Config>,
}

pub(super) async fn serve(serve: Serve) -> Result<(), CliError> {
    let config = serve.settings.load(Source::of_process())?;
    let traces = start_telemetry(config.log.format, config.traces.endpoint.as_ref())?;
    let options = schema::connect_options(&config.database.url)?;
    if let Some(url) = &config.database.read_url {
        schema::connect_options(url)?;
    }
    let mut stop = pin!(told_to_stop()?);
    let start = async {
        if serve.migrate {
            schema::wait_for_database(&options, config.database.startup_wait).await?;
            schema::migrate(&options).await?;
        }
        Ok::<_, CliError>(Service::start(config).await?)
    };
    // Nothing is under way yet that would have to be finished.
    let service = tokio::select! {
        started = start => started?,
        () = &mut stop => return Ok(()),
    };
    tracing::info!(address = %service.addr(), "serving");
    let ended = service.run_until(stop).await;
    traces.flush().await;
    Ok(ended?)
}
