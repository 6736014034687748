//! Decides whether a connection leads to a server that the service may use.
//!
//! The check runs when a connection opens and before an idle one is used again. A connection that fails it is closed,
//! so that no decision uses data of a standby, and no event is acknowledged that the server may lose.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::DbError;

/// The settings of each session, sent when it starts.
///
/// Nothing is set later, because a transaction pooler may pass the session on.
const SESSION: [(&str, &str); 3] = [
    ("default_transaction_isolation", "read committed"),
    // No statement of the service takes this long. Without a limit, a lock that is never released would block every
    // connection.
    ("statement_timeout", "5s"),
    ("lock_timeout", "2s"),
];

/// The reason why a connection must not be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// The server is a standby. Its data may be stale.
    #[error("the server is in recovery: it is a standby")]
    InRecovery,
    /// The server refuses writes.
    #[error("transactions are read-only: default_transaction_read_only is on")]
    ReadOnly,
    /// The server can lose a committed transaction.
    #[error("{setting} is {value}: committed events can be lost")]
    NotDurable {
        /// The name of the setting.
        setting: &'static str,
        /// The value of the setting.
        value: String,
    },
    /// Concurrent requests would fail with serialization errors.
    #[error("default_transaction_isolation is {0} instead of read committed")]
    Isolation(String),
    /// The database cannot store every character of a user id.
    #[error("the encoding of the database is {0} instead of UTF8")]
    Encoding(String),
}

impl Unfit {
    /// Returns the reason in one word, for readiness.
    pub fn cause(&self) -> &'static str {
        match self {
            Unfit::InRecovery => "in-recovery",
            Unfit::ReadOnly => "read-only",
            Unfit::NotDurable { .. } => "not-durable",
            Unfit::Isolation(_) => "isolation",
            Unfit::Encoding(_) => "encoding",
        }
    }

    /// Returns what the user can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Unfit::InRecovery | Unfit::ReadOnly => "connect to the primary, and allow writes",
            Unfit::NotDurable { .. } => "set fsync and synchronous_commit to on",
            Unfit::Isolation(_) => "set default_transaction_isolation to read committed",
            Unfit::Encoding(_) => "create the database with ENCODING 'UTF8'",
        }
    }
}

/// Returns the options with the settings of each session. Returns them unchanged if a transaction pooler refuses
/// settings.
pub async fn negotiate_session(options: PgConnectOptions) -> Result<PgConnectOptions, DbError> {
    /// SQLSTATE of a protocol violation. A pooler answers an unknown startup parameter with it.
    const PROTOCOL_VIOLATION: &str = "08P01";
    let with_settings = options.clone().options(SESSION);
    match with_settings.connect().await {
        Ok(connection) => {
            connection.close().await?;
            Ok(with_settings)
        }
        Err(sqlx::Error::Database(error))
            if error.code().as_deref() == Some(PROTOCOL_VIOLATION) =>
        {
            tracing::warn!(
                "a pooler refuses session settings; set statement_timeout and lock_timeout for the role"
            );
            Ok(options)
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens a connection to the primary and checks it.
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, DbError> {
    let mut connection = options.connect().await?;
    check_primary(&mut connection).await?;
    Ok(connection)
}

/// Checks that the server accepts writes and keeps what it commits.
///
/// # Errors
/// Returns [`DbError::Unfit`] for a server that must not be used.
pub async fn check_primary(connection: &mut PgConnection) -> Result<(), DbError> {
    // Not prepared, because the check must work on any server, and because it is rare.
    let row: (bool, bool, String, String, String, String) = sqlx::query_as(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool, current_setting('fsync'),
                current_setting('synchronous_commit'), current_setting('transaction_isolation'),
                current_setting('server_encoding')",
    )
    .persistent(false)
    .fetch_one(connection)
    .await?;
    let (is_in_recovery, is_read_only, fsync, synchronous_commit, isolation, encoding) = row;
    let not_durable = |setting, value| Unfit::NotDurable { setting, value };
    let unfit = if is_in_recovery {
        Unfit::InRecovery
    } else if is_read_only {
        Unfit::ReadOnly
    } else if fsync != "on" {
        not_durable("fsync", fsync)
    } else if !matches!(&*synchronous_commit, "on" | "remote_apply") {
        not_durable("synchronous_commit", synchronous_commit)
    } else if isolation != "read committed" {
        Unfit::Isolation(isolation)
    } else if encoding != "UTF8" {
        Unfit::Encoding(encoding)
    } else {
        return Ok(());
    };
    Err(DbError::Unfit(unfit))
}
