//! The hourly budget of calls to the provider, which all replicas share.

use sqlx::PgConnection;

use super::DbError;
use super::mints::Claim;

/// Counts the attempts in the current window of [`take_attempt`].
pub async fn count_attempts(connection: &mut PgConnection) -> Result<i64, DbError> {
    let used = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(u.attempts), 0) AS "used!"
           FROM upstream_budget b, unnest(b.attempts, b.minutes) AS u(attempts, minute)
           WHERE b.id = 1 AND u.minute > floor(extract(epoch FROM clock_timestamp()) / 60) - 61"#
    )
    .fetch_one(connection)
    .await?;
    Ok(used)
}

/// The result of [`take_attempt`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// The attempt is counted, and the record of the mint shows that it starts.
    Started,
    /// The budget is spent. The attempt must not start.
    BudgetSpent,
    /// The quota of the client is spent. The attempt must not start.
    QuotaSpent,
    /// Another replica closed the mint. The attempt must not start.
    Closed,
}

/// Takes one attempt from the budget and records in the mint that it starts, in one statement.
///
/// Updates one row of the budget, whose lock orders concurrent calls. Counting rows instead would let a race exceed the
/// limit. The window is the current minute and the 60 before it, so it is never shorter than an hour. The mint is
/// updated as by [`start_attempt`](super::mints::start_attempt).
pub async fn take_attempt(
    connection: &mut PgConnection,
    hourly_limit: u32,
    claim: &Claim,
    attempt: i16,
) -> Result<Attempt, DbError> {
    let is_started = sqlx::query_scalar!(
        r#"WITH taken AS (
               UPDATE upstream_budget b
               SET attempts[t.cell] = CASE WHEN b.minutes[t.cell] = t.minute THEN b.attempts[t.cell] ELSE 0 END + 1,
                   minutes[t.cell] = t.minute
               FROM (SELECT n.minute, (n.minute % 61 + 1)::int AS cell
                     FROM (SELECT floor(extract(epoch FROM clock_timestamp()) / 60)::bigint AS minute) n) t
               WHERE b.id = 1
                 AND (SELECT coalesce(sum(u.attempts), 0) FROM unnest(b.attempts, b.minutes) AS u(attempts, minute)
                      WHERE u.minute > t.minute - 61) < $1
               RETURNING b.id
           ), started AS (
               UPDATE mints m SET started_attempts = $4 FROM taken
               WHERE m.user_id = $2 AND m.id = $3 AND m.outcome = 'open'
               RETURNING m.id
           )
           SELECT EXISTS (SELECT FROM started) AS "is_started!" FROM taken"#,
        i64::from(hourly_limit),
        &*claim.combination.user_id,
        claim.mint_id,
        attempt,
    )
    .fetch_optional(connection)
    .await?;
    Ok(match is_started {
        Some(true) => Attempt::Started,
        Some(false) => Attempt::Closed,
        None => Attempt::BudgetSpent,
    })
}
