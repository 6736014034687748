//! The last keys of the issuer, and when they may be fetched again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keys::SigningKey;

/// The reason for a fetch.
#[derive(Clone, Copy, Debug)]
pub enum Trigger {
    /// The keys have not been read since the start.
    NoKeys,
    /// A token names an unknown key. The issuer may have a new one, or the token is forged.
    UnknownKey,
    /// The keys are old. The issuer may have withdrawn one.
    Age,
}

impl Trigger {
    /// Returns the minimum time between two fetches.
    fn interval(self) -> Duration {
        match self {
            Trigger::NoKeys => Duration::from_secs(5),
            Trigger::UnknownKey => Duration::from_secs(60),
            Trigger::Age => Duration::from_secs(300),
        }
    }
}

/// The last keys, which stay in use while the issuer is down.
#[derive(Debug, Default)]
pub struct KeyCache {
    /// The keys. `None` until they were read once.
    pub keys: Option<Arc<[SigningKey]>>,
    fetched_at: Option<Instant>,
    /// The time of the last fetch because of an unknown key.
    searched_at: Option<Instant>,
}

impl KeyCache {
    /// Records that a fetch begins.
    pub fn note_fetch(&mut self, now: Instant) {
        self.fetched_at = Some(now);
    }

    /// Returns whether the trigger may cause a fetch now.
    ///
    /// The first unknown key may cause one at once, because the keys can be new since the start.
    pub fn is_due(&self, trigger: Trigger, now: Instant) -> bool {
        let last = match trigger {
            Trigger::NoKeys | Trigger::Age => self.fetched_at,
            Trigger::UnknownKey => self.searched_at,
        };
        last.is_none_or(|last| now.duration_since(last) >= trigger.interval())
    }

    /// Returns whether the trigger may cause a fetch now. The caller then fetches.
    pub fn take_turn(&mut self, trigger: Trigger, now: Instant) -> bool {
        let is_due = self.is_due(trigger, now);
        if is_due && matches!(trigger, Trigger::UnknownKey) {
            self.searched_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_causes_a_fetch_at_most_once_a_minute() {
        let (mut cache, start) = (KeyCache::default(), Instant::now());
        cache.note_fetch(start);
        let is_due_after = |cache: &mut KeyCache, seconds| {
            let now = start + Duration::from_secs(seconds);
            let is_due = cache.take_turn(Trigger::UnknownKey, now);
            if is_due {
                cache.note_fetch(now);
            }
            is_due
        };
        let due: Vec<u64> = (1..=200)
            .filter(|seconds| is_due_after(&mut cache, *seconds))
            .collect();
        assert_eq!(due, [1, 61, 121, 181]);
    }

    #[test]
    fn keys_are_fetched_again_after_five_minutes_and_missing_ones_after_five_seconds() {
        let (mut cache, start) = (KeyCache::default(), Instant::now());
        assert!(cache.take_turn(Trigger::NoKeys, start));
        cache.note_fetch(start);
        for (trigger, seconds) in [(Trigger::NoKeys, 5), (Trigger::Age, 300)] {
            let end = start + Duration::from_secs(seconds);
            assert!(
                !cache.take_turn(trigger, end - Duration::from_millis(1)),
                "{trigger:?}"
            );
            assert!(cache.take_turn(trigger, end), "{trigger:?}");
        }
    }
}
