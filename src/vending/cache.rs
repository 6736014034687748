//! The token cache of a replica. It only suggests a token; the handout statement in Postgres decides.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::model::{Combination, TokenWithSecret};

/// A cached token with its secret.
#[derive(Debug)]
pub struct CachedToken {
    /// The record and the token string.
    pub token: TokenWithSecret,
    /// The end of the token's life by the monotonic clock. It is never later than `ends_at` in the database.
    pub deadline: Instant,
    /// The time at which this replica saw the mint of the token finish. `None` if it did not see the mint.
    /// A request that started earlier shares the mint.
    pub minted_at: Option<Instant>,
}

impl CachedToken {
    /// Returns the remaining life.
    pub fn life(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

/// The token cache: at most one token per combination.
///
/// The key is a hash of the combination, which saves memory because the token holds the combination too.
/// If two combinations have the same hash, the cache keeps only one of their tokens.
#[derive(Clone, Debug)]
pub struct TokenCache {
    tokens: Cache<u64, Arc<CachedToken>>,
    hasher: RandomState,
}

impl TokenCache {
    /// Creates a cache for at most `max_tokens` tokens.
    pub fn new(max_tokens: u64) -> Self {
        TokenCache {
            tokens: Cache::new(max_tokens),
            hasher: RandomState::new(),
        }
    }

    /// Returns the cached token of the combination, which may have expired.
    pub fn get(&self, combination: &Combination) -> Option<Arc<CachedToken>> {
        let cached = self.tokens.get(&self.hasher.hash_one(combination))?;
        (cached.token.combination == *combination).then_some(cached)
    }

    /// Returns the approximate number of cached tokens.
    pub fn entries(&self) -> u64 {
        self.tokens.entry_count()
    }

    /// Caches the token in place of an earlier token of its combination.
    pub fn insert(&self, cached: Arc<CachedToken>) {
        let key = self.hasher.hash_one(&cached.token.combination);
        self.tokens.insert(key, cached);
    }

    /// Evicts all expired tokens.
    pub fn evict_expired(&self, now: Instant) {
        for (_, cached) in &self.tokens {
            if cached.life(now).is_zero() {
                self.remove(&cached);
            }
        }
        self.tokens.run_pending_tasks();
    }

    /// Removes this token. A newer token of the same combination stays.
    pub fn remove(&self, cached: &Arc<CachedToken>) {
        let key = self.hasher.hash_one(&cached.token.combination);
        let current = self.tokens.get(&key);
        if current.is_some_and(|current| Arc::ptr_eq(&current, cached)) {
            self.tokens.invalidate(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vending::request::tests::{cached_token, request};

    #[test]
    fn eviction_removes_exactly_the_expired_tokens() {
        let cache = TokenCache::new(1_000);
        let now = Instant::now();
        let tokens = (0..100).map(|n| {
            let mut cached = cached_token(60 + n % 2 * 60, 60, now, None);
            cached.token.combination.user_id = format!("u-{n}").into();
            Arc::new(cached)
        });
        let tokens = tokens.collect::<Vec<_>>();
        for cached in &tokens {
            cache.insert(cached.clone());
        }
        let are_cached = || {
            tokens
                .iter()
                .map(|cached| cache.get(&cached.token.combination).is_some())
                .collect::<Vec<_>>()
        };

        cache.evict_expired(now + Duration::from_secs(59));
        assert_eq!(are_cached(), vec![true; 100]);

        cache.evict_expired(now + Duration::from_secs(60));
        assert_eq!(are_cached(), [false, true].repeat(50));
        assert_eq!(cache.entries(), 50);
        let owners = Arc::strong_count(&tokens[0]);
        assert_eq!(owners, 1, "the cache dropped the token and its secret");
    }

    #[test]
    fn a_combination_never_gets_the_token_of_another_with_the_same_hash() {
        let cache = TokenCache::new(10);
        let cached = Arc::new(cached_token(60, 60, Instant::now(), None));
        let combination = cached.token.combination.clone();
        let mut other = request(60, None, false).combination;
        other.bank = Some("Swedbank".into());

        cache.insert(cached.clone());
        assert!(Arc::ptr_eq(&cache.get(&combination).unwrap(), &cached));
        assert!(cache.get(&other).is_none());

        let hash = cache.hasher.hash_one(&other);
        cache.tokens.insert(hash, cached);
        assert!(cache.get(&other).is_none());
    }
}
