//! A mint: claim it, call the provider, finish or fail it.
//!
//! The claim commits a mint record and a lease before the call. The finish is fenced by the mint id and
//! the epoch of the lease: a mint that lost its lease cannot change the pointer of the slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, error_span};
use uuid::Uuid;

use super::cache::CachedToken;
use super::context::{Context, QUERY_TIMEOUT, database_span};
use super::request::TokenRequest;
use crate::db::budget::{Attempt, take_attempt};
use crate::db::clock::service_time;
use crate::db::mint_quota::{count_mints, take_mint};
use crate::db::mints::{
    CallSummary, Claim, FailedMint, Finish, Finished, Lease, claim_mint, fail_mint, finish_mint,
    start_attempt,
};
use crate::db::slots::Slot;
use crate::db::{Checkout, DbError, Lane};
use crate::model::{Caller, Failure, FailureKind, TokenWithSecret};
use crate::upstream::{CallError, Minted};

/// Lease time beyond `UPSTREAM_TIMEOUT`: for the steps before the call and the commit after it.
const LEASE_MARGIN: Duration = Duration::from_secs(6);
/// Lease time that must be left after the call, for the commit.
const COMMIT_MARGIN: Duration = Duration::from_secs(3);
/// Time that callers wait for the commit of a minted token. The commit is retried for longer.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Time for which the outcome of a mint is retried until it is recorded.
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
    context.admit_mint()?;
    if let Some(limit) = request.mints_per_hour {
        check_quota(context, &caller.client, limit).await?;
    }
    let _permit = context.upstream.reserve(PERMIT_TIMEOUT).await?;
    context.upstream.circuit.check()?;
    let lease_length = context.settings.upstream_timeout + LEASE_MARGIN;
    let fresh_until = slot.now + request.min_life;
    let claim = Claim {
        mint_id: Uuid::now_v7(),
        combination: request.combination.clone(),
        lifetime: request.lifetime,
        replica: context.replica,
        caller: caller.clone(),
        now: slot.now,
        lease_until: slot.now + lease_length,
        fresh_until: match &slot.pointer {
            // By the service's clock, the current token has too little life, whatever its `ends_at` says.
            Some(pointer) if !request.renew => fresh_until.max(pointer.token.ends_at),
            _ => fresh_until,
        },
        renew_since: request.renew.then_some(slot.minted_seq),
    };
    let claimed_at = Instant::now();
    let Some(lease) = take_lease(context, &claim).await? else {
        return Ok(None);
    };
    let claim_delay = lease.claimed_at - claim.now;
    let mint = Mint {
        context,
        claim,
        lease,
        mints_per_hour: request.mints_per_hour,
        lease_deadline: read_at + lease_length,
        claimed_at,
    };
    // The lease counts from the read. Give up if the claim used more than half of it.
    if claim_delay.to_std().unwrap_or_default() > lease_length / 2 {
        let calls = CallSummary::default();
        return Err(mint.fail(Failure::database().into(), &calls).await);
    }
    mint.run().await
}

/// Refuses a mint while the quota of the client is spent, before anything is written. [`take_mint`] decides.
async fn check_quota(context: &Context, client: &str, limit: i32) -> Result<(), Failure> {
    let client = client.to_owned();
    let count = context.run_query(Lane::Mints, "count mints", async move |mut connection| {
        count_mints(&mut connection, &client).await
    });
    let count = count.await?;
    if count.mints < i64::from(limit) {
        return Ok(());
    }
    let retry_after = u32::try_from(count.oldest_ends_in).unwrap_or(0);
    Err(quota_spent().with_retry_after(retry_after))
}

fn quota_spent() -> Failure {
    let detail =
        "the hourly quota of mints of this client is spent; stored tokens are still reused";
    Failure::new(FailureKind::MintQuotaSpent, detail).with_retry_after(60)
}

