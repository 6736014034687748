//! Access to Postgres. This is the only folder with SQL.

pub mod audit_events;
pub mod audit_log;
pub mod budget;
pub mod cleanup;
pub mod clients;
pub mod clock;
pub mod connector;
pub mod distribution;
pub mod erasure;
pub mod event_page;
pub mod fitness;
mod gate;
pub mod handouts;
pub mod horizon;
pub mod invalidation;
pub mod keys;
mod lane;
pub mod mint_quota;
pub mod mints;
mod overdue;
pub mod overview;
pub mod partitions;
pub mod replicas;
pub mod schema;
pub mod search;
pub mod service_role;
pub mod slots;
mod standalone_event;
pub mod tokens;

use std::borrow::Cow;
use std::io::ErrorKind;
use std::time::Duration;

use chrono::{DateTime, Utc};
use fitness::Unfit;
pub use gate::{Checkout, Database};
pub use lane::Lane;
pub use sqlx::PgConnection;
use sqlx::migrate::MigrateError;
pub use sqlx::postgres::PgConnectOptions;

use crate::model::Failure;

/// The failure of a statement, or its unknown outcome.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Postgres or the connection to it failed. `source()` omits the error, because its text contains a line number
    /// of the Postgres source code.
    #[error("{}", describe(.0))]
    Sqlx(sqlx::Error),
    /// There was no answer within the time limit. The outcome is unknown.
    #[error("the database did not answer within {0:?}")]
    TimedOut(Duration),
    /// The server must not be used.
    #[error("the database cannot be used: {0}")]
    Unfit(#[from] Unfit),
    /// The server has no connection left for this role, this database or anyone.
    #[error("{0}")]
    NoConnection(String),
    /// The role of the connection does not own the tables, which this work needs.
    #[error("another role owns the tables: use the DATABASE_URL of the owner for this command")]
    NotOwner,
    /// Citus distributes the tables, where this work is not possible.
    #[error("Citus distributes the tables, so this command is not available: see docs/scaling.md")]
    Distributed,
    /// The content of `DATABASE_URL_FILE` is not a database URL.
    #[error("the file of the database URL does not contain a Postgres URL")]
    Address,
    /// Too much work of this kind is in progress. The work was not started.
    #[error("too much database work is in progress")]
    Overloaded,
    /// An earlier COMMIT still waits for a synchronous standby.
    #[error("a COMMIT waits for a synchronous standby")]
    CommitPending,
    /// Events before this time may still appear, so a read would miss them.
    #[error("events before {0} may be missing: a transaction is still open, or the standby lags")]
    Incomplete(DateTime<Utc>),
    /// The runtime stopped before the work finished. The outcome is unknown.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// A row has a value that this version does not know.
    #[error("this version cannot read a row of the table {table}: {what}")]
    Unreadable {
        /// The name of the table.
        table: &'static str,
        /// The value, or the parse error.
        what: String,
    },
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.code().as_deref() == Some("53300") => {
                DbError::NoConnection(describe(&error))
            }
            _ => DbError::Sqlx(error),
        }
    }
}

impl From<MigrateError> for DbError {
    fn from(error: MigrateError) -> Self {
        DbError::Sqlx(error.into())
    }
}

impl From<&DbError> for Failure {
    fn from(error: &DbError) -> Self {
        match error {
            DbError::Overloaded => Failure::overloaded(),
            _ => Failure::database(),
        }
    }
}

/// Describes an error without the line number of Postgres's source.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Migrate(error) => match &**error {
            MigrateError::Execute(error) => describe(error),
            MigrateError::ExecuteMigration(error, version) => {
                format!("migration {version}: {}", describe(error))
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

impl DbError {
    /// Returns the cause in one word, for readiness.
    pub fn cause(&self) -> &'static str {
        match self {
            DbError::Unfit(unfit) => unfit.cause(),
            DbError::CommitPending => "commit-pending",
            _ => "unavailable",
        }
    }

    /// Returns true if a later attempt to connect can succeed: the server is down, starting or stopping, or it has no
    /// free connection. `is_socket` tells whether the server is reached by a Unix socket, which a starting server
    /// creates.
    pub fn is_temporary(&self, is_socket: bool) -> bool {
        match self {
            DbError::TimedOut(_) | DbError::NoConnection(_) => true,
            DbError::Sqlx(sqlx::Error::Io(error)) => match error.kind() {
                // TLS reports a refused certificate as invalid data. Over TCP, a missing file is a certificate.
                ErrorKind::InvalidData | ErrorKind::PermissionDenied => false,
                ErrorKind::NotFound => is_socket,
                _ => true,
            },
            // Class 08 comes from a pooler whose server is down.
            _ => {
                let code = self.sqlstate();
                ["57P01", "57P02", "57P03"].contains(&&*code) || code.starts_with("08")
            }
        }
    }

    /// Returns true if Postgres ended the transaction to resolve a deadlock.
    pub fn is_deadlock(&self) -> bool {
        self.sqlstate() == "40P01"
    }

    /// Returns the SQLSTATE of an error from Postgres, otherwise an empty text.
    fn sqlstate(&self) -> Cow<'_, str> {
        match self {
            DbError::Sqlx(sqlx::Error::Database(error)) => error.code().unwrap_or_default(),
            _ => Cow::default(),
        }
    }

    /// Returns a hint for a connection that cannot be opened.
    pub fn hint(&self) -> &'static str {
        match self {
            DbError::Unfit(unfit) => return unfit.hint(),
            DbError::NoConnection(_) => {
                return "raise max_connections of the server or the connection limit of the role, or lower \
                        DATABASE_MAX_CONNECTIONS";
            }
            _ => {}
        }
        // The first two characters are the class of the SQLSTATE (PostgreSQL documentation, appendix A).
        match self.sqlstate().get(..2) {
            Some("28") => {
                "correct the role and password in its URL, or allow this machine in pg_hba.conf"
            }
            Some("3D") => "create the database, or correct the name in its URL",
            Some("57") => "the server is starting or stopping: wait and try again",
            _ => {
                "check that Postgres runs, that host, port and sslmode in its URL are correct, and that no firewall or \
                 network policy blocks the connection"
            }
        }
    }

    /// Returns true if the statement may have committed although its answer is missing.
    pub fn has_unknown_outcome(&self) -> bool {
        use sqlx::Error::{Io, Protocol};
        matches!(
            self,
            DbError::TimedOut(_) | DbError::ShuttingDown | DbError::Sqlx(Io(_) | Protocol(_))
        )
    }

    /// Returns true if the connection must not be used again, or could not be opened: it is broken or silent, or its
    /// server is shutting down, read-only or unfit.
    pub fn breaks_connection(&self) -> bool {
        match self {
            DbError::TimedOut(_)
            | DbError::NoConnection(_)
            | DbError::Address
            | DbError::Unfit(_)
            | DbError::Sqlx(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => {
                true
            }
            _ => {
                let code = self.sqlstate();
                ["25006", "57P01", "57P02", "57P03"].contains(&&*code) || code.starts_with("08")
            }
        }
    }

    /// Returns true if the data of one row caused the error: SQLSTATE classes 22 and 23, except 23514. A missing
    /// partition gives 23514.
    pub fn is_data_error(&self) -> bool {
        let code = self.sqlstate();
        (code.starts_with("22") || code.starts_with("23")) && code != "23514"
    }
}
