//! The statement that decides handouts. It takes a batch of handouts, and records those whose tokens are valid.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::connector::{Connection, Role};
use super::fitness::check_fitness;
use super::overdue::list_waiting_commits;
use super::{Database, DbError};
use crate::model::{Caller, EventKind};

/// A query that inserts the events of the handouts whose tokens may be handed out.
///
/// Commits durably, whatever the defaults of the server, the database and the role are. Refuses a handout that was over
/// 4 s old when the transaction got its id. The horizon of the audit log relies on that.
macro_rules! insert {
    ($head:literal, $rows:literal, $on_conflict:literal, $returning:literal, $($value:expr),+ $(,)?) => {
        sqlx::query_scalar!(
            $head
                + r#"INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip,
                                               country, bank, access, token_id, fingerprint)
                     SELECT r.event_id, r.occurred_at, $10, r.user_id, r.client, r.request_id, r.source_ip,
                            nullif(t.country, ''), nullif(t.bank, ''), t.access, t.id, t.fingerprint
                     FROM "#
                + $rows
                + r#" AS r(event_id, occurred_at, user_id, token_id, client, request_id, source_ip, min_life)
                     JOIN tokens t ON t.user_id = r.user_id AND t.id = r.token_id
                     WHERE t.is_valid AND t.superseded_at IS NULL
                       AND (SELECT set_config('synchronous_commit', 'on', true)) = 'on'
                       AND t.ends_at > greatest(clock_timestamp(), $9) + make_interval(secs => r.min_life)
                       AND r.occurred_at > (SELECT CASE WHEN pg_current_xact_id() IS NOT NULL
                                                   THEN clock_timestamp() - interval '4 s' END)
                     "#
                + $on_conflict
                + $returning,
            $($value),+
        )
    };
}

/// The query for a batch. It returns one row with the array of the inserted ids.
macro_rules! insert_batch {
    ($on_conflict:literal, $columns:ident, $lower_bound:ident) => {
        insert!(
            "WITH recorded AS (",
            r#"(SELECT unnest($1::uuid[]), unnest($2::timestamptz[]), unnest($3::text[]), unnest($4::uuid[]),
                       unnest($5::text[]), unnest($6::text[]), unnest($7::text[]), unnest($8::float8[]))"#,
            $on_conflict,
            r#" RETURNING id) SELECT coalesce(array_agg(id), '{}') AS "ids!" FROM recorded"#,
            &$columns.event_id,
            &$columns.occurred_at,
            &$columns.user_id as &[&str],
            &$columns.token_id,
            &$columns.client as &[&str],
            &$columns.request_id as &[&str],
            &$columns.source_ip as &[Option<&str>],
            &$columns.min_life,
            $lower_bound,
            EventKind::TokenReused.name(),
        )
    };
}

/// A requested handout of a recorded token.
#[derive(Debug)]
pub struct HandoutRow<'a> {
    /// The id of the event. It stays the same in a replay.
    pub event_id: Uuid,
    /// The estimated time of the database's clock. It stays the same in a replay.
    pub occurred_at: DateTime<Utc>,
    /// The user of the token.
    pub user_id: &'a str,
    /// The id of the token.
    pub token_id: Uuid,
    /// The caller that gets the token.
    pub caller: &'a Caller,
    /// The minimum remaining life of the token.
    pub min_life: Duration,
}

