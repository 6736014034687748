//! Invalidates tokens. A handout that starts after the commit never contains an invalidated token.

use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{Caller, EventKind, InvalidationReason};

/// A query that invalidates valid tokens of a user, empties their ciphertexts and inserts an event for each.
macro_rules! invalidate_tokens {
    ($condition:literal, $user_id:expr, $reason:expr, $caller:expr $(, $value:expr)*) => {
        sqlx::query!(
            "WITH invalidated AS (
                 UPDATE tokens
                 SET is_valid = false, invalidated_at = clock_timestamp(), invalidation_reason = $2, ciphertext = ''
                 WHERE user_id = $1 AND is_valid AND ends_at > clock_timestamp()" + $condition + "
                 RETURNING *
             )
             INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip,
                                       country, bank, access, token_id, fingerprint, detail)
             SELECT gen_random_uuid(), i.invalidated_at, $3, i.user_id, $4, $5, $6, nullif(i.country, ''),
                    nullif(i.bank, ''), i.access, i.id, i.fingerprint, jsonb_build_object('reason', $2::text)
             FROM invalidated i",
            $user_id,
            $reason.name(),
            EventKind::TokenInvalidated.name(),
            $caller.client,
            $caller.request_id,
            $caller.source_ip
            $(, $value)*
        )
    };
}

/// Invalidates a token by id and clears the pointer of its slot. Returns whether this call invalidated it.
///
/// A token that was invalidated or expired before stays as it is. Uses a transaction of several statements, so the
/// caller must not cancel it.
pub async fn invalidate_token(
    pool: &PgPool,
    id: Uuid,
    reason: InvalidationReason,
    caller: &Caller,
) -> Result<bool, DbError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "callers run this in a task that nobody cancels"
    )]
    let mut tx = pool.begin().await?;
    let key = sqlx::query!(
        "SELECT user_id, country, bank, access FROM tokens WHERE id = $1",
        id
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(key) = key else { return Ok(false) };
    // Lock order: the slot, then its token. The UPDATE checks the token again under the lock.
    sqlx::query!(
        "SELECT FROM slots WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4 FOR UPDATE",
        key.user_id, key.country, key.bank, key.access
    )
    .fetch_optional(&mut *tx)
    .await?;
    let invalidated = invalidate_tokens!(" AND id = $7", key.user_id, reason, caller, id)
        .execute(&mut *tx)
        .await?;
    sqlx::query!(
        "UPDATE slots SET usable_until = '-infinity'
         WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4 AND token_id = $5
           AND usable_until > '-infinity'",
        key.user_id,
        key.country,
        key.bank,
        key.access,
        id
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(invalidated.rows_affected() == 1)
}

/// Invalidates every valid token of a user and returns how many it invalidated.
///
/// A mint under way records its token as invalidated too. Uses a transaction of several statements, so the caller must
/// not cancel it.
pub async fn invalidate_user_tokens(
    pool: &PgPool,
    user_id: &str,
    reason: InvalidationReason,
    caller: &Caller,
) -> Result<u64, DbError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "callers run this in a task that nobody cancels"
    )]
    let mut tx = pool.begin().await?;
    // The locks on the slots keep others from changing the tokens of this user.
    sqlx::query!(
        "WITH locked AS (
             SELECT country, bank, access FROM slots WHERE user_id = $1
             ORDER BY country, bank, access FOR UPDATE
         )
         UPDATE slots s SET void_epoch = s.lease_epoch, void_reason = $2, usable_until = '-infinity'
         FROM locked l
         WHERE s.user_id = $1 AND s.country = l.country AND s.bank = l.bank AND s.access = l.access",
        user_id,
        reason.name(),
    )
    .execute(&mut *tx)
    .await?;
    // A second statement has a newer snapshot. It sees the tokens of mints that finished while the first one waited
    // for the locks.
    let invalidated = invalidate_tokens!("", user_id, reason, caller)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(invalidated.rows_affected())
}
