//! A token request, the rule that decides whether a token satisfies it, and the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::CachedToken;
use crate::model::{Combination, TokenWithSecret};

/// A parsed request for a token.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The reuse key.
    pub combination: Combination,
    /// Seconds of life to request from the provider if a token is minted, 0 to 2592000.
    pub lifetime: i32,
    /// The `min-fresh` of the request: life that any token must have.
    min_fresh: Duration,
    /// Life that a stored token must have left to be reused.
    pub min_life: Duration,
    /// True for `no-cache` from a client with the scope for it: the token must be minted after the
    /// start of the request.
    pub renew: bool,
    /// The maximum number of mints in an hour of the client. `None` for no limit.
    pub mints_per_hour: Option<i32>,
}

impl TokenRequest {
    /// Creates a request. Its `min_life` is the larger of `min_fresh` and the smaller of
    /// `min_remaining` and half the lifetime.
    pub fn new(
        combination: Combination,
        lifetime: i32,
        min_fresh: Option<i32>,
        renew: bool,
        min_remaining: Duration,
    ) -> Self {
        let min_fresh = seconds(min_fresh.unwrap_or(0));
        TokenRequest {
            combination,
            lifetime,
            min_fresh,
            min_life: min_fresh.max(min_remaining.min(seconds(lifetime) / 2)),
            renew,
            mints_per_hour: None,
        }
    }

    /// Returns whether a token minted with this lifetime during the request satisfies it. The life
    /// that passed since the mint does not count.
    pub(super) fn is_satisfied_by_mint(&self, lifetime: i32) -> bool {
        seconds(lifetime) >= self.min_fresh
    }

    /// Returns the life that the handout of this token requires, or `None` if the token does not
    /// satisfy the request.
    pub(super) fn required_life(
        &self,
        cached: &CachedToken,
        requested_at: Instant,
        now: Instant,
    ) -> Option<Duration> {
        let life = cached.life(now);
        if cached.minted_at.is_some_and(|at| at > requested_at) {
            let is_accepted = self.is_satisfied_by_mint(cached.token.lifetime) && !life.is_zero();
            return is_accepted.then_some(Duration::ZERO);
        }
        (!self.renew && life > self.min_life).then_some(self.min_life)
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A token to answer with. Its handout is committed.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub(super) cached: Arc<CachedToken>,
    /// Remaining life in whole seconds, by the monotonic clock.
    pub expires_in: u64,
    /// True if the token was minted for this request.
    pub minted: bool,
    /// The origin of the token, for the `Cache-Status` header.
    pub cache_status: CacheStatus,
}

impl IssuedToken {
    /// Returns the token with its secret.
    pub fn token(&self) -> &TokenWithSecret {
        &self.cached.token
    }
}

/// The origin of a token, in the terms of RFC 9211 (`Cache-Status`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheStatus {
    /// A stored token was reused.
    Hit,
    /// A mint was needed.
    Forwarded {
        /// The reason for the mint.
        reason: ForwardReason,
        /// True if the token can be reused.
        stored: bool,
        /// True if the mint was started by another request.
        collapsed: bool,
    },
}

/// The reason why no stored token satisfied the request. The names are those of RFC 9211, section 2.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForwardReason {
    /// There was no token.
    UriMiss,
    /// The life of the token was too short, or over.
    Stale,
    /// The request demanded a new token although the stored one was fresh.
    Request,
}

#[cfg(test)]
pub(super) mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{Access, TokenString};

    const MIN_REMAINING: Duration = Duration::from_secs(60);

    pub fn request(lifetime: i32, min_fresh: Option<i32>, renew: bool) -> TokenRequest {
        let combination = Combination {
            user_id: "u".into(),
            country: None,
            bank: None,
            access: Access::default(),
        };
        TokenRequest::new(combination, lifetime, min_fresh, renew, MIN_REMAINING)
    }

    pub fn cached_token(
        life: u64,
        lifetime: i32,
        now: Instant,
        minted_at: Option<Instant>,
    ) -> CachedToken {
        let time = chrono::Utc::now();
        CachedToken {
            token: TokenWithSecret {
                id: Uuid::now_v7(),
                combination: request(0, None, false).combination,
                expiration: time,
                issued_at: time,
                lifetime,
                fingerprint: [0; 32].into(),
                token_string: TokenString::new("t"),
            },
            deadline: now + Duration::from_secs(life),
            minted_at,
        }
    }

    #[test]
    fn a_stored_token_needs_more_than_the_minimum_life() {
        let requested_at = Instant::now();
        // (life left, lifetime requested, min-fresh, accepted)
        for (life, lifetime, min_fresh, is_accepted) in [
            (61, 3600, None, true),
            (60, 3600, None, false),
            (59, 3600, None, false),
            // Half of a short lifetime is less than MIN_REMAINING.
            (6, 10, None, true),
            (5, 10, None, false),
            (1, 0, None, true),
            (0, 0, None, false),
            // The larger of MIN_REMAINING and min-fresh decides.
            (61, 3600, Some(10), true),
            (60, 3600, Some(10), false),
            (301, 3600, Some(300), true),
            (300, 3600, Some(300), false),
        ] {
            let request = request(lifetime, min_fresh, false);
            let cached = cached_token(life, 3600, requested_at, None);
            let required_life = request.required_life(&cached, requested_at, requested_at);
            assert_eq!(
                required_life,
                is_accepted.then_some(request.min_life),
                "{life} of {lifetime}, {min_fresh:?}"
            );
        }
    }

    #[test]
    fn a_token_minted_during_the_request_needs_only_the_lifetime_of_min_fresh() {
        let requested_at = Instant::now();
        let later = requested_at + Duration::from_secs(1);
        let short = cached_token(1, 2, later, Some(later));
        let required_life =
            |request: TokenRequest| request.required_life(&short, requested_at, later);
        let accepted = Some(Duration::ZERO);
        assert_eq!(required_life(request(2, None, false)), accepted);
        assert_eq!(required_life(request(3600, None, false)), accepted);
        assert_eq!(required_life(request(2, Some(2), false)), accepted);
        assert_eq!(required_life(request(2, None, true)), accepted);
        // Its lifetime is shorter than min-fresh.
        assert_eq!(required_life(request(3600, Some(3), false)), None);
        // The token is older than this request.
        let after = later + Duration::from_millis(1);
        let rejected = request(2, None, false).required_life(&short, after, after);
        assert_eq!(rejected, None);
    }

    #[test]
    fn renewing_rejects_tokens_from_before_the_request() {
        let requested_at = Instant::now();
        let earlier = requested_at.checked_sub(Duration::from_secs(1));
        for minted_at in [None, earlier, Some(requested_at)] {
            let cached = cached_token(3600, 3600, requested_at, minted_at);
            let required_life =
                request(3600, None, true).required_life(&cached, requested_at, requested_at);
            assert_eq!(required_life, None);
        }
    }
}
