//! Opens connections to Postgres, and decides whether one may be used again.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use secrecy::SecretString;
use sqlx::{ConnectOptions, Connection as _, PgConnection};
use tokio::time::timeout;

use super::DbError;
use super::fitness::check_fitness;
use super::schema::connect_options;

/// The idle time after which a connection is checked before use. A check takes as long as a statement.
const CHECK_IF_IDLE: Duration = Duration::from_secs(1);

/// The time limit of a check.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// The time limit of an attempt to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The time between two attempts while the server has no connection left.
const RETRY_FULL: Duration = Duration::from_secs(1);

/// The mean lifetime of a connection. Each one lives 0.5 to 1.5 times as long, so that they do not end together.
const LIFETIME: Duration = Duration::from_secs(1_800);

/// The settings of each session, sent when it starts.
///
/// Nothing is set later, because a transaction pooler may pass the session on.
const SESSION: [(&str, &str); 4] = [
    ("default_transaction_isolation", "read committed"),
    // No statement of the service takes this long. Without a limit, a lock that is never released would block every
    // connection.
    ("statement_timeout", "5s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// The address of a database.
#[derive(Clone, Debug)]
pub struct Address {
    /// The URL.
    pub url: SecretString,
    /// The file of the URL. It is read again for each connection, so that a new password takes effect.
    pub file: Option<PathBuf>,
}

impl Address {
    /// Returns the current URL. Returns the one of the start if the file cannot be read, because it may be in the middle
    /// of a change.
    async fn read(&self) -> SecretString {
        let Some(file) = &self.file else {
            return self.url.clone();
        };
        match tokio::fs::read_to_string(file).await {
            Ok(text) => text.trim_end_matches(['\r', '\n']).into(),
            Err(error) => {
                tracing::warn!(%error, "the file of the database URL cannot be read; using the URL of the start");
                self.url.clone()
            }
        }
    }
}

/// The setting that makes each commit durable, whatever the defaults of the server, the database and the role are.
const DURABLE: (&str, &str) = ("synchronous_commit", "on");

/// The use of a connection, which decides what its server must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Records handouts on the primary. Each of its statements sets `synchronous_commit` itself, so that its check
    /// sees the default of the server.
    Writer,
    /// Authenticates on the primary. Opens its connection even if the server had none left a moment ago.
    Authentication,
    /// Uses a server that accepts writes and keeps what it commits.
    Primary,
    /// Reads from any server that answers. Its data may be stale.
    Standby,
}

/// Opens connections to one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    address: Address,
    role: Role,
    state: Arc<State>,
}

/// The state that all clones of a [`Connector`] share.
#[derive(Debug, Default)]
struct State {
    /// True once a pooler refused [`SESSION`].
    is_pooled: AtomicBool,
    /// The last time at which a connection broke, or a statement got no answer in time.
    failed_at: Mutex<Option<Instant>>,
    /// The last time at which the server had no connection left.
    full_at: Mutex<Option<Instant>>,
}

