//! The database as a whole: reaching it, migrating it, and whether it is fit to serve from.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use super::DbError;
use super::partitions::count_ahead;

/// The migrations of this version.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// Checksums (SHA-384) that databases of earlier versions hold for the migrations whose comments were rewritten.
///
/// The statements of these migrations are the same, but sqlx's checksum covers the comments too. sqlx would refuse
/// such a database with "previously applied but has been modified".
pub const EARLIER_CHECKSUMS: [(i64, &str); 10] = [
    (
        20261122000001,
        "26707dc0ea825e4f810ac9d400493d7370f6f7f72df01a259cfbc450717223d7ec4139cfb02a1dc6f476ff0ee88d98a3",
    ),
    (
        20261122000002,
        "ae3ed8479d8a1c6f39d0f47fc806e8900bdc6eda35b5a3b3d26920d3b683fae5ad8fb3b6bde6d061f6830c1f94f1a95f",
    ),
    (
        20261122000003,
        "d3a395058a92066f99fef444fa07c2becabb236cb707e243ec2e354c165bcb07466a9c31f632a8dd1f637f205a3cbd1d",
    ),
    (
        20261122000004,
        "94a7fc1180e537925163138d422e46d76b3d58f230bf2a0c1f64d0f02b0bf0ed1c7e3b598690a1cc686125890f34d8f8",
    ),
    (
        20261122000005,
        "5480245fa9abf4ab236c4ee28e2c4d7ccfd7de8a5ef21213460e1b7c52ac53e8ef4a4a926936d1b62a7b1215160f371f",
    ),
    (
        20261122000006,
        "d76ada227bbed484fe7a72cea5890c5917b50978cd1381b6edc748c800b47900d4ac709e555e8b6b48508d0ec30105b7",
    ),
    (
        20261122000007,
        "ef3bddb62b7fe51a7be2c89d109058a3f47b56e006007824edb3418c29e96bb4a81f8b8541f5934c10a57c05b0eb8b1a",
    ),
    (
        20261122000008,
        "4cf576c7e396b9ded45d0b08b22bf2e3e76f1d09522fb91a6f8eb0672a4ebe26df69b249f0270a2dfb0e547c869d65df",
    ),
    (
        20261122000009,
        "dd3e2f61944a823291949c77673604fbc814a3c178a92ad8f4806c142715b78a5b9e216e1962e043d666d0dcef99a340",
    ),
    (
        20261122000010,
        "c7e051b2a787d37e5b2a2ff15f5fa67c6d6341ff08ed8dec57ca48e72439dcb81844f00370df0eec730aca87f4d0663e",
    ),
];

/// A database that takes longer to let us in counts as down.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What one try may take, however little of the patience is left.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// Whoever waits longer than this for the database hears why.
const WARN_AFTER: Duration = Duration::from_secs(3);

/// Why the service does not start on this database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUnsuitable {
    /// The address does not parse. Its text is not repeated: it may hold a password.
    #[error("DATABASE_URL is not a Postgres address")]
    Address,
    /// It did not answer in time.
    #[error("no database within {waited:?}: {last}")]
    Unreachable {
        /// How long it was tried.
        waited: Duration,
        /// The last error.
        last: DbError,
    },
    /// A version that is not supported.
    #[error("Postgres 15 or later is needed, this is {0}")]
    TooOld(String),
    /// The schema is older than this version needs.
    #[error(
        "the schema is at version {found}, this version needs {needed}: run `token-vendor migrate`"
    )]
    OldSchema {
        /// The newest migration applied, 0 if none.
        found: i64,
        /// The newest migration of this version.
        needed: i64,
    },
    /// It does not keep what it commits.
    #[error("the database does not keep what it commits: {0}")]
    NotDurable(String),
    /// A statement failed.
    #[error(transparent)]
    Failed(#[from] DbError),
}

impl DatabaseUnsuitable {
    /// What mends it.
    pub fn hint(&self) -> &'static str {
        match self {
            DatabaseUnsuitable::Address => {
                "write it as postgres://user:password@host:5432/database"
            }
            DatabaseUnsuitable::Unreachable { last, .. } | DatabaseUnsuitable::Failed(last) => {
                last.hint()
            }
            DatabaseUnsuitable::TooOld(_) => "upgrade it",
            DatabaseUnsuitable::OldSchema { .. } => {
                "the version before this one goes on serving on the newer schema"
            }
            DatabaseUnsuitable::NotDurable(_) => {
                "connect to the primary, with fsync and synchronous_commit on"
            }
        }
    }
}

/// How connections are made. Statements are prepared and sent without a transaction around them,
/// so a transaction pooler in front is fine.
pub fn connect_options(url: &SecretString) -> Result<PgConnectOptions, DatabaseUnsuitable> {
    let options: PgConnectOptions = url
        .expose_secret()
        .parse()
        .map_err(|_| DatabaseUnsuitable::Address)?;
    Ok(options
        .application_name("token-vendor")
        .log_slow_statements(tracing::log::LevelFilter::Warn, Duration::from_secs(1)))
}

