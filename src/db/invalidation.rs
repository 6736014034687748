//! Ending tokens before their time. From the commit on, no handout of theirs passes.

use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{Caller, EventKind, InvalidationReason};

/// Ends the token of that id, with its event: its secret is wiped and its slot points nowhere.
/// Returns whether this call ended it; a token that has ended, by whatever cause, stays as it is.
///
/// Several statements in a transaction: run it where nothing cancels it.
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
    // Lock order: the slot, then its token. What the token is, is looked at again under the lock.
    sqlx::query!(
        "SELECT FROM slots WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4 FOR UPDATE",
        key.user_id, key.country, key.bank, key.access
    )
    .fetch_optional(&mut *tx)
    .await?;
    let ended = sqlx::query!(
        "WITH ended AS (
             UPDATE tokens
             SET is_valid = false, invalidated_at = clock_timestamp(), invalidation_reason = $3, ciphertext = ''
             WHERE user_id = $1 AND id = $2 AND is_valid AND ends_at > clock_timestamp()
             RETURNING *
         )
         INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, fingerprint, detail)
         SELECT $4, e.invalidated_at, $5, e.user_id, $6, $7, $8, nullif(e.country, ''), nullif(e.bank, ''),
                e.access, e.id, e.fingerprint, jsonb_build_object('reason', $3::text)
         FROM ended e",
        key.user_id,
        id,
        reason.name(),
        Uuid::now_v7(),
        EventKind::TokenInvalidated.name(),
        caller.client,
        caller.request_id,
        caller.source_ip,
    )
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
    Ok(ended.rows_affected() == 1)
}

/// Ends every valid token of a user, with an event each, and has the mints that are under way end
/// as invalidated too. Returns how many it ended.
///
/// Several statements in a transaction: run it where nothing cancels it.
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
    // With its slots locked nobody else moves this user's tokens.
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
    // A statement of its own: its snapshot has the tokens of mints that ended while the slots were
    // waited for.
    let ended = sqlx::query!(
        "WITH ended AS (
             UPDATE tokens
             SET is_valid = false, invalidated_at = clock_timestamp(), invalidation_reason = $2, ciphertext = ''
             WHERE user_id = $1 AND is_valid AND ends_at > clock_timestamp()
             RETURNING *
         )
         INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, fingerprint, detail)
         SELECT gen_random_uuid(), e.invalidated_at, $3, e.user_id, $4, $5, $6, nullif(e.country, ''),
                nullif(e.bank, ''), e.access, e.id, e.fingerprint, jsonb_build_object('reason', $2::text)
         FROM ended e",
        user_id,
        reason.name(),
        EventKind::TokenInvalidated.name(),
        caller.client,
        caller.request_id,
        caller.source_ip,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(ended.rows_affected())
}
