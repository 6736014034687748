//! Moves the horizon of the audit log. Each replica does so, which needs no lease and survives any of them.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::db::clock::service_time;
use crate::db::horizon::advance_horizon;
use crate::db::{Database, Lane};

/// Time between two moves. The horizon is 6 to 7 s behind the present.
const INTERVAL: Duration = Duration::from_secs(1);

/// Moves the horizon every second, without end. While the database cannot be used, the horizon stays.
pub async fn advance_periodically(db: Database) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let advanced = db.run(Lane::Upkeep, async move |mut connection| {
            advance_horizon(&mut connection, service_time()).await
        });
        if let Err(error) = advanced.await {
            // Readiness reports the fault itself.
            tracing::debug!(%error, "the horizon of the audit log stays");
        }
    }
}