/// Claims the mint. Returns `None` if another flight won the claim.
///
/// Waits at most [`QUERY_TIMEOUT`]. A claim that commits later, or whose answer is lost, is released: the mint is
/// recorded as failed without a call, and the next request can mint at once.
async fn take_lease(context: &Arc<Context>, claim: &Claim) -> Result<Option<Lease>, Failure> {
    let claim_copy = claim.clone();
    let claiming = context.db.run(Lane::Mints, async move |mut connection| {
        claim_mint(&mut connection, &claim_copy).await
    });
    let mut claiming = Box::pin(claiming.instrument(database_span("claim a mint")));
    let claimed = timeout(QUERY_TIMEOUT, &mut claiming).await;
    match claimed {
        Ok(Ok(lease)) => return Ok(lease),
        // The claim was not started.
        Ok(Err(DbError::Overloaded)) => return Err(Failure::overloaded()),
        _ => {}
    }
    let (context_copy, claim) = (context.clone(), claim.clone());
    context.tracker.spawn(async move {
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(_) => claiming.await,
        };
        let may_be_claimed = match claimed {
            Ok(lease) => lease.is_some(),
            Err(error) => {
                tracing::error!(%error, step = "claim a mint", "a database step failed");
                error.has_unknown_outcome()
            }
        };
        if may_be_claimed {
            let metrics = &context_copy.metrics;
            metrics.count_mint(&claim.caller.client, "abandoned");
            tracing::warn!(mint_id = %claim.mint_id, "releasing a mint that was claimed too late");
            record_failed(context_copy, FailedMint::abandoned(claim)).await;
        }
    });
    Err(Failure::database())
}

/// A claimed mint.
struct Mint<'a> {
    context: &'a Arc<Context>,
    claim: Claim,
    lease: Lease,
    /// The quota of the client.
    mints_per_hour: Option<i32>,
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
        self.context.upstream.circuit.admit()?;
        let settings = &self.context.settings;
        let deadline = started + settings.upstream_timeout;
        let mut waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1).min(settings.upstream_timeout / 8))
            .with_jitter()
            .with_max_times(settings.upstream_max_attempts.saturating_sub(1) as usize)
            .build();
        loop {
            self.start_attempt(calls.attempts + 1).await?;
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

    /// Takes an attempt from the budget and records that it starts. The first one takes a mint from the quota of the
    /// client before, so that a refusal costs the others nothing.
    ///
    /// A mint that nobody finishes is therefore `unknown` only if a call may have been made.
    async fn start_attempt(&self, number: i16) -> Result<(), Failure> {
        let limit = self.context.settings.upstream_hourly_budget;
        let quota = self.mints_per_hour.filter(|_| number == 1);
        let claim = self.claim.clone();
        let attempt = self
            .context
            .run_query(
                Lane::Mints,
                "start an attempt",
                move |mut connection| async move {
                    if let Some(quota) = quota
                        && !take_mint(&mut connection, &claim.caller.client, quota).await?
                    {
                        return Ok(Attempt::QuotaSpent);
                    }
                    if limit > 0 {
                        return take_attempt(&mut connection, limit, &claim, number).await;
                    }
                    let is_started = start_attempt(&mut connection, &claim, number).await?;
                    Ok(if is_started {
                        Attempt::Started
                    } else {
                        Attempt::Closed
                    })
                },
            )
            .await?;
        match attempt {
            Attempt::Started => Ok(()),
            Attempt::BudgetSpent => {
                let detail = "the hourly budget of calls to the provider is spent";
                Err(Failure::new(FailureKind::UpstreamBudgetSpent, detail).with_retry_after(60))
            }
            Attempt::QuotaSpent => Err(quota_spent()),
            Attempt::Closed => Err(Failure::database()),
        }
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
        let lower_bound = self.context.clock.lower_bound();
        let lower_bound = lower_bound.max(self.lease.claimed_at);
        let life = granted_life(&minted, claim.lifetime, lower_bound.max(service_time()));
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
            lower_bound,
        };
        let fingerprint = finish.fingerprint;
        let (done, finished) = oneshot::channel();
        let context = self.context.clone();
        self.context.tracker.spawn(
            async move {
                let _ = done.send(record_token(&context, finish).await);
            }
            .instrument(database_span("record a mint")),
        );
        let Ok(Ok(finished)) = timeout(COMMIT_TIMEOUT, finished).await else {
            return Err(Failure::database());
        };
        let finished = finished?;
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
    /// Waits at most [`QUERY_TIMEOUT`]. The recording continues in a task for up to [`RECORD_RETRY_TIMEOUT`].
    async fn fail(&self, error: MintError, calls: &CallSummary) -> Failure {
        let MintError {
            mut failure,
            is_unknown,
        } = error;
        let outcome = if is_unknown { "unknown" } else { "failed" };
        let metrics = &self.context.metrics;
        metrics.count_mint(&self.claim.caller.client, outcome);
        let cooldown = match failure.kind {
            // Another client may mint at once.
            FailureKind::MintQuotaSpent => Duration::ZERO,
            _ => self.context.settings.mint_cooldown,
        };
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
        let failed = FailedMint {
            claim: self.claim.clone(),
            failure: failure.clone(),
            is_unknown,
            calls: calls.clone(),
            cooldown_until: self.context.clock.lower_bound() + cooldown,
        };
        let recording = record_failed(self.context.clone(), failed);
        let recording = self.context.tracker.spawn(recording.in_current_span());
        let _ = timeout(QUERY_TIMEOUT, recording).await;
        failure
    }
}

