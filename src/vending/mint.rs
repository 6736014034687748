//! A mint: claim it, call the upstream, finish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::TimeDelta;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, error_span};
use uuid::Uuid;

use super::cache::CachedToken;
use super::context::Context;
use super::request::TokenRequest;
use crate::db::budget::take_attempt;
use crate::db::clock::STEP_TOLERANCE;
use crate::db::mints::{
    CallSummary, Claim, Finish, Finished, Lease, claim_mint, fail_mint, finish_mint,
};
use crate::db::slots::Slot;
use crate::model::{Caller, Failure, FailureKind, TokenWithSecret};
use crate::upstream::{CallError, Minted};

/// What a lease holds beyond the time of the call: for the way to the call and the commit after it.
const LEASE_MARGIN: Duration = Duration::from_secs(6);
/// What must be left of the lease after the call, for the commit.
const COMMIT_MARGIN: Duration = Duration::from_secs(3);
/// How long those who wait are kept waiting for a commit; it is tried for longer.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a minted token is tried to be recorded.
const RECORD_RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a flight waits for a place among the calls in flight.
const PERMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Claims the mint and makes it. `None` if the claim was lost or the token recorded as ended.
pub(super) async fn claim_and_mint(
    context: &Arc<Context>,
    request: &TokenRequest,
    caller: &Caller,
    slot: &Slot,
    read_at: Instant,
) -> Result<Option<Arc<CachedToken>>, Failure> {
    if context.clock.lower_bound() - slot.now > STEP_TOLERANCE {
        tracing::error!(
            "the database's clock is behind what it was; nothing is minted until it has caught up"
        );
        return Err(Failure::database());
    }
    let _place = context.upstream.reserve(PERMIT_TIMEOUT).await?;
    context.upstream.circuit.admit()?;
    let length = context.settings.upstream_timeout + LEASE_MARGIN;
    let claim = Claim {
        mint_id: Uuid::now_v7(),
        combination: request.combination.clone(),
        lifetime: request.lifetime,
        holder: context.replica,
        caller: caller.clone(),
        now: slot.now,
        lease_until: slot.now + length,
        fresh_until: slot.judged_at + request.min_life,
        renew_since: request.renew.then_some(slot.minted_seq),
    };
    let claimed_at = Instant::now();
    let claim_copy = claim.clone();
    let lease = context
        .run_query("claim a mint", |pool| async move {
            claim_mint(&pool, &claim_copy).await
        })
        .await?;
    let Some(lease) = lease else { return Ok(None) };
    let mint = Mint {
        context,
        claim,
        lease,
        lease_ends: read_at + length,
        claimed_at,
    };
    let taken = lease.claimed_at - mint.claim.now;
    if taken < TimeDelta::zero() || taken.to_std().unwrap_or_default() > length / 2 {
        let calls = CallSummary::default();
        return Err(mint.fail(Failure::database(), false, &calls).await);
    }
    mint.run().await
}

/// A mint whose intent is on record.
struct Mint<'a> {
    context: &'a Arc<Context>,
    claim: Claim,
    lease: Lease,
    /// By this machine's clock, counted from before the reading: never later than by the database's.
    lease_ends: Instant,
    /// Before the claim was sent: the token's life counts from here.
    claimed_at: Instant,
}

