//! `token-vendor client`: manages the API keys of this service.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{CliError, actor, connect, print, print_json, random_bytes, start_logs};
use crate::config::{DatabaseCommandConfig, Flags, Source};
use crate::db::PgConnection;
use crate::db::clients::{
    disable_client, find_client, find_client_by_subject, insert_client, list_clients, rotate_client,
};
use crate::db::connector::Connection;
use crate::model::rules::{MAX_OIDC_SUBJECT, is_oidc_subject};
use crate::model::{Client, Scope};

/// The longest time for which the old secret of a rotated client stays valid.
const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, clap::Subcommand)]
pub(super) enum ClientCommand {
    /// Create a client. Prints its key and secret, which cannot be shown again.
    Create {
        /// The name of the client, for people.
        #[arg(long, value_parser = parse_client_name)]
        name: String,
        /// A permission of the client. Repeat the flag for more.
        #[arg(long = "scope", required = true, value_name = "SCOPE", value_parser = scope_parser())]
        scopes: Vec<Scope>,
        /// The `sub` of the bearer tokens that name this client, see AUTH_OIDC_ISSUER. The client then has no secret.
        #[arg(long, value_name = "SUB", value_parser = parse_oidc_subject)]
        oidc_subject: Option<String>,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// List all clients.
    List {
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// Give a client a new secret. Prints the secret, which cannot be shown again. Every replica
    /// accepts it within 5 seconds.
    Rotate {
        /// The API key of the client.
        key: String,
        /// The time for which the old secret stays valid, at most 30d. 0s ends it now.
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_grace)]
        grace: Duration,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// Disable a client. Every replica rejects it within 5 seconds.
    Disable {
        /// The API key of the client.
        key: String,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
}

pub(super) async fn run(command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Create {
            name,
            scopes,
            oidc_subject,
            settings,
        } => create(&mut *open(settings).await?, name, &scopes, oidc_subject).await,
        ClientCommand::List { settings } => list(&mut *open(settings).await?).await,
        ClientCommand::Rotate {
            key,
            grace,
            settings,
        } => rotate(&mut *open(settings).await?, &key, grace).await,
        ClientCommand::Disable { key, settings } => {
            disable(&mut *open(settings).await?, &key).await
        }
    }
}

async fn create(
    connection: &mut PgConnection,
    name: String,
    scopes: &[Scope],
    oidc_subject: Option<String>,
) -> Result<(), CliError> {
    let secret = generate_secret()?;
    let client = Client {
        api_key: format!(
            "tv-{}",
            BASE64_URL_SAFE_NO_PAD.encode(random_bytes::<12>()?)
        ),
        name,
        secret_sha256: Sha256::digest(&secret).to_vec(),
        previous_secret_sha256: None,
        scopes: scopes.iter().copied().collect(),
        is_enabled: true,
        oidc_subject,
    };
    if !insert_client(connection, &client, &actor()).await? {
        return Err(describe_conflict(connection, &client).await?);
    }
    match &client.oidc_subject {
        None => print_with_secret(&client, &secret),
        Some(subject) => print_json(&json!({
            "apiKey": client.api_key,
            "name": client.name,
            "scopes": client.scopes,
            "oidcSubject": subject,
        })),
    }
}

/// Returns the reason why a client could not be inserted.
async fn describe_conflict(
    connection: &mut PgConnection,
    client: &Client,
) -> Result<CliError, CliError> {
    if let Some(subject) = &client.oidc_subject
        && let Some(owner) = find_client_by_subject(connection, subject).await?
    {
        let key = owner.api_key;
        let message =
            format!("--oidc-subject: {subject:?} is taken by the client {key}; disable it first");
        return Ok(CliError::Usage(message));
    }
    Ok(anyhow!("the generated API key already exists; run the command again").into())
}

async fn rotate(connection: &mut PgConnection, key: &str, grace: Duration) -> Result<(), CliError> {
    let subject = find_client(connection, key, None).await?.0;
    if subject.is_some_and(|client| client.oidc_subject.is_some()) {
        let why = anyhow!("client {key:?} has no secret: it uses bearer tokens of the issuer");
        return Err(why.into());
    }
    let secret = generate_secret()?;
    let hash = Sha256::digest(&secret);
    let Some(client) = rotate_client(connection, key, &hash, grace, &actor()).await? else {
        let error = match find_client(connection, key, None).await?.0 {
            Some(_) => anyhow!("client {key:?} is disabled; create a new client"),
            None => unknown_client(key),
        };
        return Err(error.into());
    };
    print_with_secret(&client, &secret)
}

fn generate_secret() -> anyhow::Result<String> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(random_bytes::<32>()?))
}

fn print_with_secret(client: &Client, secret: &str) -> Result<(), CliError> {
    let view = json!({
        "apiKey": client.api_key,
        "apiSecret": secret,
        "name": client.name,
        "scopes": client.scopes,
    });
    let key = &client.api_key;
    // The secret is committed, but only its hash is stored.
    let hint = || {
        format!("the secret of {key} could not be printed; run `token-vendor client rotate {key}`")
    };
    Ok(print(view).with_context(hint)?)
}

fn unknown_client(key: &str) -> anyhow::Error {
    anyhow!("no client has the API key {key:?}; run `token-vendor client list`")
}

async fn list(connection: &mut PgConnection) -> Result<(), CliError> {
    let clients = list_clients(connection).await?;
    let views: Vec<_> = clients
        .iter()
        .map(|client| {
            let mut view = json!({
                "apiKey": client.api_key,
                "name": client.name,
                "scopes": client.scopes,
                "isEnabled": client.is_enabled,
            });
            if let Some(subject) = &client.oidc_subject {
                view["oidcSubject"] = subject.as_str().into();
            }
            view
        })
        .collect();
    print_json(&views)
}

async fn disable(connection: &mut PgConnection, key: &str) -> Result<(), CliError> {
    if !disable_client(connection, key, &actor()).await? {
        return Err(unknown_client(key).into());
    }
    print_json(&json!({ "apiKey": key, "isEnabled": false }))
}

async fn open(settings: Flags<DatabaseCommandConfig>) -> Result<Connection, CliError> {
    let config = settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    connect(&config.database).await
}

fn parse_grace(text: &str) -> anyhow::Result<Duration> {
    let grace = humantime::parse_duration(text)?;
    if grace > MAX_GRACE {
        bail!("must be at most 30d");
    }
    Ok(grace)
}

fn parse_client_name(text: &str) -> anyhow::Result<String> {
    let has_valid_length = (1..=100).contains(&text.chars().count());
    if !has_valid_length || text.contains(char::is_control) || text.trim() != text {
        bail!(
            "must be 1 to 100 characters, without control characters and without white space at the start or end"
        );
    }
    Ok(text.to_owned())
}

fn parse_oidc_subject(text: &str) -> anyhow::Result<String> {
    if !is_oidc_subject(text) {
        bail!("must have 1 to {MAX_OIDC_SUBJECT} bytes, without control characters");
    }
    Ok(text.to_owned())
}

fn scope_parser() -> impl TypedValueParser<Value = Scope> {
    PossibleValuesParser::new(Scope::ALL.iter().map(|scope| scope.name()))
        .map(|name| Scope::from_name(&name).expect("the parser accepts only names of scopes"))
}
