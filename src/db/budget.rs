//! The hourly budget of calls to the provider, which all replicas share.

use sqlx::PgPool;

use super::DbError;

/// Counts the attempts in the current window of [`take_attempt`].
pub async fn count_attempts(pool: &PgPool) -> Result<i64, DbError> {
    let used = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(u.attempts), 0) AS "used!"
           FROM upstream_budget b, unnest(b.attempts, b.minutes) AS u(attempts, minute)
           WHERE b.id = 1 AND u.minute > floor(extract(epoch FROM clock_timestamp()) / 60) - 61"#
    )
    .fetch_one(pool)
    .await?;
    Ok(used)
}

/// Takes one attempt from the budget and returns how many are left. Returns `None` if the budget is spent.
///
/// Updates one row, whose lock orders concurrent calls. Counting rows instead would let a race exceed the limit. The
/// window is the current minute and the 60 before it, so it is never shorter than an hour.
pub async fn take_attempt(pool: &PgPool, hourly_limit: u32) -> Result<Option<i64>, DbError> {
    let used = sqlx::query_scalar!(
        r#"UPDATE upstream_budget b
           SET attempts[t.cell] = CASE WHEN b.minutes[t.cell] = t.minute THEN b.attempts[t.cell] ELSE 0 END + 1,
               minutes[t.cell] = t.minute
           FROM (SELECT n.minute, (n.minute % 61 + 1)::int AS cell
                 FROM (SELECT floor(extract(epoch FROM clock_timestamp()) / 60)::bigint AS minute) n) t
           WHERE b.id = 1
             AND (SELECT coalesce(sum(u.attempts), 0) FROM unnest(b.attempts, b.minutes) AS u(attempts, minute)
                  WHERE u.minute > t.minute - 61) < $1
           RETURNING (SELECT sum(u.attempts) FROM unnest(b.attempts, b.minutes) AS u(attempts, minute)
                      WHERE u.minute > t.minute - 61) AS "used!""#,
        i64::from(hourly_limit),
    )
    .fetch_optional(pool)
    .await?;
    Ok(used.map(|used| i64::from(hourly_limit) - used))
}
