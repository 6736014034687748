//! The state that all handlers share.

pub mod cached_probe;
pub mod rate_limit;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::IpNet;

use self::cached_probe::CachedProbe;
use self::rate_limit::RateLimit;
use crate::auth::Authenticator;
use crate::auth::bearer::BearerAuthenticator;
use crate::db::schema::{DatabaseHealth, find_database_health};
use crate::db::{Database, DbError, Lane};
use crate::jobs::cleanup::{Backlog, Cleaner};
use crate::jobs::denials::DenialCounter;
use crate::metrics::Metrics;
use crate::vending::Vendor;

/// The shared components of the API.
#[derive(Debug)]
pub struct ApiState {
    /// Issues and invalidates tokens.
    pub vendor: Vendor,
    /// Authenticates callers.
    pub authenticator: Authenticator,
    /// Authenticates bearer tokens, if an OIDC issuer is configured.
    pub bearer: Option<BearerAuthenticator>,
    /// The primary, for writes and reads by id.
    pub db: Database,
    /// The standby for lists and audit queries, if one is configured.
    pub standby: Option<Database>,
    /// Runs cleanup passes.
    pub cleaner: Cleaner,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The base of verification URLs. The percent-encoded token string is appended.
    pub verification_base_url: String,
    /// Counts the requests that were denied with 401 or 403, for the audit log.
    pub denials: DenialCounter,
    /// Limits the requests of each client.
    pub rate_limit: RateLimit,
    /// True during shutdown. Readiness then fails, while requests are still served.
    pub stopping: Arc<AtomicBool>,
    /// True if this replica seals the audit log.
    pub seals: bool,
    /// The cached database health for readiness and metrics.
    pub database_check: DatabaseProbe,
    /// The metrics of this replica.
    pub metrics: Metrics,
    /// The cached metrics that come from the database.
    pub metrics_probe: MetricsProbe,
}

impl ApiState {
    /// Returns the database for lists and audit queries: the standby if there is one.
    pub fn reads(&self) -> &Database {
        self.standby.as_ref().unwrap_or(&self.db)
    }
}

/// The maximum age of [`DatabaseProbe`]. It bounds the load from unauthenticated requests.
const HEALTH_MAX_AGE: Duration = Duration::from_secs(1);

/// The cached health of the database.
pub type DatabaseProbe = CachedProbe<DatabaseHealth>;

impl DatabaseProbe {
    /// Returns the health of the database, at most 1 s old. Returns `None` if it is down.
    pub async fn latest_health(&self, db: &Database) -> Option<DatabaseHealth> {
        let probe = db.run(Lane::Authentication, async move |mut connection| {
            find_database_health(&mut connection).await
        });
        self.latest(HEALTH_MAX_AGE, probe).await
    }
}

/// The maximum age of [`MetricsProbe`]. It bounds the load from unauthenticated requests.
const METRICS_MAX_AGE: Duration = Duration::from_secs(5);

/// The cached metrics from the database: the provider calls left this hour, and the cleanup backlog.
pub type MetricsProbe = CachedProbe<(Option<u32>, Backlog)>;

/// Returns the metrics from the database, at most 5 s old. Returns `None` if it is down.
pub async fn probe_metrics(state: &ApiState) -> Option<(Option<u32>, Backlog)> {
    let probe = async {
        let budget = state.vendor.find_budget_left().await?;
        Ok::<_, DbError>((budget, state.cleaner.find_backlog().await?))
    };
    state.metrics_probe.latest(METRICS_MAX_AGE, probe).await
}