fn note(time: &Mutex<Option<Instant>>) {
    *time.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

fn last(time: &Mutex<Option<Instant>>) -> Option<Instant> {
    *time.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection, and the server process that it started on.
#[derive(Debug)]
pub struct Connection {
    inner: PgConnection,
    /// The id of the server process. Behind a transaction pooler, later statements may use another one.
    pub process: i32,
    retire_at: Instant,
    used_at: Instant,
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

impl Connection {
    /// Returns true if the connection has reached its maximum lifetime.
    pub fn is_retired(&self) -> bool {
        Instant::now() >= self.retire_at
    }

    /// Prepares the connection for its next use: ends a transaction that was dropped.
    pub async fn reset(&mut self) -> Result<(), DbError> {
        // sqlx only queues the ROLLBACK of a dropped transaction.
        if self.inner.should_flush() {
            self.inner.ping().await?;
        }
        self.used_at = Instant::now();
        Ok(())
    }
}

impl Connector {
    /// Stores the address. Opens no connection.
    pub fn new(address: Address, role: Role) -> Self {
        Connector {
            address,
            role,
            state: Arc::default(),
        }
    }

    /// Returns a connector with another role for the same address.
    pub fn with_role(&self, role: Role) -> Self {
        Connector {
            role,
            ..self.clone()
        }
    }

    /// Opens a connection and checks the server.
    ///
    /// # Errors
    /// Returns [`DbError::TimedOut`] after 2 s, and [`DbError::Unfit`] for a server that must not be used.
    pub async fn connect(&self) -> Result<Connection, DbError> {
        timeout(CONNECT_TIMEOUT, self.open())
            .await
            .unwrap_or(Err(DbError::TimedOut(CONNECT_TIMEOUT)))
    }

    async fn open(&self) -> Result<Connection, DbError> {
        /// SQLSTATE of a protocol violation. A pooler answers an unknown startup parameter with it.
        const PROTOCOL_VIOLATION: &str = "08P01";
        let options = connect_options(&self.address.read().await).map_err(|_| DbError::Address)?;
        let mut inner = if self.state.is_pooled.load(Ordering::Relaxed) {
            options.connect().await?
        } else {
            let durable = (self.role != Role::Writer).then_some(DURABLE);
            let with_session = options.clone().options(SESSION.into_iter().chain(durable));
            match with_session.connect().await {
                Ok(connection) => connection,
                Err(sqlx::Error::Database(error))
                    if error.code().as_deref() == Some(PROTOCOL_VIOLATION) =>
                {
                    let connection = options.connect().await?;
                    self.state.is_pooled.store(true, Ordering::Relaxed);
                    tracing::warn!(
                        "a pooler refuses session settings; set statement_timeout and lock_timeout for the role"
                    );
                    connection
                }
                Err(error) => return Err(error.into()),
            }
        };
        let process = check_fitness(&mut inner, self.role).await?;
        let now = Instant::now();
        Ok(Connection {
            inner,
            process,
            retire_at: now + LIFETIME.mul_f64(0.5 + fastrand::f64()),
            used_at: now,
        })
    }

    /// Records that a connection broke or got no answer in time. Connections that are idle now are closed before their
    /// next use, because the same fault may have hit them.
    pub fn note_failure(&self) {
        note(&self.state.failed_at);
    }

    fn is_suspect(&self, connection: &Connection) -> bool {
        last(&self.state.failed_at).is_some_and(|failed_at| connection.used_at < failed_at)
    }
}

impl Manager for Connector {
    type Type = Connection;
    type Error = DbError;

    /// Opens a connection. After the server had none left, fails for 1 s without an attempt, except for authentication.
    async fn create(&self) -> Result<Connection, DbError> {
        if self.role != Role::Authentication
            && last(&self.state.full_at).is_some_and(|full_at| full_at.elapsed() < RETRY_FULL)
        {
            return Err(DbError::NoConnection(
                "the server had no connection left".into(),
            ));
        }
        let connected = self.connect().await;
        if matches!(connected, Err(DbError::NoConnection(_))) {
            note(&self.state.full_at);
        }
        connected
    }

    /// Refuses a connection that is retired, suspect, or leads to an unfit server.
    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<DbError> {
        if connection.is_retired() || self.is_suspect(connection) {
            return Err(RecycleError::message(
                "the connection is retired or suspect",
            ));
        }
        if connection.used_at.elapsed() > CHECK_IF_IDLE {
            let check = check_fitness(&mut connection.inner, self.role);
            let checked = timeout(CHECK_TIMEOUT, check).await;
            if checked.is_err() {
                self.note_failure();
            }
            checked
                .unwrap_or(Err(DbError::TimedOut(CHECK_TIMEOUT)))
                .inspect_err(|error| tracing::warn!(%error, "a connection is closed"))?;
        }
        Ok(())
    }
}
