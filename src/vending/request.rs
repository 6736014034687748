//! What a caller asks for, whether a token does for it, and what they get.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::CachedToken;
use crate::model::{Combination, TokenWithSecret};

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The key of reuse.
    pub combination: Combination,
    /// Seconds to ask of the upstream if a token is minted, 0…2592000.
    pub lifetime: i32,
    /// `min-fresh`: the life that the caller insists on.
    min_fresh: Duration,
    /// The life that a token on record must have left to be reused.
    pub min_life: Duration,
    /// `no-cache`, from a caller that may: a token newer than this request.
    pub renew: bool,
}

impl TokenRequest {
    /// A request; `min_remaining` and half the lifetime bound the life that a token on record must have
    /// left, unless `min_fresh` asks for more.
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
        }
    }

    /// A token that was minted while the order waited does if the mint would have done for it:
    /// what the waiting took of its life does not count.
    pub(super) fn is_satisfied_by_mint(&self, lifetime: i32) -> bool {
        seconds(lifetime) >= self.min_fresh
    }

    /// Whether the token does for this order, placed at `placed_at`; if so, the life to insist on
    /// in the handout.
    pub(super) fn accepts(
        &self,
        token: &CachedToken,
        requested_at: Instant,
        now: Instant,
    ) -> Option<Duration> {
        let life = token.life(now);
        if token.minted_at.is_some_and(|at| at > requested_at) {
            let does = self.is_satisfied_by_mint(token.issued.lifetime) && !life.is_zero();
            return does.then_some(Duration::ZERO);
        }
        (!self.renew && life > self.min_life).then_some(self.min_life)
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A token on its way out; its event is committed.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub(super) token: Arc<CachedToken>,
    /// Whole seconds of life left by our clock.
    pub expires_in: u64,
    /// Whether it was minted for this very request.
    pub minted: bool,
    /// How it was come by.
    pub cache_status: CacheStatus,
}

impl IssuedToken {
    /// The token.
    pub fn issued(&self) -> &TokenWithSecret {
        &self.token.issued
    }
}

/// How a token was come by, in the terms of RFC 9211.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheStatus {
    /// It was on record, and fresh enough.
    Hit,
    /// A mint was needed.
    Forwarded {
        /// Why.
        reason: ForwardReason,
        /// It can be handed out again.
        stored: bool,
        /// Another request's mint was shared.
        collapsed: bool,
    },
}

/// Why what was on record did not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForwardReason {
    /// There was nothing.
    UriMiss,
    /// There was a token with too little life left.
    Stale,
    /// There was a fresh token, and the request passed it over.
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

    pub fn token(
        life: u64,
        lifetime: i32,
        now: Instant,
        minted_at: Option<Instant>,
    ) -> CachedToken {
        let time = chrono::Utc::now();
        CachedToken {
            issued: TokenWithSecret {
                id: Uuid::now_v7(),
                combination: request(0, None, false).combination,
                expiration: time,
                issued_at: time,
                lifetime,
                fingerprint: [0; 32].into(),
                token_string: TokenString::new("t".into()),
            },
            deadline: now + Duration::from_secs(life),
            minted_at,
        }
    }

    #[test]
    fn a_token_on_record_needs_the_life_that_the_rule_or_the_caller_asks() {
        let requested_at = Instant::now();
        // (life left, lifetime asked, min-fresh, does)
        for (life, lifetime, min_fresh, does) in [
            (61, 3600, None, true),
            (60, 3600, None, false),
            (59, 3600, None, false),
            // Half of a short lifetime is less than a minute.
            (6, 10, None, true),
            (5, 10, None, false),
            (1, 0, None, true),
            (0, 0, None, false),
            // min-fresh counts where it is the larger.
            (61, 3600, Some(10), true),
            (60, 3600, Some(10), false),
            (301, 3600, Some(300), true),
            (300, 3600, Some(300), false),
        ] {
            let request = request(lifetime, min_fresh, false);
            let token = token(life, 3600, requested_at, None);
            let accepted = request.accepts(&token, requested_at, requested_at);
            assert_eq!(
                accepted.is_some(),
                does,
                "{life} of {lifetime}, {min_fresh:?}"
            );
            if let Some(min_life) = accepted {
                assert_eq!(min_life, request.min_life);
            }
        }
    }

    #[test]
    fn a_token_minted_meanwhile_is_not_asked_for_more_life() {
        let requested_at = Instant::now();
        let later = requested_at + Duration::from_secs(1);
        let short = token(1, 2, later, Some(later));
        let accepts = |request: TokenRequest| request.accepts(&short, requested_at, later);
        assert_eq!(accepts(request(2, None, false)), Some(Duration::ZERO));
        assert_eq!(accepts(request(3600, None, false)), Some(Duration::ZERO));
        assert_eq!(accepts(request(2, Some(2), false)), Some(Duration::ZERO));
        assert_eq!(accepts(request(2, None, true)), Some(Duration::ZERO));
        // It was minted for less than this one insists on.
        assert_eq!(accepts(request(3600, Some(3), false)), None);
        // And a request placed after it is a new one.
        let after = later + Duration::from_millis(1);
        assert_eq!(request(2, None, false).accepts(&short, after, after), None);
    }

    #[test]
    fn renewing_passes_over_what_was_there_before() {
        let requested_at = Instant::now();
        let earlier = requested_at.checked_sub(Duration::from_secs(1));
        for minted_at in [None, earlier, Some(requested_at)] {
            let token = token(3600, 3600, requested_at, minted_at);
            assert_eq!(
                request(3600, None, true).accepts(&token, requested_at, requested_at),
                None
            );
        }
    }
}