fn note_error(calls: &mut CallSummary, error: &CallError) {
    calls.unseen += i16::from(error.may_have_minted);
    let answer = error.failure.upstream.as_ref();
    calls.status = answer.map(|answer| answer.status);
    calls.identifier = answer.and_then(|answer| answer.identifier.clone());
}

/// Returns the life that the provider granted, at most the requested lifetime.
///
/// If it granted less, the life is one second less, because its `Date` header has whole seconds. Without a `Date`, the
/// life is measured at `now` and is 2 s less, because the clocks of the provider and of this service differ.
fn granted_life(minted: &Minted, lifetime: i32, now: DateTime<Utc>) -> Duration {
    let requested = TimeDelta::seconds(i64::from(lifetime));
    let life = match minted.life {
        Some(life) if life >= requested => requested,
        Some(life) => life - TimeDelta::seconds(1),
        None => minted.expiration - now - TimeDelta::seconds(2),
    };
    life.min(requested).to_std().unwrap_or_default()
}

/// Records a mint without a token and ends its lease. If that fails, the next claim or the cleanup closes the mint.
async fn record_failed(context: Arc<Context>, failed: FailedMint) {
    let mint_id = failed.claim.mint_id;
    let recorded = record_outcome(&context, mint_id, async move |mut connection| {
        fail_mint(&mut connection, &failed).await
    });
    let span = database_span("record a failed mint");
    if let Err(error) = recorded.instrument(span).await {
        tracing::error!(%error, %mint_id, "a failed mint could not be recorded");
    }
}

/// Records a minted token.
async fn record_token(context: &Context, finish: Finish) -> Result<Finished, Failure> {
    let mint_id = finish.claim.mint_id;
    let client = finish.claim.caller.client.clone();
    let recorded = record_outcome(context, mint_id, async move |mut connection| {
        finish_mint(&mut connection, &finish).await
    });
    let (outcome, result) = match recorded.await {
        Ok(Some(finished)) if finished.is_voided => ("voided", Ok(finished)),
        Ok(Some(finished)) => ("minted", Ok(finished)),
        Ok(None) => {
            tracing::error!(%mint_id, "a minted token is lost: its slot does not exist");
            ("unrecorded", Err(Failure::database()))
        }
        Err(error) => {
            tracing::error!(%error, %mint_id, "a minted token is lost: it could not be recorded");
            ("unrecorded", Err(Failure::database()))
        }
    };
    context.metrics.count_mint(&client, outcome);
    result
}

/// Runs a statement that records the outcome of a mint. Retries every 100 ms for [`RECORD_RETRY_TIMEOUT`], so a replay
/// must change nothing.
async fn record_outcome<T, F, Fut>(
    context: &Context,
    mint_id: Uuid,
    statement: F,
) -> Result<T, DbError>
where
    T: Send + 'static,
    F: FnOnce(Checkout) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<T, DbError>> + Send + 'static,
{
    let started = Instant::now();
    loop {
        match context.db.run(Lane::Mints, statement.clone()).await {
            Err(error) if started.elapsed() < RECORD_RETRY_TIMEOUT => {
                tracing::warn!(%error, %mint_id, "the outcome of a mint could not be recorded yet; retrying");
                sleep(Duration::from_millis(100)).await;
            }
            recorded => return recorded,
        }
    }
}
