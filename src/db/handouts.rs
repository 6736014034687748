//! The statement that decides handouts: a batch of them in, those that were valid and are now on
//! record out.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use uuid::Uuid;

use super::DbError;
use crate::model::{Caller, EventKind};

/// The statement that decides handouts: it writes the events of those whose token may be handed out.
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
                       AND t.ends_at > greatest(clock_timestamp(), $9) + make_interval(secs => r.min_life)
                     "#
                + $on_conflict
                + $returning,
            $($value),+
        )
    };
}

/// The same of a batch; its one row is an array of the ids that it wrote.
macro_rules! insert_batch {
    ($on_conflict:literal, $columns:ident, $lower_bound:ident) => {
        insert!(
            "WITH recorded AS (",
            r#"unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::text[],
                      $8::float8[])"#,
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

/// The wish to hand out a token that is on record.
#[derive(Debug)]
pub struct HandoutRow<'a> {
    /// The id of its event; the same in a replay.
    pub event_id: Uuid,
    /// When, by our estimate of the database's clock; the same in a replay.
    pub occurred_at: DateTime<Utc>,
    /// The token's user.
    pub user_id: &'a str,
    /// The token.
    pub token_id: Uuid,
    /// To whom.
    pub caller: &'a Caller,
    /// The life that it must have left.
    pub min_life: Duration,
}

/// Writes the events of those handouts whose token may be handed out at this moment, and returns
/// their ids: once it has returned they are durable. `floor` is the earliest time that it can be.
///
/// The events must be new. Their being so is what makes this cheaper than [`replay_handouts`].
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

/// One alone, as where there is little to do: without arrays it is a twentieth sooner.
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

/// The same for events of which some may be on record already. Those that are, are left as they are
/// and not named; what is being written at this moment is waited for.
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

/// Which of those handouts are on record: after a replay, whose own answer names only what the
/// first try had not written.
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

/// The connection that handouts are written through, opened when it is needed.
#[derive(Debug)]
pub struct WriterConnection {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
}

impl WriterConnection {
    /// Opens nothing yet.
    pub fn new(options: PgConnectOptions) -> Self {
        WriterConnection {
            options,
            connection: None,
        }
    }

    /// The connection, opened if there is none.
    pub async fn get(&mut self) -> Result<&mut PgConnection, DbError> {
        if self.connection.is_none() {
            self.connection = Some(self.options.connect().await?);
        }
        Ok(self.connection.as_mut().expect("it was just opened"))
    }

    /// Lets go of a connection whose state is not known. What it was doing is not cancelled: a
    /// COMMIT that is cancelled while it waits for a standby would report success.
    pub fn abandon(&mut self) {
        self.connection = None;
    }
}

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
