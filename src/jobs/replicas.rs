//! The report of this replica about itself, for the console.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::db::replicas::{ReplicaReport, store_report};
use crate::db::{Database, Lane};

/// Time between two reports. The console shows a replica for a minute after its last one.
const INTERVAL: Duration = Duration::from_secs(10);

/// Stores a report every 10 s, without end. Reports are lost while the database cannot be used.
pub async fn report_periodically(db: Database, report: impl Fn() -> ReplicaReport) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let report = report();
        let stored = db.run(Lane::Upkeep, async move |mut connection| {
            store_report(&mut connection, &report).await
        });
        if let Err(error) = stored.await {
            // Readiness reports the fault itself.
            tracing::debug!(%error, "the report of this replica is lost");
        }
    }
}
