//! `token-vendor check`: what is wrong, and what mends it.

use std::fmt::{Arguments, Display};
use std::io::{self, Write};

use anstyle::{AnsiColor, Color, Style};
use anyhow::{anyhow, bail};
use uuid::Uuid;

use super::{CliError, start_logs};
use crate::app::key_ring;
use crate::config::{Config, Flags, Source};
use crate::db::partitions::PARTITIONS_AHEAD;
use crate::db::schema::{self, CONNECT_TIMEOUT, DatabaseHealth, DatabaseUnsuitable};
use crate::db::{DbError, PgPool, keys, tokens};
use crate::upstream;

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Also try the database, its schema, the keys of stored tokens, the standby and the way to
    /// the provider. Changes nothing and mints nothing.
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    settings: Flags<Config>,
}

pub(super) async fn check(check: Check) -> Result<(), CliError> {
    let config = check.settings.load(Source::of_process())?;
    start_logs(config.log.format)?;
    let mut report = Report::default();
    report.say(format_args!("{}", config.render_masked().trim_end()));
    if check.online {
        check_database(&config, &mut report).await?;
        check_upstream(&config, &mut report).await;
    }
    report.unsaid?;
    match report.failed {
        0 => Ok(()),
        _ => Err(anyhow!("not all is well").into()),
    }
}

async fn check_database(config: &Config, report: &mut Report) -> Result<(), CliError> {
    let options = schema::connect_options(&config.database.url)?;
    match schema::try_connect(&options, CONNECT_TIMEOUT).await {
        Err(error) => report.failed("database", &error, error.hint()),
        Ok(_) => check_inside(config, &schema::open_pool(options, 1), report).await,
    }
    if let Some(url) = &config.database.read_url {
        match schema::try_connect(&schema::connect_options(url)?, CONNECT_TIMEOUT).await {
            Err(error) => report.failed("read database", &error, error.hint()),
            Ok(_) => report.ok("read database", "reached"),
        }
    }
    Ok(())
}

async fn check_inside(config: &Config, pool: &PgPool, report: &mut Report) {
    let health = match find_fitness(pool).await {
        Err(unfit) => return report.failed("database", &unfit, unfit.hint()),
        Ok(health) => health,
    };
    report.ok("database", "schema current, keeps what it commits");
    let mend = "`serve` makes them at start, `cleanup` at each run: see that one of them runs";
    match health.partitions_ahead {
        ..0 => report.failed("audit", "this month has no partition", mend),
        ahead @ 0..PARTITIONS_AHEAD => {
            report.note(
                "audit",
                format!("partitions for {ahead} more months only: {mend}"),
            );
        }
        ahead => report.ok("audit", format!("partitions for {ahead} more months")),
    }
    match health.has_synchronous_standby {
        true => report.ok("standby", "what is acknowledged outlives the primary"),
        false => report.note(
            "standby",
            "none is synchronous: what was just acknowledged is lost with the primary",
        ),
    }
    match check_keys(config, pool).await {
        Ok(known) => report.ok("keys", format!("those of all stored tokens are here ({known})")),
        Err(error) => report.failed(
            "keys",
            error,
            "give every replica the TOKEN_KEYS and FINGERPRINT_KEY that these were stored with; docs/rotation.md says how they are changed",
        ),
    }
}

async fn find_fitness(pool: &PgPool) -> Result<DatabaseHealth, DatabaseUnsuitable> {
    schema::check_fitness(&mut *pool.acquire().await.map_err(DbError::from)?).await?;
    Ok(schema::find_database_health(pool).await?)
}

/// Opens one stored token under each key; returns how many keys there are.
async fn check_keys(config: &Config, pool: &PgPool) -> anyhow::Result<usize> {
    let ring = key_ring(&config.keys);
    let ids = tokens::list_key_ids(pool).await?;
    for id in &ids {
        for secret in keys::list_tokens_under_key(pool, id, Uuid::nil(), 1).await? {
            let token = ring.decrypt(&secret.ciphertext, secret.id, &secret.combination)?;
            let fingerprint = ring.fingerprint(token.expose());
            let record = tokens::find_token(pool, secret.id).await?;
            if record.is_some_and(|record| record.fingerprint != fingerprint) {
                bail!("a stored token has another fingerprint: FINGERPRINT_KEY was changed");
            }
        }
    }
    Ok(ids.len())
}

async fn check_upstream(config: &Config, report: &mut Report) {
    let (url, max_wait) = (&config.upstream.base_url, config.upstream.timeout);
    match upstream::probe(url, max_wait, false).await {
        Ok(status) => report.ok(
            "upstream",
            format!("{url} answers, with {status}; only a mint shows whether it takes our key"),
        ),
        Err(error) => report.failed(
            "upstream",
            error,
            "UPSTREAM_BASE_URL, DNS, the firewall and the root certificates of this machine decide",
        ),
    }
}

/// A line for each part, coloured on a terminal.
struct Report {
    failed: u32,
    /// Why lines could not be printed.
    unsaid: io::Result<()>,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            failed: 0,
            unsaid: Ok(()),
        }
    }
}

impl Report {
    fn ok(&mut self, part: &str, told: impl Display) {
        self.line(part, AnsiColor::Green, "ok", told);
    }

    /// Worth knowing, and no failure.
    fn note(&mut self, part: &str, told: impl Display) {
        self.line(part, AnsiColor::Yellow, "note", told);
    }

    fn failed(&mut self, part: &str, why: impl Display, mend: &str) {
        self.failed += 1;
        self.line(part, AnsiColor::Red, "FAILED", why);
        self.say(format_args!("    {mend}"));
    }

    fn line(&mut self, part: &str, colour: AnsiColor, outcome: &str, told: impl Display) {
        let style = Style::new().bold().fg_color(Some(Color::Ansi(colour)));
        self.say(format_args!("{part}: {style}{outcome}{style:#}, {told}"));
    }

    fn say(&mut self, line: Arguments<'_>) {
        if self.unsaid.is_ok() {
            self.unsaid = writeln!(anstream::stdout(), "{line}");
        }
    }
}