impl Mint<'_> {
    async fn run(self) -> Result<Option<Arc<CachedToken>>, Failure> {
        let started = Instant::now();
        let mut calls = CallSummary::default();
        let outcome = self.call(started, &mut calls).await;
        let seconds = started.elapsed().as_secs_f64();
        self.context.metrics.mint_duration_seconds.observe(seconds);
        calls.latency_ms = i32::try_from(started.elapsed().as_millis()).unwrap_or(i32::MAX);
        match outcome {
            Ok(minted) => self.finish(minted, calls).await,
            Err((failure, is_unknown)) => Err(self.fail(failure, is_unknown, &calls).await),
        }
    }

    /// Calls until there is an answer to keep, within the one deadline. Waits as the provider
    /// advises: 1 s, 2 s, 4 s, with jitter; shorter where the whole time is short.
    async fn call(
        &self,
        started: Instant,
        calls: &mut CallSummary,
    ) -> Result<Minted, (Failure, bool)> {
        let settings = &self.context.settings;
        let deadline = started + settings.upstream_timeout;
        let mut waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1).min(settings.upstream_timeout / 8))
            .with_jitter()
            .with_max_times(settings.upstream_max_attempts.saturating_sub(1) as usize)
            .build();
        loop {
            self.take_budget()
                .await
                .map_err(|failure| (failure, false))?;
            let time = deadline.saturating_duration_since(Instant::now());
            if Instant::now() + time + COMMIT_MARGIN > self.lease_ends {
                return Err((Failure::database(), false));
            }
            calls.attempts += 1;
            let claim = &self.claim;
            let error = match self
                .context
                .upstream
                .mint(&claim.combination, claim.lifetime, time)
                .instrument(error_span!(
                    "mint",
                    otel.kind = "client",
                    attempt = calls.attempts
                ))
                .await
            {
                Ok(minted) => {
                    self.context.upstream.circuit.note_success();
                    calls.status = Some(201);
                    return Ok(minted);
                }
                Err(error) => error,
            };
            note_error(calls, &error);
            match waits.next() {
                Some(wait) if error.is_retryable && Instant::now() + wait < deadline => {
                    sleep(wait).await
                }
                _ => {
                    self.note_in_circuit(&error);
                    return Err((error.failure, error.is_lost));
                }
            }
        }
    }

    async fn take_budget(&self) -> Result<(), Failure> {
        let limit = self.context.settings.upstream_hourly_budget;
        if limit == 0 {
            return Ok(());
        }
        let taken = self
            .context
            .run_query("take from the budget", move |pool| async move {
                take_attempt(&pool, limit).await
            })
            .await?;
        taken.map(|_| ()).ok_or_else(|| {
            let detail = "the calls to the upstream for this hour are used up";
            Failure::new(FailureKind::UpstreamBudgetSpent, detail).with_retry_after(60)
        })
    }

    fn note_in_circuit(&self, error: &CallError) {
        let status = error.failure.upstream.as_ref().map(|answer| answer.status);
        if status.is_none_or(|status| status >= 500 || status == 429) {
            self.context.upstream.circuit.note_failure();
        } else {
            self.context.upstream.circuit.note_success();
        }
    }

    /// Records the token. Nobody waits for that longer than [`COMMIT_TIMEOUT`], but it is tried
    /// for [`RECORD_RETRY_TIMEOUT`]: a token that comes on record late still serves the next request.
    async fn finish(
        self,
        minted: Minted,
        calls: CallSummary,
    ) -> Result<Option<Arc<CachedToken>>, Failure> {
        let claim = &self.claim;
        let life = life_of(&minted, claim.lifetime);
        let finish = Finish {
            claim: claim.clone(),
            lease: self.lease,
            expiration: minted.expiration,
            ends_at: self.lease.claimed_at + life,
            encrypted: self.context.keys.encrypt(
                &minted.token_string,
                claim.mint_id,
                &claim.combination,
            ),
            fingerprint: self.context.keys.fingerprint(minted.token_string.expose()),
            calls,
            event_id: Uuid::now_v7(),
        };
        let fingerprint = finish.fingerprint;
        let (done, finished) = oneshot::channel();
        let context = self.context.clone();
        self.context.tracker.spawn(
            async move {
                let _ = done.send(record(&context, finish).await);
            }
            .instrument(error_span!(
                "record a mint",
                otel.kind = "client",
                db.system.name = "postgresql"
            )),
        );
        let Ok(Ok(finished)) = timeout(COMMIT_TIMEOUT, finished).await else {
            return Err(Failure::database());
        };
        let finished = finished?;
        self.context.clock.observe(finished.issued_at);
        if finished.is_voided {
            return Ok(None);
        }
        let cached = Arc::new(CachedToken {
            issued: TokenWithSecret {
                id: claim.mint_id,
                combination: claim.combination.clone(),
                expiration: minted.expiration,
                issued_at: finished.issued_at,
                lifetime: claim.lifetime,
                fingerprint,
                token_string: minted.token_string,
            },
            deadline: self.claimed_at + life,
            minted_at: Some(Instant::now()),
        });
        if claim.lifetime > 0 {
            self.context.cache.insert(cached.clone());
        }
        Ok(Some(cached))
    }

    /// Records that there is no token, and gives the failure back.
    async fn fail(&self, mut failure: Failure, is_unknown: bool, calls: &CallSummary) -> Failure {
        let outcome = if is_unknown { "unknown" } else { "failed" };
        let counted = &self.context.metrics.mints_total;
        counted.with_label_values(&[outcome]).inc();
        let cooldown = self.context.settings.mint_cooldown;
        // Sooner than that, trying again only repeats this answer.
        let cooled = cooldown.as_secs_f64().ceil() as u32;
        failure.retry_after = failure.retry_after.map(|after| after.max(cooled));
        tracing::warn!(
            mint_id = %self.claim.mint_id,
            request_id = self.claim.caller.request_id,
            failure = failure.kind.name(),
            attempts = calls.attempts,
            upstream_status = calls.status,
            upstream_identifier = calls.identifier,
            is_unknown,
            "a mint gave no token: {}", failure.detail
        );
        let (claim, lease, calls, recorded_failure) = (
            self.claim.clone(),
            self.lease,
            calls.clone(),
            failure.clone(),
        );
        // If it cannot be recorded it stays open, and whoever takes over marks it as unknown.
        let _ = self
            .context
            .run_query("record a failed mint", move |pool| async move {
                fail_mint(
                    &pool,
                    &claim,
                    lease,
                    &recorded_failure,
                    is_unknown,
                    &calls,
                    cooldown,
                )
                .await
            })
            .await;
        failure
    }
}

