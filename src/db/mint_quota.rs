//! The hourly quota of mints of a client, which all replicas share. The row of the client counts them.

use sqlx::PgConnection;

use super::DbError;

/// The mints of a client in the current minute and the 60 before it.
#[derive(Clone, Copy, Debug)]
pub struct MintCount {
    /// The number of mints.
    pub mints: i64,
    /// The seconds until the oldest of them no longer counts.
    pub oldest_ends_in: i64,
}

/// Counts the mints of a client that [`take_mint`] counted.
pub async fn count_mints(
    connection: &mut PgConnection,
    api_key: &str,
) -> Result<MintCount, DbError> {
    let count = sqlx::query_as!(
        MintCount,
        r#"SELECT coalesce(sum(u.mints), 0) AS "mints!",
                  ceil(coalesce((min(u.minute) + 61) * 60 - extract(epoch FROM clock_timestamp()), 0))::bigint
                      AS "oldest_ends_in!"
           FROM clients c, unnest(c.mint_counts, c.mint_minutes) AS u(mints, minute)
           WHERE c.api_key = $1 AND u.mints > 0
             AND u.minute > floor(extract(epoch FROM clock_timestamp()) / 60) - 61"#,
        api_key
    );
    Ok(count.fetch_one(connection).await?)
}

/// Takes one mint from the hourly quota of a client, over all replicas. Returns false if the quota is spent.
///
/// The row lock orders concurrent calls, as in [`take_attempt`](super::budget::take_attempt).
pub async fn take_mint(
    connection: &mut PgConnection,
    api_key: &str,
    hourly_limit: i32,
) -> Result<bool, DbError> {
    let taken = sqlx::query!(
        "UPDATE clients c
         SET mint_counts[t.cell] = CASE WHEN c.mint_minutes[t.cell] = t.minute THEN c.mint_counts[t.cell] ELSE 0 END + 1,
             mint_minutes[t.cell] = t.minute
         FROM (SELECT n.minute, (n.minute % 61 + 1)::int AS cell
               FROM (SELECT floor(extract(epoch FROM statement_timestamp()) / 60)::bigint AS minute) n) t
         WHERE c.api_key = $1
           AND (SELECT coalesce(sum(u.mints), 0) FROM unnest(c.mint_counts, c.mint_minutes) AS u(mints, minute)
                WHERE u.minute > t.minute - 61) < $2",
        api_key,
        i64::from(hourly_limit),
    );
    Ok(taken.execute(connection).await?.rows_affected() == 1)
}
