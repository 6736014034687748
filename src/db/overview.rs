//! Figures per minute for the console's overview. They make the cost of a page view independent of the number of
//! events.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection, PgConnection};

use super::DbError;

/// The maximum number of minutes that one statement counts.
pub const ROLL_UP: u64 = 30;

/// The maximum number of clients in the figures.
pub const TOP_CLIENTS: i64 = 5;

/// The figures of one minute.
#[derive(Clone, Copy, Default, Debug)]
pub struct Minute {
    /// The start of the minute.
    pub minute: DateTime<Utc>,
    /// Handouts of tokens that were minted for the request.
    pub minted: i64,
    /// Handouts of tokens that were reused.
    pub reused: i64,
    /// Failed mints.
    pub failed: i64,
    /// Mints with an unknown outcome.
    pub unknown: i64,
    /// The median latency of the provider, in milliseconds.
    pub latency_p50: Option<i32>,
    /// The 95th percentile of the latency, in milliseconds.
    pub latency_p95: Option<i32>,
}

/// The handouts of one client.
#[derive(Clone, Debug)]
pub struct ClientFigures {
    /// The API key.
    pub client: String,
    /// The name, if the client is registered.
    pub name: Option<String>,
    /// Handouts of tokens that were minted for the request.
    pub minted: i64,
    /// Handouts of tokens that were reused.
    pub reused: i64,
}

/// The figures of the handouts.
#[derive(Clone, Default, Debug)]
pub struct Figures {
    /// The minutes of the last day, oldest first. If the cleanup did not run for over an hour, some are missing.
    pub minutes: Vec<Minute>,
    /// The clients with the most handouts of the last hour, at most [`TOP_CLIENTS`].
    pub top_clients: Vec<ClientFigures>,
}

/// Failed and unknown mints of the last hour with the same cause.
#[derive(Clone, Debug)]
pub struct MintFailures {
    /// The status of the provider's last response, if there was one.
    pub status: Option<i16>,
    /// The slug of the failure.
    pub failure: Option<String>,
    /// The number of mints.
    pub count: i64,
}

/// Counts the next minutes of the last day and stores them. Returns how many, at most [`ROLL_UP`].
///
/// The first run starts an hour ago. The newest counted minute ends before the horizon of the audit log, because later
/// events may still be committing. Also deletes minutes that are over a day old, and of clients over two hours old.
///
/// These are several statements, because Citus refuses a change of such tables inside a larger statement.
pub async fn roll_up_minutes(connection: &mut PgConnection) -> Result<u64, DbError> {
    let due = sqlx::query!(
        r#"WITH now AS (SELECT date_bin('1 minute', clock_timestamp(), 'epoch') AS now)
           SELECT n.now AS "now!", date_bin('1 minute', greatest(h.complete_until, n.now - interval '1 hour'), 'epoch') AS "until!",
                  greatest(n.now - interval '1 day', coalesce(
                      (SELECT max(minute) FROM handout_minutes) + interval '1 minute',
                      n.now - interval '1 hour')) AS "first!"
           FROM now n, audit_horizon h"#
    )
    .fetch_one(&mut *connection)
    .await?;
    let until = due
        .until
        .min(due.first + TimeDelta::minutes(ROLL_UP as i64));
    let mut counted = 0;
    if due.first < until {
        counted = count_minutes(connection, due.first, until).await?;
    }
    let old = due.now - TimeDelta::days(1);
    sqlx::query!("DELETE FROM handout_minutes WHERE minute < $1", old)
        .execute(&mut *connection)
        .await?;
    let old = due.now - TimeDelta::hours(2);
    sqlx::query!("DELETE FROM client_minutes WHERE minute < $1", old)
        .execute(connection)
        .await?;
    Ok(counted)
}

