//! Connects to the database, migrates it, and checks that the service can use it.

use std::net::IpAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::audit_log::find_lag;
use super::connector::Role;
use super::distribution::is_distributed;
use super::partitions::count_ahead;
use super::service_role::find_missing_privilege;
use super::{DbError, fitness};

/// The migrations of this version.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// Checksums (SHA-384) that databases of earlier versions hold for the migrations whose comments were rewritten.
///
/// The statements of these migrations are the same, but sqlx's checksum covers the comments too. sqlx would refuse
/// such a database with "previously applied but has been modified".
#[rustfmt::skip]
pub const EARLIER_CHECKSUMS: [(i64, &str); 10] = [
    (20261122000001, "26707dc0ea825e4f810ac9d400493d7370f6f7f72df01a259cfbc450717223d7ec4139cfb02a1dc6f476ff0ee88d98a3"),
    (20261122000002, "ae3ed8479d8a1c6f39d0f47fc806e8900bdc6eda35b5a3b3d26920d3b683fae5ad8fb3b6bde6d061f6830c1f94f1a95f"),
    (20261122000003, "d3a395058a92066f99fef444fa07c2becabb236cb707e243ec2e354c165bcb07466a9c31f632a8dd1f637f205a3cbd1d"),
    (20261122000004, "94a7fc1180e537925163138d422e46d76b3d58f230bf2a0c1f64d0f02b0bf0ed1c7e3b598690a1cc686125890f34d8f8"),
    (20261122000005, "5480245fa9abf4ab236c4ee28e2c4d7ccfd7de8a5ef21213460e1b7c52ac53e8ef4a4a926936d1b62a7b1215160f371f"),
    (20261122000006, "d76ada227bbed484fe7a72cea5890c5917b50978cd1381b6edc748c800b47900d4ac709e555e8b6b48508d0ec30105b7"),
    (20261122000007, "ef3bddb62b7fe51a7be2c89d109058a3f47b56e006007824edb3418c29e96bb4a81f8b8541f5934c10a57c05b0eb8b1a"),
    (20261122000008, "4cf576c7e396b9ded45d0b08b22bf2e3e76f1d09522fb91a6f8eb0672a4ebe26df69b249f0270a2dfb0e547c869d65df"),
    (20261122000009, "dd3e2f61944a823291949c77673604fbc814a3c178a92ad8f4806c142715b78a5b9e216e1962e043d666d0dcef99a340"),
    (20261122000010, "c7e051b2a787d37e5b2a2ff15f5fa67c6d6341ff08ed8dec57ca48e72439dcb81844f00370df0eec730aca87f4d0663e"),
];

/// The time limit of a connection attempt.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The minimum time limit of a connection attempt, even if less of the total wait is left.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The wait after which a warning with the last error is logged.
const WARN_AFTER: Duration = Duration::from_secs(3);

/// The reason why the service cannot use a database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUnsuitable {
    /// The address does not parse. The error does not repeat it, because it may contain a password.
    #[error("DATABASE_URL is not a Postgres address")]
    Address,
    /// The database could not be reached in time.
    #[error("the database could not be reached within {waited:?}: {last}")]
    Unreachable {
        /// The time limit of all attempts.
        waited: Duration,
        /// The error of the last attempt.
        last: DbError,
    },
    /// The database refused the connection for a reason that a later attempt does not change.
    #[error("the database refused the connection: {}; {}", .0, .0.hint())]
    Refused(DbError),
    /// The version of the server is not supported.
    #[error("Postgres 15 or later is required, but the server has version {0}")]
    TooOld(String),
    /// The schema is older than this version needs.
    #[error(
        "the schema is at version {found}, this version needs {needed}: run `token-vendor migrate`"
    )]
    OldSchema {
        /// The newest applied migration, 0 if there is none.
        found: i64,
        /// The newest migration of this version.
        needed: i64,
    },
    /// The role lacks a privilege that the service needs.
    #[error(
        "the role of DATABASE_URL has no {0}: run `token-vendor migrate --grant ROLE` as the owner"
    )]
    MissingPrivilege(String),
    /// A statement failed.
    #[error(transparent)]
    Failed(#[from] DbError),
}

impl DatabaseUnsuitable {
    /// Returns what the user can do.
    pub fn hint(&self) -> &'static str {
        match self {
            DatabaseUnsuitable::Address => {
                "write it as postgres://user:password@host:5432/database"
            }
            DatabaseUnsuitable::Unreachable { last: error, .. }
            | DatabaseUnsuitable::Refused(error)
            | DatabaseUnsuitable::Failed(error) => error.hint(),
            DatabaseUnsuitable::TooOld(_) => "upgrade the server",
            DatabaseUnsuitable::OldSchema { .. } => {
                "the previous version also works on the newer schema"
            }
            DatabaseUnsuitable::MissingPrivilege(_) => {
                "each version can need more privileges, so use --grant at each upgrade"
            }
        }
    }
}

