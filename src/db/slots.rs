//! The slot of a combination: which token is handed out, and who may mint the next.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;

use super::DbError;
use super::tokens::{TokenRow, read_fingerprint};
use crate::model::{Combination, Failure, Token};

/// A token as it is stored: the record, and the secret still sealed.
#[derive(Debug)]
pub struct StoredToken {
    /// The record.
    pub token: Token,
    /// What [`KeyRing::decrypt`](crate::crypto::KeyRing::decrypt) takes.
    pub ciphertext: Vec<u8>,
}

impl StoredToken {
    /// The life left at that time.
    pub fn life(&self, at: DateTime<Utc>) -> TimeDelta {
        self.token.ends_at - at
    }
}

/// What a mint needs to know of a combination before it claims one.
#[derive(Debug)]
pub struct Slot {
    /// The database's clock at the reading.
    pub now: DateTime<Utc>,
    /// The later of that and `floor`: what tokens are judged by.
    pub judged_at: DateTime<Utc>,
    /// The token that is handed out, if it is valid, however short its life.
    pub pointer: Option<StoredToken>,
    /// The pointer leads to a token that was ended, or another valid token has the life asked
    /// for: [`point_slot`] mends it.
    pub wants_pointing: bool,
    /// The time of the token pointed to is over.
    pub is_stale: bool,
    /// How many mints have ended in a new pointer.
    pub minted_seq: i64,
    /// Somebody holds the lease.
    pub is_leased: bool,
    /// The failure to repeat while it cools down.
    pub cooling: Option<Failure>,
}

/// Reads the slot and its token, judging tokens by the later of the database's clock and `floor`,
/// and asking `min_life` of those to point to.
pub async fn find_slot(
    pool: &PgPool,
    combination: &Combination,
    lower_bound: DateTime<Utc>,
    min_life: Duration,
) -> Result<Slot, DbError> {
    let row = sqlx::query!(
        r#"SELECT c.now AS "now!", c.judged AS "judged_at!",
                  coalesce(s.usable_until > '-infinity' AND s.usable_until <= c.judged, false) AS "is_stale!",
                  coalesce(s.minted_seq, 0) AS "minted_seq!",
                  coalesce(s.lease_until > c.now, false) AS "is_leased!",
                  CASE WHEN s.cooldown_until > c.now THEN s.failure END AS failure,
                  (t.id IS NULL AND coalesce(s.usable_until > c.judged, false))
                  OR ((t.id IS NULL OR t.ends_at <= c.judged + make_interval(secs => $6))
                      AND EXISTS (SELECT FROM tokens o
                                  WHERE o.user_id = $1 AND o.country = $2 AND o.bank = $3 AND o.access = $4
                                    AND o.is_valid AND o.ends_at > c.judged + make_interval(secs => $6)))
                    AS "wants_pointing!",
                  t.id AS "id?", t.lifetime AS "lifetime?", t.issued_at AS "issued_at?",
                  t.expiration AS "expiration?", t.ends_at AS "ends_at?",
                  t.fingerprint AS "fingerprint?", t.ciphertext AS "ciphertext?"
           FROM (SELECT n.now, greatest(n.now, $5) AS judged
                 FROM (SELECT clock_timestamp() AS now) n) c
           LEFT JOIN slots s ON s.user_id = $1 AND s.country = $2 AND s.bank = $3 AND s.access = $4
           LEFT JOIN tokens t ON t.user_id = $1 AND t.id = s.token_id
                             AND t.is_valid AND t.superseded_at IS NULL AND t.ends_at > c.judged"#,
        &*combination.user_id,
        combination.country_key(),
        combination.bank_key(),
        combination.access.bits(),
        lower_bound,
        min_life.as_secs_f64(),
    )
    .fetch_one(pool)
    .await?;
    let pointer = match (row.id, row.ciphertext, row.fingerprint) {
        (Some(id), Some(ciphertext), Some(fingerprint)) => Some(StoredToken {
            token: Token {
                id,
                combination: combination.clone(),
                expiration: row.expiration.unwrap_or_default(),
                ends_at: row.ends_at.unwrap_or_default(),
                issued_at: row.issued_at.unwrap_or_default(),
                lifetime: row.lifetime.unwrap_or_default(),
                is_valid: true,
                invalidated_at: None,
                invalidation_reason: None,
                fingerprint: read_fingerprint(&fingerprint)?,
            },
            ciphertext,
        }),
        _ => None,
    };
    let cooling = match row.failure {
        None => None,
        Some(failure) => {
            Some(
                serde_json::from_value(failure).map_err(|error| DbError::Unreadable {
                    table: "slots",
                    what: error.to_string(),
                })?,
            )
        }
    };
    Ok(Slot {
        now: row.now,
        judged_at: row.judged_at,
        pointer,
        wants_pointing: row.wants_pointing,
        is_stale: row.is_stale,
        minted_seq: row.minted_seq,
        is_leased: row.is_leased,
        cooling,
    })
}

