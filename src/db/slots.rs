//! Slots. The slot of a combination points to its current token and holds its mint lease.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::DbError;
use super::tokens::read_fingerprint;
use crate::model::{Combination, Failure, Token};

/// A token record with its encrypted token string.
#[derive(Debug)]
pub struct StoredToken {
    /// The record.
    pub token: Token,
    /// The input of [`KeyRing::decrypt`](crate::crypto::KeyRing::decrypt).
    pub ciphertext: Vec<u8>,
    /// The time at which the mint of the token was claimed. Its life counts from this time.
    pub started_at: Option<DateTime<Utc>>,
}

impl StoredToken {
    /// Returns the remaining life: until `ends_at`, or by the service's clock, whichever is shorter. It is negative for
    /// an expired token.
    ///
    /// The id of a mint contains the service's time. A token therefore also ends if a wrong database clock dated it too
    /// late, or if another replica dated it by a higher lower bound.
    pub fn life(&self, now: DateTime<Utc>, service_time: DateTime<Utc>) -> TimeDelta {
        let Token { id, ends_at, .. } = self.token;
        let minted_at = id.get_timestamp().and_then(|timestamp| {
            let (seconds, nanoseconds) = timestamp.to_unix();
            DateTime::from_timestamp(seconds.try_into().ok()?, nanoseconds)
        });
        let by_service = minted_at
            .zip(self.started_at)
            .map(|(minted_at, started_at)| (ends_at - started_at) - (service_time - minted_at));
        (ends_at - now).min(by_service.unwrap_or(TimeDelta::MAX))
    }
}

/// A valid token of a known combination, as [`find_slot`] and [`point_slot`] read it.
struct PointerRow {
    id: Uuid,
    lifetime: i32,
    issued_at: DateTime<Utc>,
    expiration: DateTime<Utc>,
    ends_at: DateTime<Utc>,
    fingerprint: String,
    ciphertext: Vec<u8>,
    started_at: Option<DateTime<Utc>>,
}

impl PointerRow {
    fn into_stored(self, combination: &Combination) -> Result<StoredToken, DbError> {
        Ok(StoredToken {
            token: Token {
                id: self.id,
                combination: combination.clone(),
                expiration: self.expiration,
                ends_at: self.ends_at,
                issued_at: self.issued_at,
                lifetime: self.lifetime,
                is_valid: true,
                invalidated_at: None,
                invalidation_reason: None,
                fingerprint: read_fingerprint(&self.fingerprint)?,
            },
            ciphertext: self.ciphertext,
            started_at: self.started_at,
        })
    }
}

/// The state of a combination that a flight reads before it claims a mint.
#[derive(Debug)]
pub struct Slot {
    /// The database's clock at the time of the read.
    pub database_time: DateTime<Utc>,
    /// The later of `database_time` and the lower bound of the clock.
    pub now: DateTime<Utc>,
    /// The current token if it is valid, even if little of its life remains.
    pub pointer: Option<StoredToken>,
    /// True if [`point_slot`] can change the pointer: the current token was invalidated, or another token that may be
    /// pointed to has the minimum life.
    pub wants_pointing: bool,
    /// True if the current token expired.
    pub is_stale: bool,
    /// The number of mints that changed the pointer.
    pub minted_seq: i64,
    /// True if a mint holds the lease.
    pub is_leased: bool,
    /// The failure to repeat during the cooldown.
    pub cooling: Option<Failure>,
}

