//! A mint: claim it, call the provider, finish or fail it.
//!
//! The claim commits a mint record and a lease before the call. The finish is fenced by the mint id and
//! the epoch of the lease: a mint that lost its lease cannot change the pointer of the slot.

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

/// Lease time beyond `UPSTREAM_TIMEOUT`: for the steps before the call and the commit after it.
const LEASE_MARGIN: Duration = Duration::from_secs(6);
/// Lease time that must be left after the call, for the commit.
const COMMIT_MARGIN: Duration = Duration::from_secs(3);
/// Time that callers wait for the commit of a minted token. The commit is retried for longer.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Time for which the commit of a minted token is retried.
const RECORD_RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a flight waits for a permit when `UPSTREAM_MAX_IN_FLIGHT` calls are in flight.
const PERMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Claims a mint and runs it.
///
/// Returns `None` if another flight won the claim, or if the combination was invalidated during the
/// mint. The caller then reads the slot again.
pub(super) async fn try_mint(
    context: &Arc<Context>,
    request: &TokenRequest,
    caller: &Caller,
    slot: &Slot,
    read_at: Instant,
) -> Result<Option<Arc<CachedToken>>, Failure> {
    if context.clock.lower_bound() - slot.now > STEP_TOLERANCE {
        tracing::error!(
            database_time = %slot.now,
            "the database clock stepped back; no token is minted until it catches up"
        );
        return Err(Failure::database());
    }
    let _permit = context.upstream.reserve(PERMIT_TIMEOUT).await?;
    context.upstream.circuit.admit()?;
    let lease_length = context.settings.upstream_timeout + LEASE_MARGIN;
    let claim = Claim {
        mint_id: Uuid::now_v7(),
        combination: request.combination.clone(),
        lifetime: request.lifetime,
        replica: context.replica,
        caller: caller.clone(),
        now: slot.now,
        lease_until: slot.now + lease_length,
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
    let claim_delay = lease.claimed_at - claim.now;
    let mint = Mint {
        context,
        claim,
        lease,
        lease_deadline: read_at + lease_length,
        claimed_at,
    };
    // The lease counts from the read. Give up if the database clock stepped back since, or if the claim
    // used more than half of the lease.
    if claim_delay < TimeDelta::zero()
        || claim_delay.to_std().unwrap_or_default() > lease_length / 2
    {
        let calls = CallSummary::default();
        return Err(mint.fail(Failure::database().into(), &calls).await);
    }
    mint.run().await
}

/// A claimed mint.
struct Mint<'a> {
    context: &'a Arc<Context>,
    claim: Claim,
    lease: Lease,
    /// End of the lease by the monotonic clock. It counts from before the read of the slot, so it is
    /// never later than the end by the database clock.
    lease_deadline: Instant,
    /// Monotonic time just before the claim. The life of the token counts from here.
    claimed_at: Instant,
}

/// The reason why a claimed mint has no token.
struct MintError {
    failure: Failure,
    /// True if the provider may have received the call, but no answer arrived.
    is_unknown: bool,
}