fn note_error(calls: &mut CallSummary, error: &CallError) {
    calls.unseen += i16::from(error.may_have_minted);
    let answer = error.failure.upstream.as_ref();
    calls.status = answer.map(|answer| answer.status);
    calls.identifier = answer.and_then(|answer| answer.identifier.clone());
}

/// The provider's word on a token's life, never more than was asked; a second less where it is
/// less, since its `Date` has whole seconds.
fn life_of(minted: &Minted, lifetime: i32) -> Duration {
    let requested = TimeDelta::seconds(i64::from(lifetime));
    let life = match minted.life {
        Some(life) if life < requested => life - TimeDelta::seconds(1),
        _ => requested,
    };
    life.to_std().unwrap_or_default()
}

async fn record(context: &Context, finish: Finish) -> Result<Finished, Failure> {
    let started = Instant::now();
    let count = |outcome| {
        context
            .metrics
            .mints_total
            .with_label_values(&[outcome])
            .inc()
    };
    loop {
        let finish_copy = finish.clone();
        let recorded = context
            .db
            .run(|pool| async move { finish_mint(&pool, &finish_copy).await })
            .await;
        let mint_id = finish.claim.mint_id;
        match recorded {
            Ok(Some(finished)) => {
                count(if finished.is_voided {
                    "voided"
                } else {
                    "minted"
                });
                return Ok(finished);
            }
            Ok(None) => {
                count("unrecorded");
                tracing::error!(%mint_id, "the slot of a minted token is gone; the token is lost");
                return Err(Failure::database());
            }
            Err(error) if started.elapsed() < RECORD_RETRY_TIMEOUT => {
                tracing::warn!(%error, %mint_id, "a minted token could not be recorded yet");
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => {
                count("unrecorded");
                tracing::error!(%error, %mint_id, "a minted token could not be recorded; it is lost");
                return Err(Failure::database());
            }
        }
    }
}
