//! Records of mints: the claim before the calls to the provider, the finish or the failure after them.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::DbError;
use crate::crypto::EncryptedToken;
use crate::model::{Caller, Combination, EventKind, Failure, Fingerprint};

/// The claim to mint for a combination.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The id of the mint and of its token, a UUIDv7.
    pub mint_id: Uuid,
    /// The combination.
    pub combination: Combination,
    /// The lifetime to request from the provider, in seconds.
    pub lifetime: i32,
    /// The id of this replica.
    pub replica: Uuid,
    /// The caller whose request starts the mint.
    pub caller: Caller,
    /// The time when the slot was read: the later of the database's clock and its lower bound.
    pub now: DateTime<Utc>,
    /// The end of the lease.
    pub lease_until: DateTime<Utc>,
    /// The claim fails if the current token is usable beyond this time, except as `renew_since` allows.
    pub fresh_until: DateTime<Utc>,
    /// The `minted_seq` that a no-cache request read. It allows the claim if no mint has changed the pointer since.
    pub renew_since: Option<i64>,
}

/// The lease of a claimed mint. The record of the mint is committed.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// The epoch that fences the finish.
    pub epoch: i64,
    /// The time of the claim, never before [`Claim::now`]. The life of the token counts from this time.
    pub claimed_at: DateTime<Utc>,
}

/// Takes the lease of the combination and records the mint. Returns `None` if it could not take the lease.
///
/// Postgres evaluates `ON CONFLICT … WHERE` on the locked, latest row, so exactly one of many concurrent claims wins.
/// The open mints of earlier holders are closed as by [`abandon_mints`](super::cleanup::abandon_mints).
pub async fn claim_mint(
    connection: &mut PgConnection,
    claim: &Claim,
) -> Result<Option<Lease>, DbError> {
    let combination = &claim.combination;
    let lease = sqlx::query!(
        r#"WITH claim AS (
               INSERT INTO slots AS s (user_id, country, bank, access, lease_holder, lease_epoch, lease_until,
                                       claimed_at)
               VALUES ($1, $2, $3, $4, $5, 1, $6, $7)
               ON CONFLICT (user_id, country, bank, access) DO UPDATE
               SET lease_holder = excluded.lease_holder, lease_epoch = s.lease_epoch + 1,
                   lease_until = excluded.lease_until, claimed_at = excluded.claimed_at
               -- A lease or a cooldown that ends over a day later was dated by a wrong clock, and does not hold.
               WHERE (s.lease_until <= $7 OR s.lease_until > $17)
                 AND (s.cooldown_until <= $7 OR s.cooldown_until > $17)
                 AND (s.usable_until <= $8 OR s.minted_seq = $9)
               RETURNING s.lease_epoch
           ), abandoned AS (
               UPDATE mints m
               SET outcome = CASE WHEN m.started_attempts = 0 THEN 'failed' ELSE 'unknown' END,
                   attempts = coalesce(m.started_attempts, 0), finished_at = greatest(statement_timestamp(), m.started_at)
               FROM claim
               WHERE m.user_id = $1 AND m.country = $2 AND m.bank = $3 AND m.access = $4
                 AND m.outcome = 'open' AND m.lease_epoch < claim.lease_epoch
               RETURNING m.*
           ), event AS (
               INSERT INTO audit_events (kind, user_id, client, request_id, source_ip,
                                         country, bank, access, token_id, detail)
               SELECT CASE a.outcome WHEN 'failed' THEN $16 ELSE $10 END,
                      a.user_id, a.client, a.request_id, a.source_ip,
                      nullif(a.country, ''), nullif(a.bank, ''), a.access, a.id,
                      jsonb_strip_nulls(jsonb_build_object(
                          'reason', 'no replica finished it', 'startedAt', a.started_at, 'attempts', a.started_attempts,
                          'possiblyMinted', CASE a.started_attempts WHEN 0 THEN 0 END))
               FROM abandoned a
           )
           INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder,
                              client, request_id, source_ip, started_at, started_attempts)
           SELECT $1, $5, $2, $3, $4, $11, claim.lease_epoch, $12, $13, $14, $15, greatest(clock_timestamp(), $7), 0
           FROM claim
           RETURNING lease_epoch AS epoch, started_at AS claimed_at"#,
        &*combination.user_id,
        combination.country_key(),
        combination.bank_key(),
        combination.access.bits(),
        claim.mint_id,
        claim.lease_until,
        claim.now,
        claim.fresh_until,
        claim.renew_since,
        EventKind::TokenMintUnknown.name(),
        claim.lifetime,
        claim.replica.to_string(),
        claim.caller.client,
        claim.caller.request_id,
        claim.caller.source_ip,
        EventKind::TokenMintFailed.name(),
        claim.now + TimeDelta::days(1),
    )
    .fetch_optional(&mut *connection)
    .await?;
    Ok(lease.map(|row| Lease {
        epoch: row.epoch,
        claimed_at: row.claimed_at,
    }))
}

