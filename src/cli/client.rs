//! `token-vendor client`: the API keys of this service.

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{CliError, start_logs};
use crate::config::{DatabaseCommandConfig, DatabaseConfig, Flags, Source};
use crate::db::clients::{disable_client, insert_client, list_clients};
use crate::db::{PgPool, schema};
use crate::model::{Client, Scope, ScopeSet};

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
        ClientCommand::Disable { key, settings } => disable(&open(settings).await?, &key).await,
    }
}

async fn create(pool: &PgPool, name: String, scopes: &[Scope]) -> Result<(), CliError> {
    let secret = BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?);
    let client = Client {
        api_key: format!("tv-{}", BASE64_URL_SAFE_NO_PAD.encode(random::<12>()?)),
        name,
        secret_sha256: Sha256::digest(&secret).to_vec(),
        scopes: scopes.iter().copied().collect::<ScopeSet>(),
        is_enabled: true,
    };
    if !insert_client(pool, &client, &actor()).await? {
        return Err(anyhow::anyhow!("the new key is taken already; try again").into());
    }
    let scopes: Vec<Scope> = client.scopes.iter().collect();
    let created = json!({
        "apiKey": client.api_key,
        "apiSecret": secret,
        "name": client.name,
        "scopes": scopes,
    });
    println!("{created}");
    Ok(())
}

async fn list(pool: &PgPool) -> Result<(), CliError> {
    let clients = list_clients(pool).await?;
    let views: Vec<_> = clients
        .iter()
        .map(|client| {
            json!({
                "apiKey": client.api_key,
                "name": client.name,
                "scopes": client.scopes.iter().collect::<Vec<_>>(),
                "isEnabled": client.is_enabled,
            })
        })
        .collect();
    println!("{}", serde_json::Value::from(views));
    Ok(())
}

async fn disable(pool: &PgPool, key: &str) -> Result<(), CliError> {
    if disable_client(pool, key, &actor()).await?.is_none() {
        return Err(anyhow::anyhow!("no client has the key {key:?}").into());
    }
    println!("{}", json!({ "apiKey": key, "isEnabled": false }));
    Ok(())
}

async fn open(settings: Flags<DatabaseCommandConfig>) -> Result<PgPool, CliError> {
    let config = settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    connect(&config.database).await
}

/// The primary, once it answers and if it is fit; one connection to it.
pub(super) async fn connect(database: &DatabaseConfig) -> Result<PgPool, CliError> {
    let options = schema::connect_options(&database.url)?;
    schema::wait_for_database(&options, database.startup_wait).await?;
    let pool = schema::open_pool(options, 1);
    schema::check_fitness(&mut *pool.acquire().await.map_err(crate::db::DbError::from)?).await?;
    Ok(pool)
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

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(bytes)
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
