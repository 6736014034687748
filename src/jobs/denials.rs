//! Counts of denied requests: 401, 403, and 429 for wrong credentials.
//!
//! They are counted in memory and recorded as `access.denied` events once a minute. A flood of denied
//! requests is therefore visible in the audit log and does not fill it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::db::audit_events::{DenialRow, insert_denials};
use crate::db::{Database, Lane};

/// Maximum number of separate counts in one flush. All further requests share one count.
const MAX_KEYS: usize = 1_000;

/// The caller and the route of denied requests that share a count.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct DenialKey {
    /// The client that was refused (403). `None` for an unauthenticated caller.
    pub client: Option<String>,
    /// The source address of an unauthenticated caller (401, 429), or of a client that may not call from it (403).
    pub source_ip: Option<String>,
    /// The API key that came with a wrong secret, if it is the key of a client.
    pub attempted_key: Option<String>,
    /// The route as the route table names it. `None` for the shared count beyond the maximum.
    pub route: Option<&'static str>,
    /// The status of the response. `None` for the shared count.
    pub status: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    count: i64,
    since: DateTime<Utc>,
}

/// The counts of this replica that are not recorded yet. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct DenialCounter(Arc<Mutex<HashMap<DenialKey, Count>>>);

impl DenialCounter {
    /// Starts a task that records the counts at the start of each minute. It records them a last time
    /// once `stop` is cancelled, then ends.
    pub fn start(db: Database, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let counter = DenialCounter::default();
        let task = tokio::spawn(counter.clone().run(db, stop));
        (counter, task)
    }

    /// Counts a denied request, without waiting.
    pub fn note(&self, key: DenialKey) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the time is informative; nothing is decided by it"
        )]
        self.add(key, 1, Utc::now());
    }

    async fn run(self, db: Database, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // Aligned to the clock, so that no minute has two flushes.
            #[expect(
                clippy::disallowed_methods,
                reason = "counts are grouped by the minutes of this clock"
            )]
            let into_minute = Utc::now().timestamp_millis().rem_euclid(60_000);
            let until_next_minute = Duration::from_millis(60_000 - into_minute as u64);
            tokio::select! {
                () = tokio::time::sleep(until_next_minute) => {}
                () = stop.cancelled() => {}
            }
            self.flush(&db).await;
        }
        // Requests may have been denied during the last flush.
        self.flush(&db).await;
    }

    /// Records one event for each key. If that fails, keeps the counts for the next flush. After a
    /// commit whose outcome is unknown, they may be recorded twice rather than lost.
    async fn flush(&self, db: &Database) {
        let taken: Vec<_> = self.counts().drain().collect();
        if taken.is_empty() {
            return;
        }
        let rows = taken.iter().map(|(key, count)| denial_row(key, *count));
        let rows: Vec<DenialRow> = rows.collect();
        let written = db.run(Lane::Upkeep, async move |mut connection| {
            insert_denials(&mut connection, &rows).await
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "denied requests could not be recorded; retrying in a minute");
            for (key, count) in taken {
                self.add(key, count.count, count.since);
            }
        }
    }

    fn add(&self, key: DenialKey, count: i64, since: DateTime<Utc>) {
        let mut counts = self.counts();
        let has_room = counts.len() < MAX_KEYS || counts.contains_key(&key);
        let key = if has_room { key } else { DenialKey::default() };
        let entry = counts.entry(key).or_insert(Count { count: 0, since });
        entry.count += count;
        entry.since = entry.since.min(since);
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<DenialKey, Count>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn denial_row(key: &DenialKey, Count { count, since }: Count) -> DenialRow {
    DenialRow {
        client: key.client.clone(),
        source_ip: key.source_ip.clone(),
        detail: serde_json::json!({
            "route": key.route,
            "status": key.status,
            "attemptedKey": key.attempted_key,
            "count": count,
            "since": since,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_many_addresses_is_counted_in_bounded_memory() {
        let counter = DenialCounter::default();
        let key = |n: usize| DenialKey {
            source_ip: Some(n.to_string()),
            route: Some("/bank/tokens/"),
            ..DenialKey::default()
        };
        for n in (0..5_000).chain(0..5_000) {
            counter.note(key(n));
        }
        let counts = counter.counts();
        assert_eq!(counts.len(), MAX_KEYS + 1);
        assert_eq!(counts[&key(0)].count, 2);
        assert_eq!(counts[&DenialKey::default()].count, 8_000);
        assert_eq!(
            counts.values().map(|count| count.count).sum::<i64>(),
            10_000
        );
    }
}
