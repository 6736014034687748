//! The command line: one function a command.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! configuration.

mod audit;
mod check;
mod cleanup;
mod client;
mod dev;
mod health;
mod keys;
mod sandbox;
mod serve;

use std::fmt::Display;
use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use crate::app::openapi_document;
use crate::config::{ConfigError, DatabaseCommandConfig, Flags, LogFormat, Source};
use crate::db::schema::{self, DatabaseUnsuitable};
use crate::telemetry::{self, Traces};

const AFTER_HELP: &str = "\
To look at it:  dev
To deploy it:   check --online, migrate, client create, serve

A setting is looked up as a flag, in the environment, in .env; secrets are never flags.
Results go to stdout, logs to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.";

/// Vends bank verification tokens: one upstream call for any herd, every handout on record.
#[derive(Debug, Parser)]
#[command(name = "token-vendor", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(serve::Serve),
    /// Apply pending migrations.
    Migrate(Migrate),
    /// Run everything on this machine: Postgres, a stand-in for the provider, the service.
    Dev(dev::Dev),
    /// Run the stand-in for the provider alone.
    Sandbox(sandbox::SandboxCommand),
    /// Mark what has ended and remove what was kept long enough, once.
    Cleanup(cleanup::Cleanup),
    /// Manage the API keys of this service.
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Make and change the keys that stored tokens are encrypted under.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Read the audit trail.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Print the configuration, secrets masked, and what is wrong with it.
    Check(check::Check),
    /// Print the OpenAPI document that the service serves.
    Openapi,
    /// Exit with 0 if the service on this machine is ready, for health checks without curl.
    Health(health::Health),
    /// Print a script that completes this command line in a shell.
    Completions {
        /// Load it with, for instance, `source <(token-vendor completions bash)`.
        shell: Shell,
    },
}

#[derive(Debug, clap::Args)]
struct Migrate {
    #[command(flatten)]
    settings: Flags<DatabaseCommandConfig>,
}

/// Why a command did not do its work.
#[derive(Debug)]
enum CliError {
    /// Exit code 2: the caller's to mend.
    Usage(String),
    /// Exit code 1.
    Failed(anyhow::Error),
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        CliError::Usage(error.to_string())
    }
}

impl From<DatabaseUnsuitable> for CliError {
    fn from(error: DatabaseUnsuitable) -> Self {
        match error {
            DatabaseUnsuitable::Address => CliError::Usage(error.to_string()),
            _ => CliError::Failed(error.into()),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for CliError
where
    E: IsFailure,
{
    fn from(error: E) -> Self {
        CliError::Failed(error.into())
    }
}

/// What makes a command fail, as opposed to being used wrongly.
trait IsFailure {}
impl IsFailure for anyhow::Error {}
impl IsFailure for crate::db::DbError {}
impl IsFailure for std::io::Error {}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Err(CliError::Failed(error)) => {
            eprintln!("error: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, but for those that it tells itself.
fn with_causes(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told += &format!(": {cause}");
        }
    }
    told
}

async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(serve) => serve::serve(serve).await,
        Command::Migrate(migrate) => apply_migrations(migrate).await,
        Command::Dev(dev) => dev::dev(dev).await,
        Command::Sandbox(sandbox) => sandbox::sandbox(sandbox).await,
        Command::Cleanup(cleanup) => cleanup::cleanup(cleanup).await,
        Command::Client(client) => client::client(client).await,
        Command::Keys(keys) => keys::keys(keys).await,
        Command::Audit(command) => audit::audit(command).await,
        Command::Check(check) => check::check(check).await,
        Command::Openapi => print_openapi(),
        Command::Health(health) => health::health(health).await,
        Command::Completions { shell } => print_completions(shell),
    }
}

async fn apply_migrations(migrate: Migrate) -> Result<(), CliError> {
    let config = migrate.settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    let options = schema::connect_options(&config.database.url)?;
    schema::wait_for_database(&options, config.database.startup_wait).await?;
    schema::migrate(&options).await?;
    tracing::info!("the schema is up to date");
    Ok(())
}

fn print_openapi() -> Result<(), CliError> {
    let document = serde_json::to_string_pretty(&openapi_document()).expect("it is JSON");
    Ok(print(document)?)
}

fn print_completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "token-vendor", &mut script);
    Ok(stdout().write_all(&script)?)
}

/// Prints a result and ends its line, in one write: who has read what was sought in it may close
/// the pipe. Unlike `println!` it does not panic where nobody takes it.
fn print(result: impl Display) -> std::io::Result<()> {
    let mut stdout = stdout().lock();
    stdout.write_all(format!("{result}\n").as_bytes())?;
    stdout.flush()
}

fn print_json(result: &impl Serialize) -> Result<(), CliError> {
    Ok(print(serde_json::to_string(result).expect("it is JSON"))?)
}

fn start_logs(format: LogFormat) -> Result<(), CliError> {
    start_telemetry(format, None).map(|_| ())
}

fn start_telemetry(format: LogFormat, collector: Option<&Url>) -> Result<Traces, CliError> {
    telemetry::init(format, collector).map_err(CliError::Usage)
}

/// Resolves when this process is told to stop: SIGTERM or Ctrl-C.
fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