/// Parses the address of a database into connection options. Statements that take over 1 s are logged.
pub fn connect_options(url: &SecretString) -> Result<PgConnectOptions, DatabaseUnsuitable> {
    let mut options: PgConnectOptions = url
        .expose_secret()
        .parse()
        .map_err(|_| DatabaseUnsuitable::Address)?;
    // sqlx keeps the brackets of an IPv6 address in a URL and would resolve them as a name.
    let address = options
        .get_host()
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Some(address) = address.map(str::to_owned) {
        options = options.host(&address);
    }
    // PgBouncer refuses this startup parameter. Postgres has sent exact floating-point numbers since version 12.
    Ok(options
        .extra_float_digits(None)
        .application_name("token-vendor")
        .log_slow_statements(tracing::log::LevelFilter::Warn, Duration::from_secs(1)))
}

/// Returns true if the database is on this machine: a loopback address or a Unix socket.
pub fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    has_socket(options)
        || host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Returns true if the database is on another machine and its server is not verified.
pub fn is_unverified(options: &PgConnectOptions) -> bool {
    !is_local(options) && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
}

fn has_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// Retries every 200 ms until the database accepts a connection.
///
/// # Errors
/// Returns [`DatabaseUnsuitable::Unreachable`] after `max_wait`, and [`DatabaseUnsuitable::Refused`] at once for an
/// error that a retry cannot fix, such as a wrong password.
pub async fn wait_for_database(
    options: &PgConnectOptions,
    max_wait: Duration,
) -> Result<PgConnection, DatabaseUnsuitable> {
    let (started, mut has_warned) = (Instant::now(), false);
    loop {
        let left = max_wait.saturating_sub(started.elapsed());
        let error = match try_connect(options, left.max(MIN_CONNECT_TIMEOUT)).await {
            Ok(connection) => return Ok(connection),
            Err(error) if !error.is_temporary(has_socket(options)) => {
                return Err(DatabaseUnsuitable::Refused(error));
            }
            Err(error) => error,
        };
        if started.elapsed() >= max_wait {
            return Err(DatabaseUnsuitable::Unreachable {
                waited: max_wait,
                last: error,
            });
        }
        if !has_warned && started.elapsed() >= WARN_AFTER {
            has_warned = true;
            tracing::warn!(%error, ?max_wait, "the database cannot be reached yet; still trying");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Makes one connection attempt. It takes at most `max_wait` and never longer than [`CONNECT_TIMEOUT`].
pub async fn try_connect(
    options: &PgConnectOptions,
    max_wait: Duration,
) -> Result<PgConnection, DbError> {
    let max_wait = max_wait.min(CONNECT_TIMEOUT);
    match tokio::time::timeout(max_wait, options.connect()).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(DbError::TimedOut(max_wait)),
    }
}

/// Applies the pending migrations to a server that is fit. Programs that do so at the same time wait for each other.
///
/// The lock is sqlx's own, so `sqlx migrate run` waits too. A connection of its own takes and releases it inside one
/// transaction: a pooler that shares connections between transactions keeps the server's connection for it, and closes
/// that connection if this program ends early.
pub async fn migrate(options: &PgConnectOptions) -> Result<(), DbError> {
    let mut connection = try_connect(options, CONNECT_TIMEOUT).await?;
    fitness::check_fitness(&mut connection, Role::Primary).await?;
    let is_owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('_sqlx_migrations')";
    if let Some(false) = sqlx::query_scalar(is_owner)
        .fetch_optional(&mut connection)
        .await?
    {
        return Err(DbError::NotOwner);
    }
    // A long wait for the lock has its own message.
    let unlogged = options.clone().disable_statement_logging();
    let mut lock_connection = try_connect(&unlogged, CONNECT_TIMEOUT).await?;
    let mut lock = lock_connection.begin().await?;
    // The transaction waits for the lock, and is idle while the migrations run.
    let no_limits = "SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0; \
                     SET LOCAL lock_timeout = 0";
    sqlx::raw_sql(no_limits).execute(&mut *lock).await?;
    let message = "waiting for another migration, which holds the advisory lock of this database";
    warn_if_slow(message, lock.lock()).await?;
    let message = "the migrations still run; if they wait for a lock, pg_blocking_pids() names the sessions that hold it";
    let applied = warn_if_slow(message, apply_migrations(&mut connection)).await;
    // The end of the transaction does not release the lock, so it is released after a failure too.
    lock.unlock().await?;
    lock.commit().await?;
    applied
}

/// Applies the pending migrations. The caller holds the lock.
async fn apply_migrations(connection: &mut PgConnection) -> Result<(), DbError> {
    renew_earlier_checksums(connection).await?;
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    // A newer version may have applied migrations that this one does not know.
    migrator.set_ignore_missing(true);
    migrator.set_locking(false);
    Ok(migrator.run(connection).await?)
}

/// Logs the message if the work takes longer than [`WARN_AFTER`].
async fn warn_if_slow<T>(message: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match tokio::time::timeout(WARN_AFTER, work.as_mut()).await {
        Ok(result) => result,
        Err(_) => {
            tracing::warn!("{message}");
            work.await
        }
    }
}

/// Replaces the stored [`EARLIER_CHECKSUMS`] with those of this version. Any other checksum stays and is refused.
async fn renew_earlier_checksums(connection: &mut PgConnection) -> Result<(), DbError> {
    if !has_migrations_table(connection).await? {
        return Ok(());
    }
    let (versions, earlier): (Vec<_>, Vec<_>) = EARLIER_CHECKSUMS.into_iter().unzip();
    let current: Vec<_> = MIGRATOR
        .iter()
        .filter(|migration| versions.contains(&migration.version))
        .map(|migration| migration.checksum.to_vec())
        .collect();
    sqlx::query(
        "UPDATE _sqlx_migrations m SET checksum = c.current
         FROM unnest($1::bigint[], $2::text[], $3::bytea[]) AS c(version, earlier, current)
         WHERE m.version = c.version AND m.checksum = decode(c.earlier, 'hex')",
    )
    .bind(versions)
    .bind(earlier)
    .bind(current)
    .execute(connection)
    .await?;
    Ok(())
}

/// Checks that the service can use the database.
///
/// # Errors
/// Returns an error if the server or the schema is too old, or if the server is not fit (see [`fitness`]).
pub async fn check_fitness(connection: &mut PgConnection) -> Result<(), DatabaseUnsuitable> {
    let version = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "number!", current_setting('server_version') AS "text!""#
    );
    let version = version
        .fetch_one(&mut *connection)
        .await
        .map_err(DbError::from)?;
    if version.number < 150_000 {
        return Err(DatabaseUnsuitable::TooOld(version.text));
    }
    fitness::check_fitness(connection, Role::Primary).await?;
    let (found, needed) = (find_schema_version(connection).await?, required_version());
    if found < needed {
        return Err(DatabaseUnsuitable::OldSchema { found, needed });
    }
    Ok(())
}

/// Checks that the role of the connection has all privileges that the service needs.
///
/// # Errors
/// Returns [`DatabaseUnsuitable::MissingPrivilege`] with the first one that is missing.
pub async fn check_privileges(connection: &mut PgConnection) -> Result<(), DatabaseUnsuitable> {
    match find_missing_privilege(connection).await? {
        Some(privilege) => Err(DatabaseUnsuitable::MissingPrivilege(privilege)),
        None => Ok(()),
    }
}

/// The state of the database that readiness and `check --online` report.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DatabaseHealth {
    /// True if the schema has the version that this version needs, or a newer one.
    pub is_schema_current: bool,
    /// The number of months after this one that have an audit partition, up to the first gap. -1 if this month has
    /// none, so that no event can be recorded.
    pub partitions_ahead: i32,
    /// The age of the oldest event that is not sealed, in seconds. NaN on Citus, where events are not sealed.
    pub seal_lag: f64,
    /// True if Citus distributes the tables.
    pub is_distributed: bool,
    /// True if a synchronous standby is configured. Acknowledged commits then survive the loss of the primary.
    pub has_synchronous_standby: bool,
}

