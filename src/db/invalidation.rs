//! Invalidates tokens in batches. A handout that starts after the commit of a batch never contains a token of it.
//!
//! A token that is recorded as valid is invalidated whatever its `ends_at` is. Otherwise a token that a wrong clock
//! shows as expired would be valid again when the clock is corrected.

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::DbError;
use crate::model::{Caller, EventKind, Fingerprint, InvalidationReason};

/// The maximum number of slots or tokens that one transaction changes. It takes about 0.2 s, far below
/// `statement_timeout`.
const BATCH: i64 = 2_000;

/// The key of a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenKey {
    /// The id of the token.
    pub id: Uuid,
    /// The user.
    pub user_id: String,
}

/// The key of a slot of a known user. `Default` is before all keys.
#[derive(Clone, Debug)]
pub struct SlotKey {
    country: String,
    bank: String,
    access: i16,
}

impl Default for SlotKey {
    fn default() -> Self {
        SlotKey {
            country: String::new(),
            bank: String::new(),
            access: -1,
        }
    }
}

/// Voids the next `BATCH` slots of a user after `after`, and invalidates their current tokens.
///
/// A voided slot hands out no token whose mint began before: a mint under way records its token as invalidated, and the
/// slot is not pointed to an older token. Returns the number of invalidated tokens, and the key to continue after, or
/// `None` after the last slot. Skips slots that are voided already, so that a repeated call continues. Uses a
/// transaction of several statements, so the caller must not cancel it.
pub async fn void_slots(
    connection: &mut PgConnection,
    user_id: &str,
    after: &SlotKey,
    reason: InvalidationReason,
    caller: &Caller,
) -> Result<(u64, Option<SlotKey>), DbError> {
    let mut tx = connection.begin().await?;
    // The locks on the slots keep others from changing the tokens of their combinations.
    let slots = sqlx::query!(
        "SELECT country, bank, access, token_id FROM slots
         WHERE user_id = $1 AND (country, bank, access) > ($2, $3, $4)
           AND (void_epoch < lease_epoch OR usable_until > '-infinity')
         ORDER BY country, bank, access LIMIT $5 FOR UPDATE",
        user_id,
        after.country,
        after.bank,
        after.access,
        BATCH,
    )
    .fetch_all(&mut *tx)
    .await?;
    let ids: Vec<Uuid> = slots.iter().filter_map(|slot| slot.token_id).collect();
    let (countries, (banks, accesses)): (Vec<_>, (Vec<_>, Vec<_>)) = slots
        .iter()
        .map(|slot| (slot.country.as_str(), (slot.bank.as_str(), slot.access)))
        .unzip();
    sqlx::query!(
        "UPDATE slots s SET void_epoch = s.lease_epoch, void_reason = $2, usable_until = '-infinity'
         FROM unnest($3::text[], $4::text[], $5::int2[]) AS k(country, bank, access)
         WHERE s.user_id = $1 AND s.country = k.country AND s.bank = k.bank AND s.access = k.access",
        user_id,
        reason.name(),
        &countries as &[&str],
        &banks as &[&str],
        &accesses,
    )
    .execute(&mut *tx)
    .await?;
    // A later statement has a newer snapshot than the locks. It sees the tokens of mints that finished while the first
    // statement waited.
    let invalidated = invalidate_locked(&mut tx, user_id, &ids, reason, caller).await?;
    tx.commit().await?;
    let is_full = slots.len() as i64 == BATCH;
    let last = slots.into_iter().next_back().filter(|_| is_full);
    let last = last.map(|slot| SlotKey {
        country: slot.country,
        bank: slot.bank,
        access: slot.access,
    });
    Ok((invalidated, last))
}

/// Lists the token if it is recorded as valid.
pub async fn list_token(connection: &mut PgConnection, id: Uuid) -> Result<Vec<TokenKey>, DbError> {
    let keys = sqlx::query_as!(
        TokenKey,
        "SELECT user_id, id FROM tokens WHERE id = $1 AND is_valid",
        id
    );
    Ok(keys.fetch_all(connection).await?)
}

