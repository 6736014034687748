//! `token-vendor dev`: runs Postgres, the sandbox and the service on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::client::{operator, refused};
use super::{CliError, OutputError, connector, print, shutdown_signal, start_telemetry};
use crate::app::Service;
use crate::config::{DevConfig, Flags, Source};
use crate::db::clients::{insert_client, update_client};
use crate::db::connector::Role;
use crate::db::schema;
use crate::db::service_role::{create_role, grant_privileges};
use crate::dev::postgres::{self, LocalPostgres, LocalPostgresOptions, default_data_dir};
use crate::dev::sandbox::{Sandbox, SandboxOptions};
use crate::model::{ClientChange, ClientRefusal, Scope};

/// API key and secret of the client that `dev` creates. Both are public.
const CLIENT: &str = "dev";

/// The role of the service in the private Postgres.
const SERVICE_ROLE: &str = "token_vendor";

#[derive(Debug, clap::Args)]
pub(super) struct DevArgs {
    /// The address of the service.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The address of the provider sandbox.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    sandbox_listen: SocketAddr,
    /// The data folder of the private Postgres.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Start with an empty database. Deletes the data folder of earlier runs.
    #[arg(long, conflicts_with = "database_url")]
    fresh: bool,
    /// Use this database instead of a private Postgres. Its host must be this machine.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten)]
    settings: Flags<DevConfig>,
}

pub(super) async fn run(args: DevArgs) -> Result<(), CliError> {
    let shutdown = shutdown_signal()?;
    let sandbox_options = SandboxOptions {
        listen: args.sandbox_listen,
        ..SandboxOptions::default()
    };
    let mut values = vec![
        ("LISTEN_ADDR", args.listen.to_string()),
        // The credentials of the sandbox are public, so any of its addresses may be http://.
        ("UPSTREAM_ALLOW_HTTP", "true".into()),
        ("UPSTREAM_API_KEY", sandbox_options.api_key.clone()),
        ("UPSTREAM_API_SECRET", sandbox_options.api_secret.clone()),
        ("TOKEN_KEYS", format!("dev:{}", derive_dev_key("tokens"))),
        ("FINGERPRINT_KEY", derive_dev_key("fingerprints")),
    ];
    // Checks all settings before anything starts. The private Postgres has no address yet.
    let database_url = args
        .database_url
        .clone()
        .unwrap_or_else(|| "postgres://localhost".into());
    let draft = values
        .iter()
        .cloned()
        .chain([("DATABASE_URL", database_url)]);
    let config = args.settings.load(Source::for_dev(draft))?.0;
    if args.database_url.is_some()
        && !schema::is_local(&schema::connect_options(&config.database.url)?)
    {
        let message = "--database-url: must be a database on this machine; use a loopback address or a socket";
        return Err(CliError::Usage(message.into()));
    }
    let traces = start_telemetry(config.log.format, config.traces.endpoint.as_ref())?;

    let sandbox = Sandbox::start(sandbox_options).await.map_err(|error| {
        anyhow::anyhow!(
            "--sandbox-listen: cannot listen on {}: {error}",
            args.sandbox_listen
        )
    })?;
    values.push(("UPSTREAM_BASE_URL", sandbox.base_url()));
    values.push(("VERIFICATION_BASE_URL", sandbox.verification_base_url()));

    let (postgres, owner_url, url) = match args.database_url {
        Some(url) => (None, url.clone(), url),
        None => {
            let postgres = start_postgres(args.data_dir, args.fresh).await?;
            let owner_url = postgres.url("postgres");
            let url = postgres.url_as(SERVICE_ROLE, "postgres");
            (Some(postgres), owner_url, url)
        }
    };
    values.push(("DATABASE_URL", url));
    let config = args.settings.load(Source::for_dev(values))?.0;
    let owner = schema::connect_options(&owner_url.into())?;
    schema::wait_for_database(&owner, config.database.startup_wait).await?;
    schema::migrate(&owner).await?;
    if postgres.is_some() {
        create_role(&owner, SERVICE_ROLE).await?;
        grant_privileges(&owner, SERVICE_ROLE, config.retention.audit).await?;
    }
    add_client(&config.database.url).await?;
    let service = Service::start(config).await?;
    print_welcome(service.addr(), sandbox.addr())?;
    let deadline = service.run_until(shutdown).await?;
    traces.flush(Some(deadline)).await;
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

/// Returns a key that is the same at each run, so that tokens of earlier runs stay readable. It
/// protects only sandbox tokens and is public.
fn derive_dev_key(purpose: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(format!("token-vendor dev {purpose}")))
}

/// Creates the client, or gives it the scopes that were added since an earlier run.
async fn add_client(url: &SecretString) -> Result<(), CliError> {
    let operator = operator();
    let scopes = ClientChange {
        scopes: Some(Scope::ALL.iter().copied().collect()),
        ..ClientChange::default()
    };
    let client = ClientChange {
        name: Some(CLIENT.into()),
        ..scopes.clone()
    };
    let hash = Sha256::digest(CLIENT);
    let mut connection = connector(url, Role::Primary).connect().await?;
    let added = insert_client(&mut connection, CLIENT, &hash, client, &operator).await?;
    if let Err(ClientRefusal::KeyTaken(_)) = added {
        let updated = update_client(&mut connection, CLIENT, scopes, &operator).await?;
        updated.map_err(refused)?;
    }
    Ok(())
}

fn print_welcome(service: SocketAddr, sandbox: SocketAddr) -> Result<(), OutputError> {
    print(format_args!(
        "token-vendor listens on http://{service}; the provider sandbox listens on http://{sandbox}\n\
         Request a token. The first request mints it, later requests reuse it:\n\n\
         curl -s -u {CLIENT}:{CLIENT} -H 'Content-Type: application/json' -d '{{\"userId\":\"u-1\",\"country\":\"LT\"}}' http://{service}/bank/tokens/\n\n\
         Open its verificationUrl in a browser: the sandbox stands in for the provider's site. When the user has\n\
         finished there, report it. The next request then mints a new token:\n\n\
         curl -s -u {CLIENT}:{CLIENT} -H 'Content-Type: application/json' -d '{{\"userId\":\"u-1\",\"reason\":\"used\"}}' http://{service}/bank/tokens/invalidate\n\n\
         Show the events that these calls recorded:\n\n\
         curl -s -u {CLIENT}:{CLIENT} 'http://{service}/audit/events?userId=u-1'\n\n\
         Console: http://{service}/console/ (user {CLIENT}, password {CLIENT})\n\
         API reference: http://{service}/docs/\n\n\
         Press Ctrl-C to stop all parts."
    ))
}