/// Reads the state of the database from the primary.
pub async fn find_database_health(
    connection: &mut PgConnection,
) -> Result<DatabaseHealth, DbError> {
    let synchronous_standby = sqlx::query_scalar!(
        r#"SELECT current_setting('synchronous_standby_names') <> '' AS "has_standby!""#
    );
    let has_synchronous_standby = synchronous_standby.fetch_one(&mut *connection).await?;
    let is_distributed = is_distributed(connection).await?;
    Ok(DatabaseHealth {
        is_schema_current: find_schema_version(connection).await? >= required_version(),
        partitions_ahead: count_ahead(connection).await?,
        seal_lag: if is_distributed {
            f64::NAN
        } else {
            find_lag(connection).await?
        },
        is_distributed,
        has_synchronous_standby,
    })
}

/// Returns the database's clock, and the latest time that is on record, which seeds the lower bound of the clock.
pub async fn find_newest_time(
    connection: &mut PgConnection,
) -> Result<(DateTime<Utc>, DateTime<Utc>), DbError> {
    let row = sqlx::query!(
        r#"SELECT clock_timestamp() AS "now!",
                  greatest((SELECT occurred_at FROM audit_events ORDER BY occurred_at DESC LIMIT 1),
                           (SELECT greatest(complete_until, noted_at) FROM audit_horizon)) AS "newest!""#
    )
    .fetch_one(connection)
    .await?;
    Ok((row.now, row.newest))
}

fn required_version() -> i64 {
    MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Returns the version of the newest applied migration, 0 if there is none.
async fn find_schema_version(connection: &mut PgConnection) -> Result<i64, DbError> {
    if !has_migrations_table(connection).await? {
        return Ok(0);
    }
    let version: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(connection)
            .await?;
    Ok(version.unwrap_or(0))
}

async fn has_migrations_table(connection: &mut PgConnection) -> Result<bool, DbError> {
    let table = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL");
    Ok(table.fetch_one(connection).await?)
}