/// Records that this attempt of the mint starts. Returns false if the mint was closed, so that no call may follow.
///
/// The row lock orders it with the closing of the mint: a mint that is closed as never called makes no call later.
pub async fn start_attempt(
    connection: &mut PgConnection,
    claim: &Claim,
    attempt: i16,
) -> Result<bool, DbError> {
    let started = sqlx::query!(
        "UPDATE mints SET started_attempts = $3 WHERE user_id = $1 AND id = $2 AND outcome = 'open'",
        &*claim.combination.user_id,
        claim.mint_id,
        attempt,
    )
    .execute(connection)
    .await?;
    Ok(started.rows_affected() == 1)
}

/// The summary of the calls to the provider for one mint.
#[derive(Clone, Debug, Default)]
pub struct CallSummary {
    /// The number of calls.
    pub attempts: i16,
    /// The number of calls that may have minted a token that the service did not receive.
    pub unseen: i16,
    /// The HTTP status of the last answer.
    pub status: Option<u16>,
    /// The error identifier of the last answer.
    pub identifier: Option<String>,
    /// The time from the first call to the last answer, in milliseconds.
    pub latency_ms: i32,
}

/// A minted token to record.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The claim of the mint.
    pub claim: Claim,
    /// The lease of the claim, which fences the finish.
    pub lease: Lease,
    /// The expiration that the provider returned.
    pub expiration: DateTime<Utc>,
    /// The expiration by the database's clock.
    pub ends_at: DateTime<Utc>,
    /// The encrypted token string.
    pub encrypted: EncryptedToken,
    /// The fingerprint of the token string.
    pub fingerprint: Fingerprint,
    /// The summary of the calls.
    pub calls: CallSummary,
    /// The lower bound of the time at which the token is recorded.
    pub lower_bound: DateTime<Utc>,
}

/// The result of recording a token.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The time at which the token was recorded.
    pub issued_at: DateTime<Utc>,
    /// True if the user's tokens were invalidated during the mint. The token is then recorded as invalidated.
    pub is_voided: bool,
}

