//! `token-vendor client`: manages the API keys of this service.

use std::fmt::Display;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::client_table::client_table;
use super::{CliError, actor, connect, print, print_json, start_logs};
use crate::auth::clients::{Changed, create_client, disable_client, rotate_client, update_client};
use crate::config::{DatabaseCommandConfig, Flags, Source};
use crate::db::PgConnection;
use crate::db::clients::list_clients;
use crate::db::connector::Connection;
use crate::model::rules::{
    CLIENT_LIMITS, EXPIRIES, MAX_GRACE, MAX_NETWORKS, client_name, network, oidc_subject,
};
use crate::model::{ClientChange, ClientRecord, ClientRefusal, Operator, Origin, Scope};

#[derive(Debug, clap::Subcommand)]
pub(super) enum ClientCommand {
    /// Create a client. Prints its key and secret, which cannot be shown again.
    Create {
        /// The name of the client, for people. No other enabled client may have it.
        #[arg(long, value_parser = |text: &str| client_name(text.into()))]
        name: String,
        /// The permissions of the client, separated by commas. The flag can be repeated.
        #[arg(long = "scope", required = true, value_name = "SCOPE", value_delimiter = ',', value_parser = scope_parser())]
        scopes: Vec<Scope>,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// Change a client. What is not given stays as it is. Every replica applies the change within 5 seconds.
    Update {
        /// The API key of the client.
        key: String,
        /// The new name.
        #[arg(long, value_parser = |text: &str| client_name(text.into()))]
        name: Option<String>,
        /// All permissions from now on, separated by commas. The flag can be repeated.
        #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', value_parser = scope_parser())]
        scopes: Vec<Scope>,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        settings: Flags<DatabaseCommandConfig>,
    },
    /// List all clients, as a table on a terminal and as JSON otherwise.
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
        /// Also set the expiry, such as 90d from now [default: the expiry stays].
        #[arg(long, value_name = "DURATION", value_parser = parse_expiry)]
        expires: Option<Duration>,
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

/// The limits of a client. `none` removes one.
#[derive(Debug, clap::Args)]
pub(super) struct LimitArgs {
    /// The most mints in an hour, over all replicas. `none` removes the limit.
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    mints_per_hour: Option<OrNone<i32>>,
    /// The most requests per second in each replica, instead of CLIENT_RATE_LIMIT. `none` removes the limit.
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    requests_per_second: Option<OrNone<i32>>,
    /// The networks from which the client may call, separated by commas. The flag can be repeated. `none` allows all.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = |text: &str| or_none(text, network))]
    allow_from: Vec<OrNone<IpNet>>,
    /// The time from now until no secret of the client is accepted, such as 90d. `none` removes the expiry.
    #[arg(long, value_name = "DURATION", value_parser = |text: &str| or_none(text, parse_expiry))]
    expires: Option<OrNone<Duration>>,
    /// The `sub` of the bearer tokens that name this client, instead of a secret. `none` removes it.
    #[arg(long, value_name = "SUB", value_parser = |text: &str| or_none(text, oidc_subject))]
    oidc_subject: Option<OrNone<String>>,
}

/// A value, or `none`.
#[derive(Clone, Debug)]
struct OrNone<T>(Option<T>);

impl LimitArgs {
    /// Returns the change of the limits.
    fn into_change(self) -> Result<ClientChange, CliError> {
        let networks = self.allow_from;
        let has_none = networks.iter().any(|OrNone(network)| network.is_none());
        let problem = match (has_none, networks.len()) {
            (true, 2..) => Some("`none` cannot be combined with a network"),
            (false, count) if count > MAX_NETWORKS => Some("must have at most 100 networks"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(CliError::Usage(format!("--allow-from: {problem}")));
        }
        let is_given = !networks.is_empty();
        let networks: Vec<_> = networks.into_iter().filter_map(|OrNone(one)| one).collect();
        Ok(ClientChange {
            mints_per_hour: self.mints_per_hour.map(|OrNone(limit)| limit),
            requests_per_second: self.requests_per_second.map(|OrNone(limit)| limit),
            allow_from: is_given.then(|| Some(networks).filter(|networks| !networks.is_empty())),
            expires_in: self.expires.map(|OrNone(length)| length),
            oidc_subject: self.oidc_subject.map(|OrNone(subject)| subject),
            ..ClientChange::default()
        })
    }
}

pub(super) async fn run(command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Create {
            name,
            scopes,
            limits,
            settings,
        } => {
            let change = ClientChange {
                name: Some(name),
                scopes: Some(scopes.into_iter().collect()),
                ..limits.into_change()?
            };
            create(&mut *open(settings).await?, change).await
        }
        ClientCommand::Update {
            key,
            name,
            scopes,
            limits,
            settings,
        } => {
            let change = ClientChange {
                name,
                scopes: (!scopes.is_empty()).then(|| scopes.into_iter().collect()),
                ..limits.into_change()?
            };
            update(&mut *open(settings).await?, &key, change).await
        }
        ClientCommand::List { settings } => list(&mut *open(settings).await?).await,
        ClientCommand::Rotate {
            key,
            grace,
            expires,
            settings,
        } => rotate(&mut *open(settings).await?, &key, grace, expires).await,
        ClientCommand::Disable { key, settings } => {
            disable(&mut *open(settings).await?, &key).await
        }
    }
}

/// Returns the operator of this command, who can grant every scope.
pub(super) fn operator() -> Operator {
    Operator {
        origin: Origin::Actor(actor()),
        scopes: None,
    }
}

/// Returns the error of a command that was refused.
pub(super) fn refused(refusal: ClientRefusal) -> CliError {
    match refusal {
        ClientRefusal::NameTaken(_) => CliError::Usage(format!("--name: {refusal}")),
        ClientRefusal::SubjectTaken(_) => CliError::Usage(format!("--oidc-subject: {refusal}")),
        ClientRefusal::Unknown(_) => anyhow!("{refusal}; run `token-vendor client list`").into(),
        _ => anyhow!(refusal).into(),
    }
}

async fn create(connection: &mut PgConnection, change: ClientChange) -> Result<(), CliError> {
    let created = create_client(connection, change, &operator()).await?;
    print_with_secret(created.map_err(refused)?)
}

async fn update(
    connection: &mut PgConnection,
    key: &str,
    change: ClientChange,
) -> Result<(), CliError> {
    let updated: Changed = update_client(connection, key, change, &operator()).await?;
    print_json(&updated.map_err(refused)?)
}

async fn rotate(
    connection: &mut PgConnection,
    key: &str,
    grace: Duration,
    expires: Option<Duration>,
) -> Result<(), CliError> {
    let rotated = rotate_client(connection, key, grace, expires, &operator()).await?;
    print_with_secret(rotated.map_err(refused)?)
}

fn print_with_secret(
    (client, secret): (ClientRecord, Option<SecretString>),
) -> Result<(), CliError> {
    let Some(secret) = secret else {
        return print_json(&client);
    };
    let view = json!({
        "apiKey": client.api_key,
        "apiSecret": secret.expose_secret(),
        "name": client.settings.name,
        "scopes": client.settings.scopes,
    });
    let key = &client.api_key;
    // The secret is committed, but only its hash is stored.
    let hint = || {
        format!("the secret of {key} could not be printed; run `token-vendor client rotate {key}`")
    };
    Ok(print(view).with_context(hint)?)
}

async fn list(connection: &mut PgConnection) -> Result<(), CliError> {
    let mut clients = list_clients(connection, None, i64::MAX).await?;
    clients.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
    if stdout().is_terminal() {
        return Ok(print(client_table(&clients))?);
    }
    print_json(&clients)
}

async fn disable(connection: &mut PgConnection, key: &str) -> Result<(), CliError> {
    let disabled = disable_client(connection, key, &operator()).await?;
    disabled.map_err(refused)?;
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

fn parse_expiry(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_allowed = i32::try_from(length.as_secs()).is_ok_and(|secs| EXPIRIES.contains(&secs));
    if !is_allowed {
        return Err("must be 1s to 3650d".into());
    }
    Ok(length)
}

fn parse_limit(text: &str) -> Result<OrNone<i32>, String> {
    or_none(text, |text| {
        let limit = text.parse().ok();
        let limit = limit.filter(|limit| CLIENT_LIMITS.contains(limit));
        limit.ok_or(format!("must be 1 to {} or none", CLIENT_LIMITS.end()))
    })
}

/// Parses a value, or `none`.
fn or_none<T, E: Display>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<OrNone<T>, String> {
    if text == "none" {
        return Ok(OrNone(None));
    }
    let parsed = parse(text).map_err(|error| error.to_string())?;
    Ok(OrNone(Some(parsed)))
}

fn scope_parser() -> impl TypedValueParser<Value = Scope> {
    PossibleValuesParser::new(Scope::ALL.iter().map(|scope| scope.name()))
        .map(|name| Scope::from_name(&name).expect("the parser accepts only names of scopes"))
}