/// Points the slot to a valid token of the combination with at least `min_life` left, and
/// returns it; where there is none, only takes back a pointer to a token that has ended.
///
/// Several statements in a transaction: run it where nothing cancels it.
pub async fn point_slot(
    pool: &PgPool,
    combination: &Combination,
    lower_bound: DateTime<Utc>,
    min_life: Duration,
) -> Result<Option<StoredToken>, DbError> {
    let (country, bank) = (combination.country_key(), combination.bank_key());
    let (user_id, access) = (&combination.user_id, combination.access.bits());
    #[expect(
        clippy::disallowed_methods,
        reason = "callers run this in a task that nobody cancels"
    )]
    let mut tx = pool.begin().await?;
    // Lock order: the slot, then its tokens.
    let slot = sqlx::query!(
        "SELECT token_id FROM slots
         WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4 FOR UPDATE",
        user_id,
        country,
        bank,
        access
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(slot) = slot else { return Ok(None) };
    // The one that is handed out comes first if it will do.
    let best = sqlx::query!(
        r#"SELECT id, user_id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                  fingerprint, ciphertext, superseded_at IS NULL AS "is_pointed!"
           FROM tokens
           WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4
             AND is_valid AND ends_at > greatest(clock_timestamp(), $5) + make_interval(secs => $6)
           ORDER BY (superseded_at IS NULL AND id = $7) DESC, ends_at DESC LIMIT 1 FOR UPDATE"#,
        user_id,
        country,
        bank,
        access,
        lower_bound,
        min_life.as_secs_f64(),
        slot.token_id,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(best) = best else {
        sqlx::query!(
            "UPDATE slots s SET usable_until = '-infinity'
             WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4
               AND NOT EXISTS (SELECT FROM tokens t WHERE t.user_id = $1 AND t.id = s.token_id
                                 AND t.is_valid AND t.superseded_at IS NULL)",
            user_id,
            country,
            bank,
            access
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        return Ok(None);
    };
    sqlx::query!(
        "UPDATE slots SET token_id = $5, usable_until = $6
         WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4",
        user_id,
        country,
        bank,
        access,
        best.id,
        best.ends_at,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "UPDATE tokens
         SET superseded_at = CASE WHEN id = $2 THEN NULL ELSE coalesce(superseded_at, clock_timestamp()) END
         WHERE user_id = $1 AND id IN ($2, $3)",
        user_id,
        best.id,
        slot.token_id,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    let token = TokenRow {
        id: best.id,
        user_id: best.user_id,
        country: best.country,
        bank: best.bank,
        access: best.access,
        lifetime: best.lifetime,
        issued_at: best.issued_at,
        expiration: best.expiration,
        ends_at: best.ends_at,
        is_valid: true,
        invalidated_at: None,
        invalidation_reason: None,
        fingerprint: best.fingerprint,
    };
    Ok(Some(StoredToken {
        token: token.try_into()?,
        ciphertext: best.ciphertext,
    }))
}