/// Whether the database is on this machine.
pub fn is_local(options: &PgConnectOptions) -> bool {
    // An IPv6 address keeps its brackets.
    let host = options.get_host().trim_matches(['[', ']']);
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A connection that was idle for no longer is used without asking whether it still is one, which
/// would be as long a way as the statement itself. Where it is not, the caller is told so.
const PING_IF_IDLE: Duration = Duration::from_secs(1);

/// A pool that opens connections as they are needed.
pub fn open_pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(2))
        .test_before_acquire(false)
        .before_acquire(|connection, last| {
            Box::pin(async move {
                if last.idle_for > PING_IF_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move {
                // Longer than any of ours takes; without an end a lost lock would hold the pool.
                sqlx::raw_sql("SET statement_timeout = '5s'; SET lock_timeout = '2s'")
                    .execute(connection)
                    .await
                    .map(|_| ())
            })
        })
        .connect_lazy_with(options)
}

/// Waits until the database answers, at most that long; a connection to it.
pub async fn wait_for_database(
    options: &PgConnectOptions,
    max_wait: Duration,
) -> Result<PgConnection, DatabaseUnsuitable> {
    let (started, mut is_told) = (Instant::now(), false);
    loop {
        let left = max_wait.saturating_sub(started.elapsed());
        let last = match reach(options, left.max(SHORTEST_TRY)).await {
            Ok(connection) => return Ok(connection),
            Err(last) => last,
        };
        if started.elapsed() >= max_wait {
            return Err(DatabaseUnsuitable::Unreachable {
                waited: max_wait,
                last,
            });
        }
        if !is_told && started.elapsed() >= WARN_AFTER {
            is_told = true;
            tracing::warn!(cause = %last, "waiting for the database, at most {max_wait:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// One try at a connection, at most that long and never longer than [`CONNECT_TIMEOUT`].
pub async fn reach(options: &PgConnectOptions, at_most: Duration) -> Result<PgConnection, DbError> {
    let at_most = at_most.min(CONNECT_TIMEOUT);
    match tokio::time::timeout(at_most, options.connect()).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(DbError::TimedOut(at_most)),
    }
}

/// Applies the pending migrations. Replicas that do so at the same time wait for each other.
pub async fn migrate(options: &PgConnectOptions) -> Result<(), DatabaseUnsuitable> {
    let mut connection = options.connect().await.map_err(DbError::from)?;
    renew_earlier_checksums(&mut connection).await?;
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    // A newer version may have applied migrations that this one does not know.
    migrator.set_ignore_missing(true);
    migrator
        .run(&mut connection)
        .await
        .map_err(|error| DbError::from(sqlx::Error::from(error)))?;
    Ok(())
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

/// Refuses a database that is too old, behind in its schema, or does not keep what it commits.
pub async fn check_fitness(connection: &mut PgConnection) -> Result<(), DatabaseUnsuitable> {
    let row = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "version!",
                  current_setting('server_version') AS "version_text!",
                  current_setting('fsync') AS "fsync!",
                  current_setting('synchronous_commit') AS "synchronous_commit!",
                  pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS "read_only!""#
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(DbError::from)?;
    if row.version < 150_000 {
        return Err(DatabaseUnsuitable::TooOld(row.version_text));
    }
    if row.read_only {
        return Err(DatabaseUnsuitable::NotDurable("it is read-only".into()));
    }
    if row.fsync != "on" {
        return Err(DatabaseUnsuitable::NotDurable(format!(
            "fsync is {}",
            row.fsync
        )));
    }
    if !matches!(row.synchronous_commit.as_str(), "on" | "remote_apply") {
        let setting = row.synchronous_commit;
        return Err(DatabaseUnsuitable::NotDurable(format!(
            "synchronous_commit is {setting}, below on"
        )));
    }
    let (found, needed) = (schema_version(connection).await?, needed_version());
    if found < needed {
        return Err(DatabaseUnsuitable::OldSchema { found, needed });
    }
    Ok(())
}

/// What readiness tells of the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseHealth {
    /// The schema is what this version needs, or newer.
    pub is_schema_current: bool,
    /// Months after this one that have an audit partition without a gap; -1 where this one has
    /// none, so that nothing can be recorded.
    pub partitions_ahead: i32,
    /// A synchronous standby has what was acknowledged: it outlives the loss of the primary.
    pub has_synchronous_standby: bool,
}

/// Asks the primary.
pub async fn find_database_health(pool: &PgPool) -> Result<DatabaseHealth, DbError> {
    let mut connection = pool.acquire().await?;
    let has_standby = sqlx::query_scalar!(
        r#"SELECT current_setting('synchronous_standby_names') <> '' AS "has_standby!""#
    );
    let has_synchronous_standby = has_standby.fetch_one(&mut *connection).await?;
    Ok(DatabaseHealth {
        is_schema_current: schema_version(&mut connection).await? >= needed_version(),
        partitions_ahead: count_ahead(&mut connection).await?,
        has_synchronous_standby,
    })
}

/// The database's clock, and the time of the newest event: no time before it is now.
pub async fn find_newest_time(
    connection: &mut PgConnection,
) -> Result<(DateTime<Utc>, DateTime<Utc>), DbError> {
    let row = sqlx::query!(
        r#"SELECT clock_timestamp() AS "now!",
                  coalesce((SELECT occurred_at FROM audit_events ORDER BY occurred_at DESC LIMIT 1),
                           clock_timestamp()) AS "newest!""#
    )
    .fetch_one(connection)
    .await?;
    Ok((row.now, row.newest))
}

fn needed_version() -> i64 {
    MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Returns the version of the newest applied migration, 0 if there is none.
async fn schema_version(connection: &mut PgConnection) -> Result<i64, DbError> {
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
