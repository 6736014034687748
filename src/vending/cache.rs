//! Tokens in memory: they propose, Postgres disposes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;

use crate::model::{Combination, Issued};

/// A token that may be proposed for a handout.
#[derive(Debug)]
pub struct CachedToken {
    /// The record and the secret.
    pub issued: Issued,
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
            tokens: Cache::builder()
                .max_capacity(max_tokens)
                .expire_after(AtDeadline)
                .build(),
            hasher: RandomState::new(),
        }
    }

    /// The token to propose.
    pub fn get(&self, combination: &Combination) -> Option<Arc<CachedToken>> {
        let token = self.tokens.get(&self.hasher.hash_one(combination))?;
        (token.issued.token.combination == *combination).then_some(token)
    }

    /// How many there are, or nearly.
    pub fn entries(&self) -> u64 {
        self.tokens.entry_count()
    }

    /// Proposes this one from now on.
    pub fn insert(&self, token: Arc<CachedToken>) {
        let key = self.hasher.hash_one(&token.issued.token.combination);
        self.tokens.insert(key, token);
    }

    /// Proposes this one no more; a newer one stays.
    pub fn remove(&self, token: &Arc<CachedToken>) {
        let key = self.hasher.hash_one(&token.issued.token.combination);
        let cached = self.tokens.get(&key);
        if cached.is_some_and(|cached| Arc::ptr_eq(&cached, token)) {
            self.tokens.invalidate(&key);
        }
    }
}

/// Ends an entry with its token.
struct AtDeadline;

impl Expiry<u64, Arc<CachedToken>> for AtDeadline {
    fn expire_after_create(
        &self,
        _: &u64,
        token: &Arc<CachedToken>,
        now: Instant,
    ) -> Option<Duration> {
        Some(token.life(now))
    }

    fn expire_after_update(
        &self,
        _: &u64,
        token: &Arc<CachedToken>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(token.life(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vending::order::tests::{order, token};

    #[test]
    fn what_shares_a_hash_shares_no_token() {
        let cache = TokenCache::new(10);
        let token = Arc::new(token(60, 60, Instant::now(), None));
        let own = token.issued.token.combination.clone();
        let mut other = order(60, None, false).combination;
        other.bank = Some("Swedbank".into());

        cache.insert(token.clone());
        assert!(Arc::ptr_eq(&cache.get(&own).unwrap(), &token));
        assert!(cache.get(&other).is_none());

        let hash = cache.hasher.hash_one(&other);
        cache.tokens.insert(hash, token);
        assert!(cache.get(&other).is_none());
    }
}