/// Lists at most `BATCH` tokens of a user that are recorded as valid: superseded ones, and those issued before the
/// time.
///
/// After [`void_slots`], a token that is neither was minted later.
pub async fn list_tokens_of_user(
    connection: &mut PgConnection,
    user_id: &str,
    issued_before: DateTime<Utc>,
) -> Result<Vec<TokenKey>, DbError> {
    // The order is the one of the index `tokens_valid`.
    let keys = sqlx::query_as!(
        TokenKey,
        "SELECT user_id, id FROM tokens
         WHERE user_id = $1 AND is_valid AND (superseded_at IS NOT NULL OR issued_at < $2)
         ORDER BY country, bank, access, ends_at LIMIT $3",
        user_id,
        issued_before,
        BATCH,
    );
    Ok(keys.fetch_all(connection).await?)
}

/// Lists at most `BATCH` tokens with a fingerprint that are recorded as valid, by user.
pub async fn list_tokens_of_string(
    connection: &mut PgConnection,
    fingerprint: Fingerprint,
) -> Result<Vec<TokenKey>, DbError> {
    let keys = sqlx::query_as!(
        TokenKey,
        "SELECT user_id, id FROM tokens
         WHERE fingerprint = $1 AND is_valid
         ORDER BY user_id, id LIMIT $2",
        fingerprint.to_string(),
        BATCH,
    );
    Ok(keys.fetch_all(connection).await?)
}

/// Invalidates these tokens of a user, and resets the slots that point to them. Returns how many it invalidated.
///
/// A token that is recorded as invalid stays as it is. Uses a transaction of several statements, so the
/// caller must not cancel it.
pub async fn invalidate_tokens(
    connection: &mut PgConnection,
    user_id: &str,
    ids: &[Uuid],
    reason: InvalidationReason,
    caller: &Caller,
) -> Result<u64, DbError> {
    let mut tx = connection.begin().await?;
    // Lock order: the slots in key order, then their tokens.
    sqlx::query!(
        "SELECT FROM slots
         WHERE user_id = $1
           AND (country, bank, access) IN (SELECT country, bank, access FROM tokens WHERE user_id = $1 AND id = ANY($2))
         ORDER BY country, bank, access FOR UPDATE",
        user_id,
        ids
    )
    .fetch_all(&mut *tx)
    .await?;
    let invalidated = invalidate_locked(&mut tx, user_id, ids, reason, caller).await?;
    sqlx::query!(
        "UPDATE slots SET usable_until = '-infinity'
         WHERE user_id = $1 AND token_id = ANY($2) AND usable_until > '-infinity'
           AND (country, bank, access) IN (SELECT country, bank, access FROM tokens WHERE user_id = $1 AND id = ANY($2))",
        user_id,
        ids
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(invalidated)
}

/// Invalidates those of these tokens of a user that are recorded as valid, empties their ciphertexts and inserts an event for each.
/// Returns how many it invalidated. The caller holds the locks on their slots.
async fn invalidate_locked(
    connection: &mut PgConnection,
    user_id: &str,
    ids: &[Uuid],
    reason: InvalidationReason,
    caller: &Caller,
) -> Result<u64, DbError> {
    let invalidated = sqlx::query!(
        "WITH invalidated AS (
             UPDATE tokens
             SET is_valid = false, invalidated_at = greatest(statement_timestamp(), issued_at), invalidation_reason = $2, ciphertext = ''
             WHERE user_id = $1 AND is_valid AND id = ANY($7)
             RETURNING *
         )
         INSERT INTO audit_events (kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, fingerprint, detail)
         SELECT $3, i.user_id, $4, $5, $6, nullif(i.country, ''),
                nullif(i.bank, ''), i.access, i.id, i.fingerprint, jsonb_build_object('reason', $2::text)
         FROM invalidated i",
        user_id,
        reason.name(),
        EventKind::TokenInvalidated.name(),
        caller.client,
        caller.request_id,
        caller.source_ip,
        ids,
    )
    .execute(connection)
    .await?;
    Ok(invalidated.rows_affected())
}
