//! Command-line interface: one module per command.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 = success, 1 = failure,
//! 2 = wrong usage or configuration.

mod audit;
mod audit_erase;
mod audit_follow;
mod audit_verify;
mod check;
mod cleanup;
mod client;
mod client_table;
mod dev;
mod health;
mod keys;
mod progress;
mod sandbox;
mod seal;
mod serve;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::Styles;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use secrecy::SecretString;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::app::openapi_document;
use crate::config::{
    ConfigError, DatabaseConfig, Flags, LogFormat, RetentionCommandConfig, Source,
};
use crate::db::connector::{Address, Connection, Connector, Role};
use crate::db::schema::{self, DatabaseUnsuitable};
use crate::db::service_role::{GrantError, grant_privileges};
use crate::telemetry::{self, Traces};

const AFTER_HELP: &str = "\
To try it:     dev
To deploy it:  check --online, migrate, client create, serve

The value of a setting comes from its flag, the environment, .env or its default, in this order.
Secrets are never flags. Results go to stdout, logs to stderr.
Exit codes: 0 = success, 1 = failure, 2 = wrong usage or configuration. A closed pipe is success.";

/// Issues bank verification tokens, reuses valid ones and records every handout.
#[derive(Debug, Parser)]
#[command(name = "token-vendor", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(serve::ServeArgs),
    /// Apply pending migrations.
    Migrate(MigrateArgs),
    /// Run a private Postgres, the provider sandbox and the service on this machine.
    Dev(dev::DevArgs),
    /// Run only the sandbox, which replaces the provider in development and tests.
    Sandbox(sandbox::SandboxArgs),
    /// Run one cleanup: mark expired tokens, delete records past their retention.
    Cleanup(cleanup::CleanupArgs),
    /// Manage the API keys of this service.
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Manage the keys that encrypt stored tokens.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Read the audit log.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Manage the key that signs checkpoints of the audit log.
    #[command(subcommand)]
    Seal(seal::SealCommand),
    /// Check the configuration and print it with secrets masked.
    Check(check::CheckArgs),
    /// Print the OpenAPI document that the service serves.
    Openapi,
    /// Exit with 0 if the service on this machine is ready. Needs no curl in the image.
    Health(health::HealthArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell, for example bash: `source <(token-vendor completions bash)` loads the script.
        shell: Shell,
    },
    /// Write a man page for each command into a folder.
    ManPages {
        /// An existing folder. `make install` uses `share/man/man1`.
        folder: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct MigrateArgs {
    /// Also give this database role the privileges of the service. It owns nothing, and cannot drop events before
    /// AUDIT_RETENTION.
    #[arg(long, value_name = "ROLE")]
    grant: Option<String>,
    #[command(flatten)]
    settings: Flags<RetentionCommandConfig>,
}

/// The error of a command, which sets the exit code.
#[derive(Debug)]
enum CliError {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// The reader of stdout needs no more, such as `head -1`: no message and exit code 0.
    OutputClosed,
    /// Any other failure: exit code 1.
    Failed(anyhow::Error),
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        CliError::Usage(error.to_string())
    }
}

