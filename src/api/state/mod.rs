//! What the handlers share.

pub mod cached_probe;
pub mod rate_limit;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::IpNet;

use self::cached_probe::CachedProbe;
use self::rate_limit::RateLimit;
use crate::auth::Authenticator;
use crate::db::schema::{DatabaseHealth, find_database_health};
use crate::db::{Database, DbError};
use crate::jobs::cleanup::{Backlog, Cleaner};
use crate::jobs::denials::DenialCounter;
use crate::metrics::Metrics;
use crate::vending::Vendor;

/// What the handlers work with.
#[derive(Debug)]
pub struct ApiState {
    /// The decisions.
    pub vendor: Vendor,
    /// Authenticates callers.
    pub authenticator: Authenticator,
    /// The primary: writes, and reads by id.
    pub db: Database,
    /// Where lists are read instead, if there is one.
    pub standby: Option<Database>,
    /// The cleanup of this replica.
    pub cleaner: Cleaner,
    /// The peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What a percent-encoded token string is appended to.
    pub verification_base_url: String,
    /// Counts what is refused with 401 and 403.
    pub denials: DenialCounter,
    /// Each client's own limit.
    pub rate_limit: RateLimit,
    /// True once the service is to stop: readiness says so, requests are still served.
    pub stopping: Arc<AtomicBool>,
    /// The look at the database behind readiness.
    pub database_check: DatabaseProbe,
    /// What is counted and measured.
    pub metrics: Metrics,
    /// The look at the database behind some of it.
    pub metrics_probe: MetricsProbe,
}

impl ApiState {
    /// Where lists are read.
    pub fn reads(&self) -> &Database {
        self.standby.as_ref().unwrap_or(&self.db)
    }
}

/// Anyone may ask for readiness; the database is asked no more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The last look at the state of the database.
pub type DatabaseProbe = CachedProbe<DatabaseHealth>;

impl DatabaseProbe {
    /// The state of the database a moment ago; `None` if it is down.
    pub async fn latest_health(&self, db: &Database) -> Option<DatabaseHealth> {
        let probe_metrics = db.run(|pool| async move { find_database_health(&pool).await });
        self.latest(CHECK_INTERVAL, probe_metrics).await
    }
}

/// Anyone may ask; the database is asked no more often than this.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The last look at what the database alone can tell: the budget left and the cleanup's backlog.
pub type MetricsProbe = CachedProbe<(Option<u32>, Backlog)>;

/// The figures of a moment ago; `None` while the database does not tell.
pub async fn probe_metrics(state: &ApiState) -> Option<(Option<u32>, Backlog)> {
    let probe_metrics = async {
        let budget = state.vendor.find_budget_left().await?;
        Ok::<_, DbError>((budget, state.cleaner.find_backlog().await?))
    };
    state
        .metrics_probe
        .latest(LOOK_INTERVAL, probe_metrics)
        .await
}
