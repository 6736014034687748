//! Decides whether a connection leads to a server that the service may use.
//!
//! The check runs when a connection opens and before an idle one is used again. A connection that fails it is closed,
//! so that no decision uses data of a standby, and no event is acknowledged that the server may lose.

use sqlx::{FromRow, PgConnection};

use super::DbError;
use super::connector::Role;

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

/// Checks that the server is fit for its role, and returns the id of its process.
///
/// # Errors
/// Returns [`DbError::Unfit`] for a server that must not be used.
pub async fn check_fitness(connection: &mut PgConnection, role: Role) -> Result<i32, DbError> {
    // One message of the simple protocol. A transaction pooler could send the parts of an unnamed prepared statement to
    // different servers.
    let check = sqlx::raw_sql(
        "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('transaction_read_only')::bool,
                current_setting('fsync'), current_setting('synchronous_commit'),
                current_setting('transaction_isolation'), current_setting('server_encoding')",
    );
    let row = check.fetch_one(connection).await?;
    let (process, is_in_recovery, is_read_only, fsync, synchronous_commit, isolation, encoding): (
        i32,
        bool,
        bool,
        String,
        String,
        String,
        String,
    ) = FromRow::from_row(&row)?;
    let not_durable = |setting, value| Unfit::NotDurable { setting, value };
    let unfit = if role == Role::Standby {
        return Ok(process);
    } else if is_in_recovery {
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
        return Ok(process);
    };
    Err(DbError::Unfit(unfit))
}