/// Counts and stores the minutes of this range. Returns how many were not stored yet.
async fn count_minutes(
    connection: &mut PgConnection,
    first: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<u64, DbError> {
    let counts = sqlx::query!(
        r#"SELECT minute AS "minute!", client, minted AS "minted!", reused AS "reused!", failed AS "failed!",
                  unknown AS "unknown!", latency_p50, latency_p95
           FROM count_minutes_by_client($1, $2)"#,
        first,
        until
    );
    let (by_client, minutes): (Vec<_>, Vec<_>) = counts
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .partition(|count| count.client.is_some());
    let mut transaction = connection.begin().await?;
    sqlx::query!(
        "INSERT INTO client_minutes (minute, client, minted, reused)
         SELECT unnest($1::timestamptz[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::bigint[])
         ON CONFLICT DO NOTHING",
        &by_client.iter().map(|count| count.minute).collect::<Vec<_>>(),
        &by_client.iter().filter_map(|count| count.client.clone()).collect::<Vec<_>>(),
        &by_client.iter().map(|count| count.minted).collect::<Vec<_>>(),
        &by_client.iter().map(|count| count.reused).collect::<Vec<_>>(),
    )
    .execute(&mut *transaction)
    .await?;
    let done = sqlx::query!(
        "INSERT INTO handout_minutes (minute, minted, reused, failed, unknown, latency_p50, latency_p95)
         SELECT unnest($1::timestamptz[]), unnest($2::bigint[]), unnest($3::bigint[]), unnest($4::bigint[]),
                unnest($5::bigint[]), unnest($6::integer[]), unnest($7::integer[])
         ON CONFLICT DO NOTHING",
        &minutes.iter().map(|count| count.minute).collect::<Vec<_>>(),
        &minutes.iter().map(|count| count.minted).collect::<Vec<_>>(),
        &minutes.iter().map(|count| count.reused).collect::<Vec<_>>(),
        &minutes.iter().map(|count| count.failed).collect::<Vec<_>>(),
        &minutes.iter().map(|count| count.unknown).collect::<Vec<_>>(),
        &minutes.iter().map(|count| count.latency_p50).collect::<Vec<_>>() as &[Option<i32>],
        &minutes.iter().map(|count| count.latency_p95).collect::<Vec<_>>() as &[Option<i32>],
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(done.rows_affected())
}

/// Finds the figures of the last day.
///
/// Reads the stored minutes and counts the minutes since, up to an hour.
pub async fn find_figures(connection: &mut PgConnection) -> Result<Figures, DbError> {
    let rows = sqlx::query!(
        r#"WITH now AS (SELECT date_bin('1 minute', clock_timestamp(), 'epoch') AS now),
                rest AS (SELECT greatest(n.now - interval '1 hour',
                                         (SELECT max(minute) FROM handout_minutes) + interval '1 minute') AS first,
                                n.now + interval '1 minute' AS until
                         FROM now n),
                live AS MATERIALIZED (SELECT m.* FROM rest r, count_minutes_by_client(r.first, r.until) m),
                top AS (SELECT client, sum(minted)::bigint AS minted, sum(reused)::bigint AS reused
                        FROM (SELECT client, minted, reused FROM client_minutes c, now n
                              WHERE c.minute > n.now - interval '1 hour'
                              UNION ALL
                              SELECT client, minted, reused FROM live WHERE client IS NOT NULL) c
                        GROUP BY client ORDER BY sum(minted) + sum(reused) DESC, client LIMIT $1)
           SELECT minute, NULL AS client, NULL AS name, minted AS "minted!", reused AS "reused!", failed AS "failed!",
                  unknown AS "unknown!", latency_p50, latency_p95
           FROM (SELECT minute, minted, reused, failed, unknown, latency_p50, latency_p95
                 FROM handout_minutes h, now n WHERE h.minute > n.now - interval '1 day'
                 UNION ALL
                 SELECT minute, minted, reused, failed, unknown, latency_p50, latency_p95 FROM live WHERE client IS NULL) m
           UNION ALL
           SELECT NULL, client, (SELECT c.name FROM clients c WHERE c.api_key = top.client), minted, reused, 0, 0, NULL, NULL
           FROM top
           ORDER BY minute"#,
        TOP_CLIENTS,
    )
    .fetch_all(connection)
    .await?;
    let mut figures = Figures::default();
    for row in rows {
        match (row.minute, row.client) {
            (Some(minute), _) => figures.minutes.push(Minute {
                minute,
                minted: row.minted,
                reused: row.reused,
                failed: row.failed,
                unknown: row.unknown,
                latency_p50: row.latency_p50,
                latency_p95: row.latency_p95,
            }),
            (None, client) => figures.top_clients.push(ClientFigures {
                client: client.unwrap_or_default(),
                name: row.name,
                minted: row.minted,
                reused: row.reused,
            }),
        }
    }
    figures
        .top_clients
        .sort_by_key(|client| -(client.minted + client.reused));
    Ok(figures)
}

/// Lists the failed and unknown mints of the last hour by cause, most frequent first, at most 10 causes.
pub async fn list_mint_failures(
    connection: &mut PgConnection,
) -> Result<Vec<MintFailures>, DbError> {
    let failures = sqlx::query_as!(
        MintFailures,
        r#"SELECT upstream_status AS status, failure, count(*) AS "count!"
           FROM mints WHERE outcome IN ('failed', 'unknown') AND finished_at > clock_timestamp() - interval '1 hour'
           GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 10"#
    )
    .fetch_all(connection)
    .await?;
    Ok(failures)
}