/// Reads the slot of a combination and its current token.
///
/// Judges tokens, the lease and the cooldown at the later of the database's clock and `lower_bound`. `min_life` is the
/// remaining life that another token must have to be worth pointing to.
pub async fn find_slot(
    connection: &mut PgConnection,
    combination: &Combination,
    lower_bound: DateTime<Utc>,
    min_life: Duration,
) -> Result<Slot, DbError> {
    let row = sqlx::query!(
        r#"SELECT c.database_time AS "database_time!", c.now AS "now!",
                  coalesce(s.usable_until > '-infinity' AND s.usable_until <= c.now, false) AS "is_stale!",
                  coalesce(s.minted_seq, 0) AS "minted_seq!",
                  -- A lease or a cooldown that ends over a day later was dated by a wrong clock, and does not hold.
                  coalesce(s.lease_until > c.now AND s.lease_until <= c.now + interval '1 day', false) AS "is_leased!",
                  CASE WHEN s.cooldown_until > c.now AND s.cooldown_until <= c.now + interval '1 day'
                       THEN s.failure END AS failure,
                  (t.id IS NULL AND coalesce(s.usable_until > c.now, false))
                  OR ((t.id IS NULL OR t.ends_at <= c.now + make_interval(secs => $6))
                      AND EXISTS (SELECT FROM tokens o
                                  WHERE o.user_id = $1 AND o.country = $2 AND o.bank = $3 AND o.access = $4
                                    AND o.is_valid AND o.ends_at > c.now + make_interval(secs => $6)
                                    AND (coalesce(s.void_epoch, 0) = 0
                                         OR EXISTS (SELECT FROM mints m WHERE m.user_id = $1 AND m.id = o.id
                                                      AND m.lease_epoch > s.void_epoch))))
                    AS "wants_pointing!",
                  t.id AS "id?", t.lifetime AS "lifetime?", t.issued_at AS "issued_at?",
                  t.expiration AS "expiration?", t.ends_at AS "ends_at?",
                  t.fingerprint AS "fingerprint?", t.ciphertext AS "ciphertext?", m.started_at AS "started_at?"
           FROM (SELECT d.database_time, greatest(d.database_time, $5) AS now
                 FROM (SELECT clock_timestamp() AS database_time) d) c
           LEFT JOIN slots s ON s.user_id = $1 AND s.country = $2 AND s.bank = $3 AND s.access = $4
           LEFT JOIN tokens t ON t.user_id = $1 AND t.id = s.token_id
                             AND t.is_valid AND t.superseded_at IS NULL AND t.ends_at > c.now
           LEFT JOIN mints m ON m.user_id = $1 AND m.id = t.id"#,
        &*combination.user_id,
        combination.country_key(),
        combination.bank_key(),
        combination.access.bits(),
        lower_bound,
        min_life.as_secs_f64(),
    )
    .fetch_one(connection)
    .await?;
    // The columns of the joined token are null together.
    let pointer = row.id.map(|id| PointerRow {
        id,
        lifetime: row.lifetime.unwrap_or_default(),
        issued_at: row.issued_at.unwrap_or_default(),
        expiration: row.expiration.unwrap_or_default(),
        ends_at: row.ends_at.unwrap_or_default(),
        fingerprint: row.fingerprint.unwrap_or_default(),
        ciphertext: row.ciphertext.unwrap_or_default(),
        started_at: row.started_at,
    });
    let pointer = pointer
        .map(|row| row.into_stored(combination))
        .transpose()?;
    let cooling = row.failure.map(serde_json::from_value).transpose();
    let cooling = cooling.map_err(|error| DbError::Unreadable {
        table: "slots",
        what: error.to_string(),
    })?;
    Ok(Slot {
        database_time: row.database_time,
        now: row.now,
        pointer,
        wants_pointing: row.wants_pointing,
        is_stale: row.is_stale,
        minted_seq: row.minted_seq,
        is_leased: row.is_leased,
        cooling,
    })
}

/// Points the slot to a valid token of the combination with at least `min_life` left, and returns the token.
///
/// Prefers the current token, then the token that expires last. Never points to a token whose mint began before the
/// invalidation of the user: such a token may still be valid while the batches of the invalidation run. If there is no
/// token, clears a pointer to a token that is recorded as invalid or superseded. Uses a transaction of several statements, so the caller must not cancel it.
pub async fn point_slot(
    connection: &mut PgConnection,
    combination: &Combination,
    lower_bound: DateTime<Utc>,
    min_life: Duration,
) -> Result<Option<StoredToken>, DbError> {
    let (country, bank) = (combination.country_key(), combination.bank_key());
    let (user_id, access) = (&combination.user_id, combination.access.bits());
    let mut tx = connection.begin().await?;
    // Lock order: the slot, then its tokens.
    let slot = sqlx::query!(
        "SELECT token_id, void_epoch FROM slots
         WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4 FOR UPDATE",
        user_id,
        country,
        bank,
        access
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(slot) = slot else { return Ok(None) };
    let best = sqlx::query_as!(
        PointerRow,
        "SELECT id, lifetime, issued_at, expiration, ends_at, fingerprint, ciphertext,
                (SELECT m.started_at FROM mints m WHERE m.user_id = $1 AND m.id = t.id) AS started_at
         FROM tokens t
         WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4
           AND is_valid AND ends_at > greatest(clock_timestamp(), $5) + make_interval(secs => $6)
           AND ($8 = 0::int8 OR EXISTS (SELECT FROM mints m WHERE m.user_id = $1 AND m.id = t.id AND m.lease_epoch > $8))
         ORDER BY (superseded_at IS NULL AND id = $7) DESC, ends_at DESC LIMIT 1 FOR UPDATE",
        user_id,
        country,
        bank,
        access,
        lower_bound,
        min_life.as_secs_f64(),
        slot.token_id,
        slot.void_epoch,
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
    best.into_stored(combination).map(Some)
}
