//! `token-vendor check`.

use anyhow::anyhow;

use super::{CliError, start_logs};
use crate::config::{Config, Flags, Source};
use crate::db::{Database, schema, tokens};
use crate::upstream;

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Also check the database, its schema, the keys of stored tokens and the way to the upstream.
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    settings: Flags<Config>,
}

pub(super) async fn check(check: Check) -> Result<(), CliError> {
    let config = check.settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    print!("{}", config.render_masked());
    if !check.online {
        return Ok(());
    }
    let database = check_database(&config).await;
    report("database", &database);
    let reached = upstream::probe(&config.upstream.base_url, config.upstream.timeout).await;
    report("upstream", &reached);
    if database.is_err() || reached.is_err() {
        return Err(anyhow!("not all is well").into());
    }
    Ok(())
}

fn report(part: &str, outcome: &anyhow::Result<String>) {
    match outcome {
        Ok(told) => println!("{part}: ok, {told}"),
        Err(error) => println!("{part}: FAILED, {error:#}"),
    }
}

/// What there is to tell of a database that is fit.
async fn check_database(config: &Config) -> anyhow::Result<String> {
    let options = schema::connect_options(&config.database.url)?;
    schema::wait_for_database(&options, config.database.startup_wait).await?;
    let db = Database::new(schema::open_pool(options, 1));
    schema::check_fitness(&mut *db.pool().acquire().await?).await?;
    let health = schema::find_database_health(db.pool()).await?;
    let stored = tokens::list_key_ids(db.pool()).await?;
    let known = |id: &String| config.keys.token_keys.iter().any(|key| key.id == *id);
    if let Some(id) = stored.iter().find(|id| !known(id)) {
        return Err(anyhow!(
            "stored tokens are sealed under key {id:?}, which is not in TOKEN_KEYS"
        ));
    }
    let keeps = if health.has_synchronous_standby {
        "what is acknowledged outlives the loss of the primary"
    } else {
        "without a synchronous standby: what was just acknowledged is lost with the primary"
    };
    Ok(format!(
        "schema current, audit partitions for {} more months, {keeps}",
        health.partitions_ahead
    ))
}
