//! Refused calls, counted in memory and put on record once a minute: a flood of them neither fills
//! the trail nor goes unseen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::db::Database;
use crate::db::audit_events::{DenialRow, insert_denials};

/// Callers and routes counted apart in one flush; all beyond are counted together.
const MAX_KEYS: usize = 1_000;

/// What is counted: who, and where.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct DenialKey {
    /// The client that lacks the scope; none where the caller is not known.
    pub client: Option<String>,
    /// The address of a caller that is not known.
    pub source_ip: Option<String>,
    /// The route as the route table names it; none for what is counted together.
    pub route: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    count: i64,
    since: DateTime<Utc>,
}

/// The refusals of this replica that are not on record yet. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct DenialCounter(Arc<Mutex<HashMap<DenialKey, Count>>>);

impl DenialCounter {
    /// Counts, and writes at the start of each minute and once `stop` is cancelled; the task then
    /// ends.
    pub fn start(db: Database, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let denials = DenialCounter::default();
        let task = tokio::spawn(denials.clone().run(db, stop));
        (denials, task)
    }

    /// Counts a refusal. Does not wait for anything.
    pub fn note(&self, denied: DenialKey) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the minute is informative, nothing is decided by it"
        )]
        self.add(denied, 1, Utc::now());
    }

    async fn run(self, db: Database, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // By the clock's minutes: no minute has two flushes.
            #[expect(
                clippy::disallowed_methods,
                reason = "counts are grouped by the minutes of this clock"
            )]
            let into_minute = Utc::now().timestamp_millis().rem_euclid(60_000);
            let rest = Duration::from_millis(60_000 - into_minute as u64);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = stop.cancelled() => {}
            }
            self.flush(&db).await;
        }
        // What came while the last one was written.
        self.flush(&db).await;
    }

    /// Puts on record what was counted, an event for each key. What could not be written is kept
    /// for the next time; after a lost COMMIT it is then on record twice rather than never.
    async fn flush(&self, db: &Database) {
        let taken: Vec<_> = self.counts().drain().collect();
        if taken.is_empty() {
            return;
        }
        let rows = taken.iter().map(|(denied, count)| row(denied, *count));
        let rows: Vec<DenialRow> = rows.collect();
        let written = db.run(move |pool| async move { insert_denials(&pool, &rows).await });
        if let Err(error) = written.await {
            tracing::error!(%error, "refused calls could not be put on record; tried again in a minute");
            for (denied, count) in taken {
                self.add(denied, count.count, count.since);
            }
        }
    }

    fn add(&self, denied: DenialKey, count: i64, since: DateTime<Utc>) {
        let mut counts = self.counts();
        let has_room = counts.len() < MAX_KEYS || counts.contains_key(&denied);
        let key = if has_room {
            denied
        } else {
            DenialKey::default()
        };
        match counts.entry(key) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.count += count;
                known.since = known.since.min(since);
            }
            Entry::Vacant(new) => {
                new.insert(Count { count, since });
            }
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<DenialKey, Count>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn row(denied: &DenialKey, Count { count, since }: Count) -> DenialRow {
    DenialRow {
        event_id: Uuid::now_v7(),
        client: denied.client.clone(),
        source_ip: denied.source_ip.clone(),
        detail: serde_json::json!({
            "route": denied.route,
            "status": denied.route.map(|_| if denied.client.is_some() { 403 } else { 401 }),
            "count": count,
            "since": since,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_everywhere_is_counted_in_bounded_memory() {
        let denials = DenialCounter::default();
        let denied = |n: usize| DenialKey {
            source_ip: Some(n.to_string()),
            route: Some("/bank/tokens/"),
            ..DenialKey::default()
        };
        for n in (0..5_000).chain(0..5_000) {
            denials.note(denied(n));
        }
        let counts = denials.counts();
        assert_eq!(counts.len(), MAX_KEYS + 1);
        assert_eq!(counts[&denied(0)].count, 2);
        assert_eq!(counts[&DenialKey::default()].count, 8_000);
        assert_eq!(
            counts.values().map(|count| count.count).sum::<i64>(),
            10_000
        );
    }
}
