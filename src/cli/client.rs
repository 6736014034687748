//! `token-vendor client`: the API keys of this service.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{CliError, print, print_json, start_logs};
use crate::config::{DatabaseCommandConfig, DatabaseConfig, Flags, Source};
use crate::db::clients::{disable_client, find_client, insert_client, list_clients, rotate_client};
use crate::db::{PgPool, schema};
use crate::model::{Client, Scope};

/// A secret that lives longer beside its successor was not rotated.
const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, clap::Subcommand)]
pub(super) enum ClientCommand {
    /// Create a client and print its key and secret, this once.
    Create {
        /// What people call it.
        #[arg(long, value_parser = client_name)]
        name: String,
        /// What it may do; may be given more than once.
        #[arg(long = "scope", required = true, value_name = "SCOPE", value_parser = scope_parser())]
        scopes: Vec<Scope>,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// List all clients.
    List {
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// Give a client a new secret and print it, this once; every replica knows it within 5 seconds.
    Rotate {
        /// Its API key.
        key: String,
        /// How long the secret that it has now stays good; 0s ends it at once. At most 30d.
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = grace)]
        grace: Duration,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// Disable a client; every replica refuses it within 5 seconds.
    Disable {
        /// Its API key.
        key: String,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
}

pub(super) async fn client(command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Create {
            name,
            scopes,
            settings,
        } => create(&open(settings).await?, name, &scopes).await,
        ClientCommand::List { settings } => list(&open(settings).await?).await,
        ClientCommand::Rotate {
            key,
            grace,
            settings,
        } => rotate(&open(settings).await?, &key, grace).await,
        ClientCommand::Disable { key, settings } => disable(&open(settings).await?, &key).await,
    }
}

async fn create(pool: &PgPool, name: String, scopes: &[Scope]) -> Result<(), CliError> {
    let secret = new_secret()?;
    let client = Client {
        api_key: format!("tv-{}", BASE64_URL_SAFE_NO_PAD.encode(random::<12>()?)),
        name,
        secret_sha256: Sha256::digest(&secret).to_vec(),
        previous_secret_sha256: None,
        scopes: scopes.iter().copied().collect(),
        is_enabled: true,
    };
    if !insert_client(pool, &client, &actor()).await? {
        return Err(anyhow!("the new key is taken already; try again").into());
    }
    print_with_secret(&client, &secret)
}

async fn rotate(pool: &PgPool, key: &str, grace: Duration) -> Result<(), CliError> {
    let secret = new_secret()?;
    let hash = Sha256::digest(&secret);
    let Some(client) = rotate_client(pool, key, &hash, grace, &actor()).await? else {
        let error = match find_client(pool, key).await?.0 {
            Some(_) => anyhow!("client {key:?} is disabled"),
            None => no_client(key),
        };
        return Err(error.into());
    };
    print_with_secret(&client, &secret)
}

fn new_secret() -> anyhow::Result<String> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?))
}

fn print_with_secret(client: &Client, secret: &str) -> Result<(), CliError> {
    let view = json!({
        "apiKey": client.api_key,
        "apiSecret": secret,
        "name": client.name,
        "scopes": client.scopes,
    });
    let key = &client.api_key;
    // The secret is nowhere else, and the client is on record already.
    let lost = || format!("the secret of {key} could not be printed: rotate it");
    Ok(print(view).with_context(lost)?)
}

fn no_client(key: &str) -> anyhow::Error {
    anyhow!("no client has the key {key:?}")
}

async fn list(pool: &PgPool) -> Result<(), CliError> {
    let clients = list_clients(pool).await?;
    let views: Vec<_> = clients
        .iter()
        .map(|client| {
            json!({
                "apiKey": client.api_key,
                "name": client.name,
                "scopes": client.scopes,
                "isEnabled": client.is_enabled,
            })
        })
        .collect();
    print_json(&views)
}

async fn disable(pool: &PgPool, key: &str) -> Result<(), CliError> {
    if !disable_client(pool, key, &actor()).await? {
        return Err(no_client(key).into());
    }
    print_json(&json!({ "apiKey": key, "isEnabled": false }))
}

async fn open(settings: Flags<DatabaseCommandConfig>) -> Result<PgPool, CliError> {
    let config = settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    connect(&config.database).await
}

/// A pool of one connection, to a database that is fit to work on.
pub(super) async fn connect(database: &DatabaseConfig) -> Result<PgPool, CliError> {
    let options = schema::connect_options(&database.url)?;
    let patience = database.startup_wait;
    schema::check_fitness(&mut schema::wait_for_database(&options, patience).await?).await?;
    Ok(schema::open_pool(options, 1))
}

/// Who works on this command line, as the audit names them.
pub(super) fn actor() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    let user = user
        .ok()
        .flatten()
        .map_or_else(|| "?".to_owned(), |user| user.name);
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("cli:{user}@{}", host.to_string_lossy())
}

pub(super) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(bytes)
}

fn grace(text: &str) -> anyhow::Result<Duration> {
    let grace = humantime::parse_duration(text)?;
    if grace > MAX_GRACE {
        bail!("must be at most 30d");
    }
    Ok(grace)
}

fn client_name(text: &str) -> anyhow::Result<String> {
    let is_short = (1..=100).contains(&text.chars().count());
    if !is_short || text.contains(char::is_control) || text.trim() != text {
        bail!("must be 1 to 100 characters, none of them a control character, no space at an end");
    }
    Ok(text.to_owned())
}

fn scope_parser() -> impl TypedValueParser<Value = Scope> {
    PossibleValuesParser::new(Scope::ALL.iter().map(|scope| scope.name()))
        .map(|name| Scope::from_name(&name).expect("only names of scopes come here"))
}
