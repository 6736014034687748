//! The state that all handlers share.

pub mod cached_probe;
pub mod failed_attempts;
pub mod rate_limit;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::IpNet;

use self::cached_probe::CachedProbe;
use self::failed_attempts::FailedAttempts;
use self::rate_limit::RateLimit;
use crate::auth::Authenticator;
use crate::auth::bearer::BearerAuthenticator;
use crate::db::clients::find_earliest_expiry;
use crate::db::schema::{DatabaseHealth, find_database_health};
use crate::db::{Checkout, Database, DbError, Lane};
use crate::jobs::cleanup::{Backlog, Cleaner};
use crate::jobs::denials::DenialCounter;
use crate::jobs::token_reads::TokenReads;
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
    /// Records reads of token records.
    pub token_reads: TokenReads,
    /// Limits the wrong credentials of each source address.
    pub failed_attempts: FailedAttempts,
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

/// The cached metrics from the database.
pub type MetricsProbe = CachedProbe<DatabaseMetrics>;

/// The metrics of all replicas, from the database.
#[derive(Clone, Debug)]
pub struct DatabaseMetrics {
    /// The provider calls left this hour. `None` if there is no limit.
    pub budget: Option<u32>,
    /// The cleanup backlog.
    pub backlog: Backlog,
    /// The seconds until the first enabled client expires. `None` if none ever does.
    pub earliest_expiry: Option<f64>,
}

/// Returns the metrics from the database, at most 5 s old. Returns `None` if it is down.
pub async fn probe_metrics(state: &ApiState) -> Option<DatabaseMetrics> {
    let probe = async {
        let find_expiry =
            async move |mut connection: Checkout| find_earliest_expiry(&mut connection).await;
        Ok::<_, DbError>(DatabaseMetrics {
            budget: state.vendor.find_budget_left().await?,
            backlog: state.cleaner.find_backlog().await?,
            earliest_expiry: state.db.run(Lane::Upkeep, find_expiry).await?,
        })
    };
    state.metrics_probe.latest(METRICS_MAX_AGE, probe).await
}