impl From<Failure> for MintError {
    fn from(failure: Failure) -> Self {
        MintError {
            failure,
            is_unknown: false,
        }
    }
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
            Err(error) => Err(self.fail(error, &calls).await),
        }
    }

    /// Calls the provider until an attempt succeeds or must not be retried, within `UPSTREAM_TIMEOUT`.
    ///
    /// Waits between attempts as the provider advises: 1 s, 2 s, 4 s, with jitter. The waits are shorter
    /// if `UPSTREAM_TIMEOUT` is below 8 s.
    async fn call(&self, started: Instant, calls: &mut CallSummary) -> Result<Minted, MintError> {
        let settings = &self.context.settings;
        let deadline = started + settings.upstream_timeout;
        let mut waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1).min(settings.upstream_timeout / 8))
            .with_jitter()
            .with_max_times(settings.upstream_max_attempts.saturating_sub(1) as usize)
            .build();
        loop {
            self.take_attempt_from_budget().await?;
            let time_left = deadline.saturating_duration_since(Instant::now());
            if Instant::now() + time_left + COMMIT_MARGIN > self.lease_deadline {
                return Err(Failure::database().into());
            }
            calls.attempts += 1;
            let claim = &self.claim;
            let error = match self
                .context
                .upstream
                .mint(&claim.combination, claim.lifetime, time_left)
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
                    return Err(MintError {
                        failure: error.failure,
                        is_unknown: error.is_lost,
                    });
                }
            }
        }
    }

    async fn take_attempt_from_budget(&self) -> Result<(), Failure> {
        let limit = self.context.settings.upstream_hourly_budget;
        if limit == 0 {
            return Ok(());
        }
        let taken = self
            .context
            .run_query("take an attempt from the budget", move |pool| async move {
                take_attempt(&pool, limit).await
            })
            .await?;
        taken.map(|_| ()).ok_or_else(|| {
            let detail = "the hourly budget of calls to the provider is spent";
            Failure::new(FailureKind::UpstreamBudgetSpent, detail).with_retry_after(60)
        })
    }

    /// Reports a failed mint to the circuit breaker. An answer below 500 other than 429 shows that the
    /// provider is up.
    fn note_in_circuit(&self, error: &CallError) {
        let status = error.failure.upstream.as_ref().map(|answer| answer.status);
        if status.is_none_or(|status| status >= 500 || status == 429) {
            self.context.upstream.circuit.note_failure();
        } else {
            self.context.upstream.circuit.note_success();
        }
    }

    /// Records the token and caches it. Returns `None` if it was recorded as invalidated.
    ///
    /// Waits at most [`COMMIT_TIMEOUT`]. The recording continues in a task for up to
    /// [`RECORD_RETRY_TIMEOUT`], so that the token can still serve the next request.
    async fn finish(
        self,
        minted: Minted,
        calls: CallSummary,
    ) -> Result<Option<Arc<CachedToken>>, Failure> {
        let claim = &self.claim;
        let life = granted_life(&minted, claim.lifetime);
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
                let _ = done.send(record_token(&context, finish).await);
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
            token: TokenWithSecret {
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

    /// Records the failure of the mint and returns it, with a `retry_after` of at least the cooldown.
    ///
    /// If it cannot be recorded, the mint stays open. The next claim or the cleanup marks it as unknown.
    async fn fail(&self, error: MintError, calls: &CallSummary) -> Failure {
        let MintError {
            mut failure,
            is_unknown,
        } = error;
        let outcome = if is_unknown { "unknown" } else { "failed" };
        let counter = &self.context.metrics.mints_total;
        counter.with_label_values(&[outcome]).inc();
        let cooldown = self.context.settings.mint_cooldown;
        let cooldown_seconds = cooldown.as_secs_f64().ceil() as u32;
        failure.retry_after = failure
            .retry_after
            .map(|seconds| seconds.max(cooldown_seconds));
        tracing::warn!(
            mint_id = %self.claim.mint_id,
            request_id = self.claim.caller.request_id,
            failure = failure.kind.name(),
            detail = failure.detail,
            attempts = calls.attempts,
            upstream_status = calls.status,
            upstream_identifier = calls.identifier,
            is_unknown,
            "a mint failed"
        );
        let (claim, lease, calls, recorded_failure) = (
            self.claim.clone(),
            self.lease,
            calls.clone(),
            failure.clone(),
        );
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

/// Returns the life that the provider granted, at most the requested lifetime. If it granted less, the
/// life is shortened by another second, because its `Date` header has whole seconds.
fn granted_life(minted: &Minted, lifetime: i32) -> Duration {
    let requested = TimeDelta::seconds(i64::from(lifetime));
    let life = match minted.life {
        Some(life) if life < requested => life - TimeDelta::seconds(1),
        _ => requested,
    };
    life.to_std().unwrap_or_default()
}

/// Records a minted token. Retries every 100 ms for [`RECORD_RETRY_TIMEOUT`].
async fn record_token(context: &Context, finish: Finish) -> Result<Finished, Failure> {
    let started = Instant::now();
    let count = |outcome| {
        let counter = &context.metrics.mints_total;
        counter.with_label_values(&[outcome]).inc();
    };
    let mint_id = finish.claim.mint_id;
    loop {
        let finish_copy = finish.clone();
        let recorded = context
            .db
            .run(|pool| async move { finish_mint(&pool, &finish_copy).await })
            .await;
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
                tracing::error!(%mint_id, "a minted token is lost: its slot does not exist");
                return Err(Failure::database());
            }
            Err(error) if started.elapsed() < RECORD_RETRY_TIMEOUT => {
                tracing::warn!(%error, %mint_id, "a minted token could not be recorded yet; retrying");
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => {
                count("unrecorded");
                tracing::error!(%error, %mint_id, "a minted token is lost: it could not be recorded");
                return Err(Failure::database());
            }
        }
    }
}
