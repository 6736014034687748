//! The work of a flight: use a stored token, wait for the mint of another flight, or mint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::time::sleep;

use super::cache::CachedToken;
use super::context::Context;
use super::mint::try_mint;
use super::request::{ForwardReason, TokenRequest};
use crate::db::Lane;
use crate::db::clock::service_time;
use crate::db::slots::{Slot, StoredToken, find_slot, point_slot};
use crate::model::{Caller, Failure, FailureKind, TokenWithSecret};

/// The token that a flight found or minted.
#[derive(Clone, Debug)]
pub struct ResolvedToken {
    /// The token.
    pub token: Arc<CachedToken>,
    /// The origin of the token.
    pub origin: TokenOrigin,
    /// The reason why no stored token satisfied the request when the flight started.
    pub reason: ForwardReason,
}

/// The origin of the token of a flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenOrigin {
    /// A token stored before the flight started.
    Stored,
    /// A token that another flight, usually of another replica, minted while this flight waited.
    MintedElsewhere,
    /// A token that this flight minted for the caller that started it.
    MintedHere,
}

/// Finds or mints a token that satisfies the request.
///
/// Reads the slot in a loop, because another flight may hold the lease or win the claim.
///
/// # Errors
/// Returns the failure of the mint, the failure of a combination that cools down, or
/// `upstream-timeout` after the time limit of an issue request.
pub(super) async fn resolve_token(
    context: Arc<Context>,
    request: TokenRequest,
    caller: Arc<Caller>,
) -> Result<ResolvedToken, Failure> {
    let started = Instant::now();
    let min_life = TimeDelta::from_std(request.min_life).unwrap_or_default();
    let (mut seen_seq, mut reason) = (None, None);
    while started.elapsed() < context.settings.max_wait() {
        let read_at = Instant::now();
        let slot = read_slot(&context, &request).await?;
        let seen = seen_seq.unwrap_or(slot.minted_seq);
        let reason = *reason.get_or_insert_with(|| forward_reason(&slot, &request, min_life));
        let resolved = |token, origin| {
            Ok(ResolvedToken {
                token,
                origin,
                reason,
            })
        };
        let life = |stored: &StoredToken| stored.life(slot.now, service_time());
        let cache =
            |stored, is_new| decrypt_and_cache(&context, stored, life(stored), read_at, is_new);
        if let Some(pointer) = &slot.pointer {
            let is_new = slot.minted_seq > seen;
            if is_new && request.is_satisfied_by_mint(pointer.token.lifetime) {
                return resolved(cache(pointer, true)?, TokenOrigin::MintedElsewhere);
            }
            if !request.renew && life(pointer) > min_life {
                return resolved(cache(pointer, false)?, TokenOrigin::Stored);
            }
        }
        // None of the mints so far satisfies this request. Only a later one can.
        seen_seq = Some(slot.minted_seq);
        if let Some(failure) = slot.cooling {
            return Err(failure);
        }
        if slot.is_leased {
            sleep(next_poll_delay(started.elapsed())).await;
            continue;
        }
        if slot.wants_pointing
            && !request.renew
            && let Some(stored) = repoint_slot(&context, &request).await?
            && life(&stored) > min_life
        {
            return resolved(cache(&stored, false)?, TokenOrigin::Stored);
        }
        match try_mint(&context, &request, &caller, &slot, read_at).await? {
            Some(token) => return resolved(token, TokenOrigin::MintedHere),
            None => sleep(Duration::from_millis(fastrand::u64(5..25))).await,
        }
    }
    Err(Failure::timeout())
}

/// Returns the time until the next read of a slot whose lease another flight holds: half to all of a
/// quarter of the time waited so far, within 20 to 250 ms.
///
/// The mint is therefore noticed at most a quarter of its duration, or 20 ms, after its end. A mint
/// that takes a second costs about twenty reads.
fn next_poll_delay(waited: Duration) -> Duration {
    let max_delay = (waited / 4).clamp(Duration::from_millis(20), Duration::from_millis(250));
    max_delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn forward_reason(slot: &Slot, request: &TokenRequest, min_life: TimeDelta) -> ForwardReason {
    match &slot.pointer {
        Some(pointer) if request.renew && pointer.life(slot.now, service_time()) > min_life => {
            ForwardReason::Request
        }
        Some(_) => ForwardReason::Stale,
        None if slot.is_stale => ForwardReason::Stale,
        None => ForwardReason::UriMiss,
    }
}

async fn read_slot(context: &Context, request: &TokenRequest) -> Result<Slot, Failure> {
    let (combination, lower_bound, min_life) = (
        request.combination.clone(),
        context.clock.lower_bound(),
        request.min_life,
    );
    let slot = context
        .run_query(Lane::Mints, "read a slot", async move |mut connection| {
            find_slot(&mut connection, &combination, lower_bound, min_life).await
        })
        .await?;
    context.clock.observe(slot.database_time);
    Ok(slot)
}

async fn repoint_slot(
    context: &Context,
    request: &TokenRequest,
) -> Result<Option<StoredToken>, Failure> {
    let (combination, lower_bound, min_life) = (
        request.combination.clone(),
        context.clock.lower_bound(),
        request.min_life,
    );
    context
        .run_query(Lane::Mints, "point a slot", async move |mut connection| {
            point_slot(&mut connection, &combination, lower_bound, min_life).await
        })
        .await
}

/// Decrypts a stored token and caches it.
///
/// `life` is the life left. It counts from `read_at`, which is before the read, so the deadline is never later than
/// `ends_at`. `is_new` says that the token was minted while this flight waited.
///
/// # Errors
/// Returns `token-unreadable` if no key decrypts the token.
fn decrypt_and_cache(
    context: &Context,
    stored: &StoredToken,
    life: TimeDelta,
    read_at: Instant,
    is_new: bool,
) -> Result<Arc<CachedToken>, Failure> {
    let token = &stored.token;
    let token_string = context
        .keys
        .decrypt(&stored.ciphertext, token.id, &token.combination)
        .map_err(|error| {
            context.metrics.tokens_unreadable_total.inc();
            tracing::error!(token_id = %token.id, %error, "ALARM: a stored token cannot be decrypted");
            let detail = "the stored token cannot be decrypted; report it to the operator of this service";
            Failure::new(FailureKind::TokenUnreadable, detail)
        })?;
    let cached = Arc::new(CachedToken {
        token: TokenWithSecret {
            id: token.id,
            combination: token.combination.clone(),
            expiration: token.expiration,
            issued_at: token.issued_at,
            lifetime: token.lifetime,
            fingerprint: token.fingerprint,
            token_string,
        },
        deadline: read_at + life.to_std().unwrap_or_default(),
        minted_at: is_new.then(Instant::now),
    });
    context.cache.insert(cached.clone());
    Ok(cached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_notices_a_mint_soon_with_few_reads() {
        let (mut waited, mut reads) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(1) {
            let delay = next_poll_delay(waited);
            assert!(delay <= (waited / 4).max(Duration::from_millis(20)));
            waited += delay;
            reads += 1;
        }
        assert!(reads <= 31, "{reads} reads in a second");
        assert!(next_poll_delay(30 * waited) <= Duration::from_millis(250));
    }
}
