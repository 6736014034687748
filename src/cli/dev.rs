//! `token-vendor dev`: everything on this machine in one command.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::client::actor;
use super::{CliError, print, start_telemetry, told_to_stop};
use crate::app::Service;
use crate::config::{DevConfig, Flags, Source};
use crate::db::clients::insert_client;
use crate::db::{PgConnectOptions, schema};
use crate::dev::postgres::{self, LocalPostgres, LocalPostgresOptions, default_data_dir};
use crate::dev::sandbox::{Sandbox, SandboxOptions};
use crate::model::{Client, Scope};

/// Key and secret of the client, for everyone to know.
const CLIENT: &str = "dev";

#[derive(Debug, clap::Args)]
pub(super) struct Dev {
    /// Where the service listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the stand-in upstream listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    sandbox_listen: SocketAddr,
    /// The folder of the private Postgres.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Begin with an empty database: deletes the folder that an earlier `dev` made.
    #[arg(long, conflicts_with = "database_url")]
    fresh: bool,
    /// Use this database on this machine instead of a private Postgres.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten)]
    settings: Flags<DevConfig>,
}

pub(super) async fn dev(dev: Dev) -> Result<(), CliError> {
    let stop = told_to_stop()?;
    let upstream = SandboxOptions {
        listen: dev.sandbox_listen,
        ..SandboxOptions::default()
    };
    let mut own = vec![
        ("LISTEN_ADDR", dev.listen.to_string()),
        // The stand-in's credentials are no secret, wherever it listens.
        ("UPSTREAM_ALLOW_HTTP", "true".into()),
        ("UPSTREAM_API_KEY", upstream.api_key.clone()),
        ("UPSTREAM_API_SECRET", upstream.api_secret.clone()),
        ("TOKEN_KEYS", format!("dev:{}", dev_key("tokens"))),
        ("FINGERPRINT_KEY", dev_key("fingerprints")),
    ];
    // What will be started has no address yet; everything is checked before that.
    let address = dev
        .database_url
        .clone()
        .unwrap_or_else(|| "postgres://localhost".into());
    let draft = own.iter().cloned().chain([("DATABASE_URL", address)]);
    let config = dev.settings.load(Source::for_dev(draft))?.0;
    if dev.database_url.is_some()
        && !schema::is_local(&schema::connect_options(&config.database.url)?)
    {
        let message =
            "--database-url: only a database on this machine, by loopback address or socket";
        return Err(CliError::Usage(message.into()));
    }
    let traces = start_telemetry(config.log.format, config.traces.endpoint.as_ref())?;

    let sandbox = Sandbox::start(upstream).await.map_err(|error| {
        anyhow::anyhow!(
            "--sandbox-listen: {} cannot be listened on: {error}",
            dev.sandbox_listen
        )
    })?;
    own.push(("UPSTREAM_BASE_URL", sandbox.base_url()));

    let (postgres, url) = match dev.database_url {
        Some(url) => (None, url),
        None => {
            let postgres = start_postgres(dev.data_dir, dev.fresh).await?;
            let url = postgres.url("postgres");
            (Some(postgres), url)
        }
    };
    own.push(("DATABASE_URL", url));
    let config = dev.settings.load(Source::for_dev(own))?.0;
    let options = schema::connect_options(&config.database.url)?;
    schema::wait_for_database(&options, config.database.startup_wait).await?;
    schema::migrate(&options).await?;
    add_client(&options).await?;
    let service = Service::start(config).await?;
    print_welcome(service.addr(), sandbox.addr())?;
    service.run_until(stop).await?;
    traces.flush().await;
    sandbox.stop().await;
    if let Some(postgres) = postgres {
        postgres.stop().await?;
    }
    Ok(())
}

async fn start_postgres(data_dir: Option<PathBuf>, fresh: bool) -> Result<LocalPostgres, CliError> {
    let data_dir = data_dir.unwrap_or_else(|| default_data_dir("dev"));
    if fresh {
        postgres::remove(&data_dir)?;
    }
    tracing::info!(folder = %data_dir.display(), "starting a private Postgres");
    let started = LocalPostgres::start(LocalPostgresOptions {
        data_dir,
        ..LocalPostgresOptions::default()
    });
    Ok(started.await?)
}

/// What `dev` seals is sandbox tokens: its keys need to be the same at each run, not secret.
fn dev_key(purpose: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(format!("token-vendor dev {purpose}")))
}

async fn add_client(options: &PgConnectOptions) -> Result<(), CliError> {
    let client = Client {
        api_key: CLIENT.into(),
        name: CLIENT.into(),
        secret_sha256: Sha256::digest(CLIENT).to_vec(),
        previous_secret_sha256: None,
        scopes: Scope::ALL.iter().copied().collect(),
        is_enabled: true,
    };
    let pool = schema::open_pool(options.clone(), 1);
    insert_client(&pool, &client, &actor()).await?;
    pool.close().await;
    Ok(())
}

fn print_welcome(service: SocketAddr, sandbox: SocketAddr) -> std::io::Result<()> {
    print(format_args!(
        "token-vendor at http://{service}, its stand-in upstream at http://{sandbox}\n\
         Get a token (minted the first time, the same one the second time):\n\n\
         curl -s -u {CLIENT}:{CLIENT} -H 'Content-Type: application/json' -d '{{\"userId\":\"u-1\",\"country\":\"LT\"}}' http://{service}/bank/tokens/\n\n\
         Ctrl-C stops all of it."
    ))
}