/// Records the token, the pointer of the slot, the outcome of the mint and its event, in one statement.
///
/// The fence is mint id and epoch, never time. A mint that lost the lease records its token as surplus, without the
/// pointer. A replay changes nothing and returns the same result. Returns `None` if the slot was deleted.
pub async fn finish_mint(
    connection: &mut PgConnection,
    finish: &Finish,
) -> Result<Option<Finished>, DbError> {
    let Finish { claim, calls, .. } = finish;
    let combination = &claim.combination;
    // Each step reads the step before it. This data dependency orders the locks: slot, tokens, mint. The snapshot of
    // the statement contains the superseded token, because that token was committed before the claim.
    let row = sqlx::query!(
        r#"WITH slot AS (
               SELECT token_id AS old_id, void_reason,
                      -- The transaction takes its id before it reads the clock, as in event_time().
                      CASE WHEN pg_current_xact_id() IS NOT NULL THEN greatest(clock_timestamp(), $21) END AS now,
                      lease_holder = $5 AND lease_epoch = $6 AS holds,
                      void_epoch >= $6 AS voided
               FROM slots
               WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4
               FOR UPDATE
           ), token AS (
               INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                                   is_valid, superseded_at, invalidated_at, invalidation_reason,
                                   ciphertext, key_id, fingerprint)
               SELECT $1, $5, $2, $3, $4, $7, s.now, $8, $9,
                      NOT s.voided,
                      CASE WHEN NOT s.holds AND NOT s.voided THEN s.now END,
                      CASE WHEN s.voided THEN s.now END,
                      CASE WHEN s.voided THEN coalesce(s.void_reason, 'requested') END,
                      CASE WHEN s.voided THEN ''::bytea ELSE $10 END, $11, $12
               FROM slot s
               ON CONFLICT (user_id, id) DO NOTHING
               RETURNING id
           ), pointed AS (
               UPDATE slots t
               SET token_id = CASE WHEN s.voided THEN t.token_id ELSE $5 END,
                   usable_until = CASE WHEN s.voided THEN t.usable_until ELSE $9 END,
                   minted_seq = t.minted_seq + CASE WHEN s.voided THEN 0 ELSE 1 END,
                   lease_until = '-infinity', cooldown_until = '-infinity', failure = NULL
               FROM slot s, token
               WHERE s.holds AND t.user_id = $1 AND t.country = $2 AND t.bank = $3 AND t.access = $4
           ), superseded AS (
               UPDATE tokens o SET superseded_at = s.now
               FROM slot s, token
               WHERE s.holds AND NOT s.voided AND o.user_id = $1 AND o.id = s.old_id AND o.id <> $5
           ), mint AS (
               UPDATE mints m
               SET outcome = 'minted', finished_at = s.now, attempts = $13, unseen = $14,
                   upstream_status = $15, latency_ms = $16
               FROM slot s, token WHERE m.user_id = $1 AND m.id = $5
           ), event AS (
               INSERT INTO audit_events (occurred_at, kind, user_id, client, request_id, source_ip,
                                         country, bank, access, token_id, fingerprint, detail)
               SELECT s.now, $17, $1, $18, $19, $20, nullif($2, ''), nullif($3, ''), $4, $5, $12,
                      jsonb_build_object('attempts', $13::int2, 'latencyMs', $16::int4, 'lifetime', $7::int4)
                      || CASE WHEN s.voided THEN '{"invalidated": true}' WHEN s.holds THEN '{}' ELSE '{"surplus": true}' END::jsonb
               FROM slot s, token
           )
           SELECT s.now AS "issued_at!", s.voided AS "is_voided!", token.id IS NOT NULL AS "is_new!"
           FROM slot s LEFT JOIN token ON true"#,
        &*combination.user_id,
        combination.country_key(),
        combination.bank_key(),
        combination.access.bits(),
        claim.mint_id,
        finish.lease.epoch,
        claim.lifetime,
        finish.expiration,
        finish.ends_at,
        finish.encrypted.bytes,
        finish.encrypted.key_id,
        finish.fingerprint.to_string(),
        calls.attempts,
        calls.unseen,
        calls.status.map(status_column),
        calls.latency_ms,
        EventKind::TokenMinted.name(),
        claim.caller.client,
        claim.caller.request_id,
        claim.caller.source_ip,
        finish.lower_bound,
    )
    .fetch_optional(&mut *connection)
    .await?;
    match row {
        Some(row) if row.is_new => Ok(Some(Finished {
            issued_at: row.issued_at,
            is_voided: row.is_voided,
        })),
        Some(_) => find_finished(connection, claim).await,
        None => Ok(None),
    }
}

