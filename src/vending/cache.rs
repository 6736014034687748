//! Tokens in memory: they propose, Postgres disposes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::model::{Combination, TokenWithSecret};

/// A token that may be proposed for a handout.
#[derive(Debug)]
pub struct CachedToken {
    /// The record and the secret.
    pub issued: TokenWithSecret,
    /// When its life is over by this machine's monotonic clock, never later than by the database's.
    pub deadline: Instant,
    /// When this replica saw its mint end, if it was there to see it: requests that began before
    /// shared in that mint.
    pub minted_at: Option<Instant>,
}

impl CachedToken {
    /// The life left.
    pub fn life(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

/// The tokens of this replica, one a combination.
///
/// Kept under a hash of it, since it is in the token already: of two that share theirs, one is kept.
#[derive(Clone, Debug)]
pub struct TokenCache {
    tokens: Cache<u64, Arc<CachedToken>>,
    hasher: RandomState,
}

impl TokenCache {
    /// Holds at most so many tokens.
    pub fn new(max_tokens: u64) -> Self {
        TokenCache {
            tokens: Cache::new(max_tokens),
            hasher: RandomState::new(),
        }
    }

    /// The token to propose.
    pub fn get(&self, combination: &Combination) -> Option<Arc<CachedToken>> {
        let token = self.tokens.get(&self.hasher.hash_one(combination))?;
        (token.issued.combination == *combination).then_some(token)
    }

    /// How many there are, or nearly.
    pub fn entries(&self) -> u64 {
        self.tokens.entry_count()
    }

    /// Proposes this one from now on.
    pub fn insert(&self, token: Arc<CachedToken>) {
        let key = self.hasher.hash_one(&token.issued.combination);
        self.tokens.insert(key, token);
    }

    /// Lets go of those whose life is over.
    pub fn evict_expired(&self, now: Instant) {
        for (_, token) in &self.tokens {
            if token.life(now).is_zero() {
                self.remove(&token);
            }
        }
        self.tokens.run_pending_tasks();
    }

    /// Proposes this one no more; a newer one stays.
    pub fn remove(&self, token: &Arc<CachedToken>) {
        let key = self.hasher.hash_one(&token.issued.combination);
        let cached = self.tokens.get(&key);
        if cached.is_some_and(|cached| Arc::ptr_eq(&cached, token)) {
            self.tokens.invalidate(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vending::request::tests::{request, token};

    #[test]
    fn a_sweep_takes_what_has_ended_and_nothing_else() {
        let cache = TokenCache::new(1_000);
        let now = Instant::now();
        let tokens = (0..100).map(|n| {
            let mut token = token(60 + n % 2 * 60, 60, now, None);
            token.issued.combination.user_id = format!("u-{n}").into();
            Arc::new(token)
        });
        let tokens = tokens.collect::<Vec<_>>();
        for token in &tokens {
            cache.insert(token.clone());
        }
        let kept = || {
            let kept = tokens.iter();
            kept.map(|token| cache.get(&token.issued.combination).is_some())
                .collect::<Vec<_>>()
        };

        cache.evict_expired(now + Duration::from_secs(59));
        assert_eq!(kept(), vec![true; 100]);

        cache.evict_expired(now + Duration::from_secs(60));
        assert_eq!(kept(), [false, true].repeat(50));
        assert_eq!(cache.entries(), 50);
        assert_eq!(Arc::strong_count(&tokens[0]), 1, "its secret is wiped");
    }

    #[test]
    fn what_shares_a_hash_shares_no_token() {
        let cache = TokenCache::new(10);
        let token = Arc::new(token(60, 60, Instant::now(), None));
        let own = token.issued.combination.clone();
        let mut other = request(60, None, false).combination;
        other.bank = Some("Swedbank".into());

        cache.insert(token.clone());
        assert!(Arc::ptr_eq(&cache.get(&own).unwrap(), &token));
        assert!(cache.get(&other).is_none());

        let hash = cache.hasher.hash_one(&other);
        cache.tokens.insert(hash, token);
        assert!(cache.get(&other).is_none());
    }
}
