//! Records the day of the last use of each client, outside of requests.

use std::collections::HashSet;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::db::clients::record_use;
use crate::db::{Database, Lane};
use crate::model::Client;

/// Time between two recordings.
const INTERVAL: Duration = Duration::from_secs(20);

/// The clients that were used on a day of which the database has no use yet. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub(super) struct LastUse(Arc<Mutex<HashSet<String>>>);

impl LastUse {
    /// Notes a use, without waiting. It is called when a client is read from the database, every 3 s while it calls.
    pub fn note(&self, client: &Client) {
        if !client.is_use_recorded {
            self.used().insert(client.api_key.clone());
        }
    }

    /// Records the noted uses every 20 s, and a last time once `stop` is cancelled.
    ///
    /// Uses that cannot be recorded are dropped. The next read of the client notes it again.
    pub async fn record_until(self, db: Database, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let _ = stop.run_until_cancelled(sleep(INTERVAL)).await;
            let used: Vec<String> = take(&mut *self.used()).into_iter().collect();
            if used.is_empty() {
                continue;
            }
            let recorded = db.run(Lane::Upkeep, async move |mut connection| {
                record_use(&mut connection, &used).await
            });
            if let Err(error) = recorded.await {
                tracing::warn!(%error, "the last use of clients could not be recorded yet");
            }
        }
    }

    fn used(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