/// Finds what the first attempt recorded, for a replay. The token may have been invalidated since.
async fn find_finished(
    connection: &mut PgConnection,
    claim: &Claim,
) -> Result<Option<Finished>, DbError> {
    let row = sqlx::query!(
        "SELECT issued_at, is_valid FROM tokens WHERE user_id = $1 AND id = $2",
        &*claim.combination.user_id,
        claim.mint_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    Ok(row.map(|row| Finished {
        issued_at: row.issued_at,
        is_voided: !row.is_valid,
    }))
}

/// A mint without a token, to record.
#[derive(Clone, Debug)]
pub struct FailedMint {
    /// The claim of the mint.
    pub claim: Claim,
    /// The failure of the requests that waited for the mint.
    pub failure: Failure,
    /// True if the provider may have received a call, but no answer arrived.
    pub is_unknown: bool,
    /// The summary of the calls.
    pub calls: CallSummary,
    /// The end of the time for which the combination repeats the failure.
    pub cooldown_until: DateTime<Utc>,
}

impl FailedMint {
    /// Creates the record of a claim that its flight abandoned before any call. It has no cooldown.
    pub fn abandoned(claim: Claim) -> Self {
        FailedMint {
            cooldown_until: claim.now,
            claim,
            failure: Failure::database(),
            is_unknown: false,
            calls: CallSummary::default(),
        }
    }
}

/// Records a mint without a token, ends the lease and starts the cooldown, in one statement.
///
/// The fence is the mint id alone, because the outcome of the claim may be unknown. A claim that did not commit, and a
/// replay, change nothing.
pub async fn fail_mint(connection: &mut PgConnection, failed: &FailedMint) -> Result<(), DbError> {
    let FailedMint {
        claim,
        failure,
        calls,
        ..
    } = failed;
    let combination = &claim.combination;
    let (outcome, kind) = if failed.is_unknown {
        ("unknown", EventKind::TokenMintUnknown)
    } else {
        ("failed", EventKind::TokenMintFailed)
    };
    let stored = serde_json::to_value(failure).expect("a failure has a JSON form");
    let detail = serde_json::json!({
        "failure": failure.kind.name(),
        "attempts": calls.attempts,
        "possiblyMinted": calls.unseen,
        "upstreamStatus": calls.status,
        "upstreamIdentifier": calls.identifier,
        "latencyMs": calls.latency_ms,
    });
    // `count(*) >= 0` makes the second step read the first one, which orders the locks: slot, mint.
    sqlx::query!(
        "WITH slot AS (
             UPDATE slots
             SET lease_until = '-infinity', failure = $6, cooldown_until = $7
             WHERE user_id = $1 AND country = $2 AND bank = $3 AND access = $4
               AND lease_holder = $5 AND lease_until > '-infinity'
             RETURNING user_id
         ), mint AS (
             UPDATE mints m
             SET outcome = $8, finished_at = greatest(statement_timestamp(), m.started_at), failure = $9,
                 attempts = $10, unseen = $11,
                 upstream_status = $12, upstream_identifier = $13, latency_ms = $14
             WHERE m.user_id = $1 AND m.id = $5 AND m.outcome = 'open'
               AND (SELECT count(*) FROM slot) >= 0
             RETURNING m.*
         )
         INSERT INTO audit_events (kind, user_id, client, request_id, source_ip,
                                   country, bank, access, token_id, detail)
         SELECT $15, m.user_id, m.client, m.request_id, m.source_ip,
                nullif(m.country, ''), nullif(m.bank, ''), m.access, m.id, $16
         FROM mint m",
        &*combination.user_id,
        combination.country_key(),
        combination.bank_key(),
        combination.access.bits(),
        claim.mint_id,
        stored,
        failed.cooldown_until,
        outcome,
        failure.kind.name(),
        calls.attempts,
        calls.unseen,
        calls.status.map(status_column),
        calls.identifier,
        calls.latency_ms,
        kind.name(),
        detail,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Converts an HTTP status to the type of its column.
fn status_column(status: u16) -> i16 {
    i16::try_from(status).unwrap_or(i16::MAX)
}
