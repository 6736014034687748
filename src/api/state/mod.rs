//! What the handlers share.

pub mod cached_probe;
pub mod rate_limit;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::IpNet;

use self::cached_probe::Glance;
use self::rate_limit::RateLimit;
use crate::auth::Clients;
use crate::db::schema::{DatabaseHealth, find_database_health};
use crate::db::{Database, DbError};
use crate::jobs::cleanup::{Backlog, Cleaner};
use crate::jobs::denials::Denials;
use crate::metrics::Metrics;
use crate::vending::Vendor;

/// What the handlers work with.
#[derive(Debug)]
pub struct ApiState {
    /// The decisions.
    pub vendor: Vendor,
    /// Authenticates callers.
    pub clients: Clients,
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
    pub denials: Denials,
    /// Each client's own limit.
    pub rate_limit: RateLimit,
    /// True once the service is to stop: readiness says so, requests are still served.
    pub stopping: Arc<AtomicBool>,
    /// The look at the database behind readiness.
    pub database_check: DatabaseCheck,
    /// What is counted and measured.
    pub metrics: Metrics,
    /// The look at the database behind some of it.
    pub figures: Figures,
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
pub type DatabaseCheck = Glance<DatabaseHealth>;

impl DatabaseCheck {
    /// The state of the database a moment ago; `None` if it is down.
    pub async fn latest_health(&self, db: &Database) -> Option<DatabaseHealth> {
        let look = db.run(|pool| async move { find_database_health(&pool).await });
        self.latest(CHECK_INTERVAL, look).await
    }
}

/// Anyone may ask; the database is asked no more often than this.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The last look at what the database alone can tell: the budget left and the cleanup's backlog.
pub type Figures = Glance<(Option<u32>, Backlog)>;

/// The figures of a moment ago; `None` while the database does not tell.
pub async fn look(state: &ApiState) -> Option<(Option<u32>, Backlog)> {
    let look = async {
        let budget = state.vendor.find_budget_left().await?;
        Ok::<_, DbError>((budget, state.cleaner.find_backlog().await?))
    };
    state.figures.latest(LOOK_INTERVAL, look).await
}
