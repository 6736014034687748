//! A cache miss: what is on record, if it does, else a mint. Runs in a flight, for all who wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::sleep;

use super::cache::CachedToken;
use super::context::Context;
use super::mint::claim_and_mint;
use super::request::{ForwardReason, TokenRequest};
use crate::db::slots::{Slot, StoredToken, find_slot, point_slot};
use crate::model::{Caller, Failure, FailureKind, TokenWithSecret};

/// What a flight came to.
#[derive(Clone, Debug)]
pub struct FlightResult {
    /// The token.
    pub token: Arc<CachedToken>,
    /// Where it came from.
    pub origin: TokenOrigin,
    /// Why what was on record before did not do.
    pub reason: ForwardReason,
}

/// Where a flight's token came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenOrigin {
    /// It was on record.
    Found,
    /// Another replica minted it meanwhile.
    Awaited,
    /// This flight minted it, in the name of who started it.
    Minted,
}

/// Finds or mints a token for the order.
pub(super) async fn resolve(
    context: Arc<Context>,
    request: TokenRequest,
    caller: Arc<Caller>,
) -> Result<FlightResult, Failure> {
    let started = Instant::now();
    let min_life = TimeDelta::from_std(request.min_life).unwrap_or_default();
    let (mut seen_seq, mut reason) = (None, None);
    while started.elapsed() < context.settings.max_wait() {
        let read_at = Instant::now();
        let slot = read_slot(&context, &request).await?;
        let since = seen_seq.unwrap_or(slot.minted_seq);
        let reason = *reason.get_or_insert_with(|| forward_reason(&slot, &request, min_life));
        let land = |token, origin| {
            Ok(FlightResult {
                token,
                origin,
                reason,
            })
        };
        if let Some(pointer) = &slot.pointer {
            let was_awaited = slot.minted_seq > since;
            if was_awaited && request.is_satisfied_by_mint(pointer.token.lifetime) {
                let token = cache_stored_token(&context, pointer, slot.judged_at, read_at, true)?;
                return land(token, TokenOrigin::Awaited);
            }
            if !request.renew && pointer.life(slot.judged_at) > min_life {
                let token = cache_stored_token(&context, pointer, slot.judged_at, read_at, false)?;
                return land(token, TokenOrigin::Found);
            }
        }
        // What others have minted so far does not do for this order.
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
            && let Some(stored) = point(&context, &request).await?
        {
            let token = cache_stored_token(&context, &stored, slot.judged_at, read_at, false)?;
            return land(token, TokenOrigin::Found);
        }
        match claim_and_mint(&context, &request, &caller, &slot, read_at).await? {
            Some(token) => return land(token, TokenOrigin::Minted),
            // Somebody else won the claim, or the combination was invalidated under the mint.
            None => sleep(Duration::from_millis(fastrand::u64(5..25))).await,
        }
    }
    Err(Failure::timeout())
}

/// How long to leave alone a mint of another replica that was waited for so long: the longer it has
/// taken, the longer it may yet take. So it is seen late by a quarter of its time at most, or 20 ms,
/// and one that takes a second is looked at some twenty times.
fn next_poll_delay(waited: Duration) -> Duration {
    let longest = (waited / 4).clamp(Duration::from_millis(20), Duration::from_millis(250));
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn forward_reason(slot: &Slot, request: &TokenRequest, min_life: TimeDelta) -> ForwardReason {
    match &slot.pointer {
        Some(pointer) if request.renew && pointer.life(slot.judged_at) > min_life => {
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
        .run_query("read a slot", |pool| async move {
            find_slot(&pool, &combination, lower_bound, min_life).await
        })
        .await?;
    context.clock.observe(slot.now);
    Ok(slot)
}

async fn point(context: &Context, request: &TokenRequest) -> Result<Option<StoredToken>, Failure> {
    let (combination, lower_bound, min_life) = (
        request.combination.clone(),
        context.clock.lower_bound(),
        request.min_life,
    );
    context
        .run_query("point a slot", |pool| async move {
            point_slot(&pool, &combination, lower_bound, min_life).await
        })
        .await
}

/// Opens a stored token and proposes it from now on. Its monotonic deadline counts from before
/// the reading, so it is never late.
fn cache_stored_token(
    context: &Context,
    stored: &StoredToken,
    judged_at: DateTime<Utc>,
    read_at: Instant,
    was_awaited: bool,
) -> Result<Arc<CachedToken>, Failure> {
    let token = &stored.token;
    let token_string = context
        .keys
        .decrypt(&stored.ciphertext, token.id, &token.combination)
        .map_err(|error| {
            context.metrics.tokens_unreadable_total.inc();
            tracing::error!(token_id = %token.id, %error, "ALARM: a stored token cannot be opened");
            let detail = "the token on record cannot be opened";
            Failure::new(FailureKind::TokenUnreadable, detail)
        })?;
    let life = (token.ends_at - judged_at).to_std().unwrap_or_default();
    let cached = Arc::new(CachedToken {
        issued: TokenWithSecret {
            id: token.id,
            combination: token.combination.clone(),
            expiration: token.expiration,
            issued_at: token.issued_at,
            lifetime: token.lifetime,
            fingerprint: token.fingerprint,
            token_string,
        },
        deadline: read_at + life,
        minted_at: was_awaited.then(Instant::now),
    });
    context.cache.insert(cached.clone());
    Ok(cached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mint_elsewhere_is_seen_soon_and_looked_at_seldom() {
        let (mut waited, mut looks) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(1) {
            let next = next_poll_delay(waited);
            assert!(next <= (waited / 4).max(Duration::from_millis(20)));
            waited += next;
            looks += 1;
        }
        assert!(looks <= 31, "{looks} looks in a second");
        assert!(next_poll_delay(30 * waited) <= Duration::from_millis(250));
    }
}
