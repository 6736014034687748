//! `token-vendor check`: reports invalid settings and failed checks, each failure with a hint.

use std::fmt::Display;
use std::io::Write;

use anstyle::{AnsiColor, Color, Style};
use anyhow::anyhow;

use super::{CliError, OutputError, start_logs};
use crate::app::key_check::check_keys;
use crate::app::{key_ring, list_tls_warnings, oidc_settings};
use crate::auth::oidc::TokenVerifier;
use crate::config::{Config, Flags, Source};
use crate::db::PgConnection;
use crate::db::distribution::{Distribution, find_distribution};
use crate::db::partitions::PARTITIONS_AHEAD;
use crate::db::schema::{self, CONNECT_TIMEOUT, DatabaseHealth, DatabaseUnsuitable};
use crate::db::service_role::is_owner;
use crate::upstream;

/// The longest recommended time until Citus ends the transactions that a crash left prepared.
const MAX_RECOVERY_SECONDS: i64 = 10;

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Also check the database, its schema, the keys of stored tokens, the standby, the
    /// OIDC issuer and the connection to the provider. Changes nothing and mints nothing.
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    settings: Flags<Config>,
}

pub(super) async fn run(args: CheckArgs) -> Result<(), CliError> {
    let config = args.settings.load(Source::from_process())?;
    start_logs(config.log.format)?;
    let mut report = Report::new();
    report.print_line(config.render_masked().trim_end());
    for warning in config.warnings() {
        report.note("settings", warning);
    }
    for warning in list_tls_warnings(&config)? {
        report.note("settings", warning);
    }
    note_ignored_proxy(&config, &mut report);
    if args.online {
        check_database(&config, &mut report).await?;
        check_upstream(&config, &mut report).await;
        check_issuer(&config, &mut report).await;
    }
    match (report.failures, report.checks) {
        (0, _) => Ok(report.output?),
        (failures, checks) => Err(anyhow!("{failures} of {checks} checks failed").into()),
    }
}

async fn check_database(config: &Config, report: &mut Report) -> Result<(), CliError> {
    let options = schema::connect_options(&config.database.url)?;
    match schema::try_connect(&options, CONNECT_TIMEOUT).await {
        Err(error) => report.fail("database", &error, error.hint()),
        Ok(mut connection) => check_database_content(config, &mut connection, report).await,
    }
    if let Some(url) = &config.database.read_url {
        match schema::try_connect(&schema::connect_options(url)?, CONNECT_TIMEOUT).await {
            Err(error) => report.fail("read database", &error, error.hint()),
            Ok(_) => report.pass("read database", "it accepts connections"),
        }
    }
    Ok(())
}

async fn check_database_content(
    config: &Config,
    connection: &mut PgConnection,
    report: &mut Report,
) {
    let health = match check_health(connection).await {
        Err(error) => return report.fail("database", &error, error.hint()),
        Ok(health) => health,
    };
    report.pass("database", "the schema is current and commits are durable");
    let hint = "`serve` creates partitions at startup and `cleanup` in each run; check that one of them runs";
    match health.partitions_ahead {
        ..0 => report.fail(
            "audit",
            "the audit log has no partition for this month",
            hint,
        ),
        ahead @ 0..PARTITIONS_AHEAD => {
            report.note(
                "audit",
                format!("the audit log has partitions for only {ahead} more months: {hint}"),
            );
        }
        ahead => report.pass(
            "audit",
            format!("the audit log has partitions for {ahead} more months"),
        ),
    }
    match is_owner(connection, None).await {
        Ok(Some(false)) => report.pass(
            "role",
            "the role of DATABASE_URL cannot change the schema or recorded events",
        ),
        Ok(_) => report.note(
            "role",
            "the service runs as the owner of the tables, who can change recorded events: use a second role, see docs/deployment.md",
        ),
        Err(error) => report.fail("role", &error, error.hint()),
    }
    match health.has_synchronous_standby {
        true => report.pass("standby", "a synchronous standby confirms each commit"),
        false => report.note(
            "standby",
            "no synchronous standby: the loss of the primary can lose acknowledged commits",
        ),
    }
    match find_distribution(connection).await {
        Ok(distribution) => distribution.map_or((), |citus| report_distribution(citus, report)),
        Err(error) => report.fail("citus", &error, error.hint()),
    }
    match check_keys(&key_ring(&config.keys), connection).await {
        Ok(count) => report.pass(
            "keys",
            format!("TOKEN_KEYS contains the keys of all stored tokens ({count} in use)"),
        ),
        Err(error) => report.fail(
            "keys",
            error,
            "set the TOKEN_KEYS and FINGERPRINT_KEY that the stored tokens were written with; to change keys, follow docs/rotation.md",
        ),
    }
}