/// Inserts the events of the handouts whose tokens may be handed out now, and returns the ids of these events.
///
/// The returned events are durable. Judges tokens at the later of the database's clock and `lower_bound`. The events
/// must be new, which makes this cheaper than [`replay_handouts`].
pub async fn insert_handouts(
    connection: &mut PgConnection,
    rows: &[HandoutRow<'_>],
    lower_bound: DateTime<Utc>,
) -> Result<HashSet<Uuid>, DbError> {
    if let [row] = rows {
        return insert_handout(connection, row, lower_bound).await;
    }
    let columns = Columns::of(rows);
    let insert = insert_batch!("", columns, lower_bound);
    let ids = insert.fetch_one(connection).await?;
    Ok(ids.into_iter().collect())
}

/// Inserts a single event. Without arrays, it takes 5 % less time than a batch of one.
async fn insert_handout(
    connection: &mut PgConnection,
    row: &HandoutRow<'_>,
    lower_bound: DateTime<Utc>,
) -> Result<HashSet<Uuid>, DbError> {
    let insert = insert!(
        "",
        r#"(VALUES ($1::uuid, $2::timestamptz, $3::text, $4::uuid, $5::text, $6::text, $7::text, $8::float8))"#,
        "",
        "RETURNING id",
        row.event_id,
        row.occurred_at,
        row.user_id,
        row.token_id,
        row.caller.client.as_str(),
        row.caller.request_id.as_str(),
        row.caller.source_ip.as_deref(),
        row.min_life.as_secs_f64(),
        lower_bound,
        EventKind::TokenReused.name(),
    );
    let id = insert.fetch_optional(connection).await?;
    Ok(id.into_iter().collect())
}

/// Inserts events of which some may exist already, after a COMMIT with an unknown outcome.
///
/// Skips existing events. Waits for a transaction that is inserting the same event. [`find_handouts`] then tells which
/// events exist.
pub async fn replay_handouts(
    connection: &mut PgConnection,
    rows: &[HandoutRow<'_>],
    lower_bound: DateTime<Utc>,
) -> Result<(), DbError> {
    let columns = Columns::of(rows);
    insert_batch!("ON CONFLICT DO NOTHING", columns, lower_bound)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Returns the ids of the handouts that are recorded. Use it after a replay, which returns only the events that the
/// first attempt did not insert.
pub async fn find_handouts(
    connection: &mut PgConnection,
    rows: &[HandoutRow<'_>],
) -> Result<HashSet<Uuid>, DbError> {
    let columns = Columns::of(rows);
    let ids = sqlx::query_scalar!(
        "SELECT e.id
         FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS r(event_id, occurred_at, user_id)
         JOIN audit_events e ON e.user_id = r.user_id AND e.occurred_at = r.occurred_at AND e.id = r.event_id",
        &columns.event_id,
        &columns.occurred_at,
        &columns.user_id as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().collect())
}

/// The connection of the handout writer, opened on demand, and at most one more whose statement is overdue.
///
/// An overdue statement may wait in its COMMIT for a synchronous standby. A new connection would then only wait too,
/// and leave one more server process behind. So a new connection is used only if the server says that the overdue
/// process does not wait in a COMMIT.
#[derive(Debug)]
pub struct WriterConnection {
    database: Database,
    current: Option<Connection>,
    overdue: Option<Connection>,
}

impl WriterConnection {
    /// The most connections that it has open at the same time.
    pub const MAX_CONNECTIONS: u32 = 2;

    /// Opens and checks the connection.
    ///
    /// # Errors
    /// Returns [`DbError::Unfit`] for a server that must not be used.
    pub async fn open(database: Database) -> Result<Self, DbError> {
        let mut writer = WriterConnection {
            database,
            current: None,
            overdue: None,
        };
        writer.get().await?;
        Ok(writer)
    }

    /// Returns the connection. Opens and checks it if there is none.
    ///
    /// # Errors
    /// Returns [`DbError::Unfit`] for a server that must not be used, and [`DbError::CommitPending`] while the overdue
    /// statement waits in its COMMIT.
    pub async fn get(&mut self) -> Result<&mut Connection, DbError> {
        let current = match self.current.take() {
            Some(current) => current,
            None => {
                let mut connection = self.database.connect_reserved(Role::Writer).await?;
                if let Some(overdue) = &self.overdue {
                    let process = [overdue.process];
                    let waiting = list_waiting_commits(&mut connection, &process);
                    if !waiting.await?.is_empty() {
                        return Err(DbError::CommitPending);
                    }
                }
                self.overdue = None;
                connection
            }
        };
        Ok(self.current.insert(current))
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.current = None;
    }

    /// Gives up waiting for a statement without cancelling it. A COMMIT that is cancelled while it waits for a
    /// synchronous standby reports success.
    pub fn abandon(&mut self) {
        if let Some(current) = self.current.take() {
            self.overdue.get_or_insert(current);
        }
    }

    /// Checks that the server can be used, and that it commits a write. Returns the database's clock. Replaces a
    /// connection at the end of its lifetime.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get), and fails if the record does not commit.
    pub async fn check(&mut self) -> Result<DateTime<Utc>, DbError> {
        if self.current.as_ref().is_some_and(Connection::is_retired) {
            self.close();
        }
        let connection = self.get().await?;
        check_fitness(connection, Role::Writer).await?;
        // Writes a record to the write-ahead log and nothing to a table. Its COMMIT waits as that of an event.
        let check = sqlx::query_scalar(
            "SELECT clock_timestamp() FROM pg_logical_emit_message(true, 'token-vendor', 'check')",
        );
        Ok(check.fetch_one(&mut **connection).await?)
    }
}

/// Handouts as one array per column, the parameters of a batch.
struct Columns<'a> {
    event_id: Vec<Uuid>,
    occurred_at: Vec<DateTime<Utc>>,
    user_id: Vec<&'a str>,
    token_id: Vec<Uuid>,
    client: Vec<&'a str>,
    request_id: Vec<&'a str>,
    source_ip: Vec<Option<&'a str>>,
    min_life: Vec<f64>,
}

impl<'a> Columns<'a> {
    fn of(rows: &[HandoutRow<'a>]) -> Self {
        fn column<'a, T>(rows: &[HandoutRow<'a>], value: fn(&HandoutRow<'a>) -> T) -> Vec<T> {
            rows.iter().map(value).collect()
        }
        Columns {
            event_id: column(rows, |row| row.event_id),
            occurred_at: column(rows, |row| row.occurred_at),
            user_id: column(rows, |row| row.user_id),
            token_id: column(rows, |row| row.token_id),
            client: column(rows, |row| row.caller.client.as_str()),
            request_id: column(rows, |row| row.caller.request_id.as_str()),
            source_ip: column(rows, |row| row.caller.source_ip.as_deref()),
            min_life: column(rows, |row| row.min_life.as_secs_f64()),
        }
    }
}