impl From<OutputError> for CliError {
    fn from(error: OutputError) -> Self {
        match error.0.kind() {
            ErrorKind::BrokenPipe => CliError::OutputClosed,
            _ => CliError::Failed(error.into()),
        }
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

impl From<GrantError> for CliError {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Failed(error) => CliError::Failed(error.into()),
            _ => CliError::Usage(error.to_string()),
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

/// Marks error types that convert to [`CliError::Failed`].
trait IsFailure {}
impl IsFailure for anyhow::Error {}
impl IsFailure for crate::db::DbError {}
impl IsFailure for std::io::Error {}

/// A write to stdout that failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct OutputError(#[from] io::Error);

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(format_args!("the async runtime cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) | Err(CliError::OutputClosed) => ExitCode::SUCCESS,
        Err(CliError::Usage(message)) => {
            print_error(message);
            ExitCode::from(2)
        }
        Err(CliError::Failed(error)) => {
            print_error(format_with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints an error in the style of clap.
fn print_error(message: impl Display) {
    let styles = Styles::styled();
    let style = styles.get_error();
    anstream::eprintln!("{style}error:{style:#} {message}");
}

/// Formats the error and its causes, without causes that the text already contains.
fn format_with_causes(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message += &format!(": {cause}");
        }
    }
    message
}

async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Migrate(args) => apply_migrations(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Sandbox(args) => sandbox::run(args).await,
        Command::Cleanup(args) => cleanup::run(args).await,
        Command::Client(command) => client::run(command).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Seal(command) => seal::run(command),
        Command::Check(args) => check::run(args).await,
        Command::Openapi => print_openapi(),
        Command::Health(args) => health::run(args).await,
        Command::Completions { shell } => print_completions(shell),
        Command::ManPages { folder } => write_man_pages(&folder),
    }
}

async fn apply_migrations(args: MigrateArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let options = schema::connect_options(&config.database.url)?;
    schema::wait_for_database(&options, config.database.startup_wait).await?;
    schema::migrate(&options).await?;
    tracing::info!("the schema is up to date");
    if let Some(role) = args.grant {
        grant_privileges(&options, &role, config.retention.audit).await?;
        tracing::info!(role, "the role can run the service");
    }
    Ok(())
}

fn print_openapi() -> Result<(), CliError> {
    let document = serde_json::to_string_pretty(&openapi_document()).expect("the document is JSON");
    Ok(print(document)?)
}

fn print_completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "token-vendor", &mut script);
    Ok(write_out(&script)?)
}

fn write_man_pages(folder: &Path) -> Result<(), CliError> {
    Ok(clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("man pages cannot be written to {}", folder.display()))?)
}

/// Writes a result to stdout. Returns an error when the write fails, where `print!` panics.
fn write_out(result: &[u8]) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(result)?;
    Ok(stdout.flush()?)
}

/// Prints a result and a line break to stdout, in one write.
fn print(result: impl Display) -> Result<(), OutputError> {
    write_out(format!("{result}\n").as_bytes())
}

fn print_json(result: &impl Serialize) -> Result<(), CliError> {
    Ok(print(
        serde_json::to_string(result).expect("results are plain data"),
    )?)
}

fn start_logs(format: LogFormat) -> Result<(), CliError> {
    start_telemetry(format, None).map(|_| ())
}

fn start_telemetry(format: LogFormat, collector: Option<&Url>) -> Result<Traces, CliError> {
    telemetry::init(format, collector).map_err(CliError::Usage)
}

/// Waits for the database, checks that the service can use it, and returns its connector.
async fn find_database(database: &DatabaseConfig) -> Result<Connector, CliError> {
    let options = schema::connect_options(&database.url)?;
    let max_wait = database.startup_wait;
    schema::check_fitness(&mut schema::wait_for_database(&options, max_wait).await?).await?;
    Ok(connector(&database.url, Role::Primary))
}

/// Opens a connection to a database that the service can use, after it waits for the database.
async fn connect(database: &DatabaseConfig) -> Result<Connection, CliError> {
    Ok(find_database(database).await?.connect().await?)
}

fn connector(url: &SecretString, role: Role) -> Connector {
    let address = Address {
        url: url.clone(),
        file: None,
    };
    Connector::new(address, role)
}

/// Returns the operator of this command for the audit log, such as `cli:root@host`.
fn actor() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    let name = user
        .ok()
        .flatten()
        .map_or_else(|| "?".to_owned(), |user| user.name);
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("cli:{name}@{}", host.to_string_lossy())
}

fn random_bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the operating system returned no random bytes")?;
    Ok(bytes)
}

/// Returns a token that is cancelled on SIGTERM or Ctrl-C.
fn cancel_on_shutdown() -> std::io::Result<CancellationToken> {
    let (cancel, signal) = (CancellationToken::new(), shutdown_signal()?);
    let on_shutdown = cancel.clone();
    tokio::spawn(async move {
        signal.await;
        on_shutdown.cancel();
    });
    Ok(cancel)
}

/// Installs handlers for SIGTERM and Ctrl-C. The future resolves at the first of them.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