fn report_distribution(citus: Distribution, report: &mut Report) {
    let Distribution {
        shards,
        workers,
        unguarded_shards,
        recovery_seconds,
    } = citus;
    report.note(
        "citus",
        format!("{shards} shards on {workers} workers; new events are not sealed, and `completeUntil` stays"),
    );
    if unguarded_shards > 0 {
        report.fail(
            "citus",
            format!("{unguarded_shards} shards of the audit log accept changes of recorded events"),
            "set citus.enable_unsafe_triggers to on, and create the triggers again, see docs/scaling.md",
        );
    }
    if recovery_seconds > MAX_RECOVERY_SECONDS {
        report.note(
            "citus",
            format!("citus.recover_2pc_interval is {recovery_seconds} s: mints may wait as long after a crash; set it to 5s on all nodes"),
        );
    }
    if shards > 2 * workers {
        report.note(
            "citus",
            format!("each handout asks all {shards} shards: use one or two per worker, see docs/scaling.md"),
        );
    }
}

async fn check_health(connection: &mut PgConnection) -> Result<DatabaseHealth, DatabaseUnsuitable> {
    schema::check_fitness(connection).await?;
    schema::check_privileges(connection).await?;
    Ok(schema::find_database_health(connection).await?)
}

async fn check_upstream(config: &Config, report: &mut Report) {
    let (url, max_wait) = (&config.upstream.base_url, config.upstream.timeout);
    let proxy = config.upstream.proxy.as_ref();
    let route = if proxy.is_some() {
        " through UPSTREAM_PROXY"
    } else {
        ""
    };
    match upstream::probe(url, max_wait, proxy, false).await {
        Ok(status) => report.pass(
            "upstream",
            format!("{url} responds with status {status}{route}; only a mint shows whether the provider accepts the credentials"),
        ),
        Err(error) => report.fail(
            "upstream",
            error,
            "check UPSTREAM_BASE_URL, UPSTREAM_PROXY, DNS, the firewall and the root certificates of this machine",
        ),
    }
}

async fn check_issuer(config: &Config, report: &mut Report) {
    let Some(settings) = oidc_settings(config) else {
        return;
    };
    let issuer = settings.issuer.clone();
    let fetched = async { anyhow::Ok(TokenVerifier::new(settings)?.fetch_keys().await?) };
    match fetched.await {
        Ok(keys) => report.pass(
            "issuer",
            format!("{issuer} can be read; usable keys: {keys}"),
        ),
        Err(error) => report.fail(
            "issuer",
            error,
            "check AUTH_OIDC_ISSUER, DNS, the firewall and the root certificates of this machine",
        ),
    }
}

/// Notes a proxy of the environment, which many programs use and this service does not.
fn note_ignored_proxy(config: &Config, report: &mut Report) {
    const IGNORED: [&str; 6] = [
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "https_proxy",
        "http_proxy",
        "all_proxy",
    ];
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if config.upstream.proxy.is_none()
        && let Some(name) = IGNORED.into_iter().find(is_set)
    {
        report.note(
            "proxy",
            format_args!("calls to the provider ignore {name}; to use a proxy, set UPSTREAM_PROXY"),
        );
    }
}

/// Prints the result of each check on its own line, coloured on a terminal.
struct Report {
    checks: u32,
    failures: u32,
    /// The first error of printing. Later lines are not printed.
    output: Result<(), OutputError>,
}

impl Report {
    fn new() -> Self {
        Report {
            checks: 0,
            failures: 0,
            output: Ok(()),
        }
    }

    fn pass(&mut self, part: &str, message: impl Display) {
        self.print_check(part, AnsiColor::Green, "ok", message);
    }

    /// Reports a risk that is not a failure.
    fn note(&mut self, part: &str, message: impl Display) {
        self.print_check(part, AnsiColor::Yellow, "note", message);
    }

    fn fail(&mut self, part: &str, reason: impl Display, hint: &str) {
        self.failures += 1;
        self.print_check(part, AnsiColor::Red, "FAILED", reason);
        self.print_line(format_args!("    {hint}"));
    }

    fn print_check(&mut self, part: &str, colour: AnsiColor, result: &str, message: impl Display) {
        self.checks += 1;
        let style = Style::new().bold().fg_color(Some(Color::Ansi(colour)));
        self.print_line(format_args!("{part}: {style}{result}{style:#}, {message}"));
    }

    fn print_line(&mut self, line: impl Display) {
        if self.output.is_ok() {
            self.output = writeln!(anstream::stdout(), "{line}").map_err(OutputError);
        }
    }
}
