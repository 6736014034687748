//! All metrics of the service, in one table. `GET /metrics` returns them, with those of the process. No label contains a
//! user, a bank or a token.

mod process;

use std::sync::Arc;

use prometheus::core::{AtomicF64, AtomicU64, Collector, GenericGauge};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
    exponential_buckets,
};

use self::process::ProcessMetrics;

/// A gauge of floating-point values.
pub type Gauge = GenericGauge<AtomicF64>;
/// A gauge of counts.
pub type CountGauge = GenericGauge<AtomicU64>;

/// The metrics of one replica. Cheap to clone.
pub type Metrics = Arc<Families>;

macro_rules! families {
    ($($name:ident: $kind:ident $([$($label:literal),+])? $(in $buckets:expr)?, $help:literal;)+) => {
        /// The metrics of one replica. The name of each is `token_vendor_` followed by its field name.
        #[derive(Debug)]
        pub struct Families {
            registry: Registry,
            process: ProcessMetrics,
            $(#[doc = $help] pub $name: $kind,)+
        }

        impl Families {
            fn new() -> Self {
                let registry = Registry::new_custom(Some("token_vendor".into()), None).expect("a valid prefix");
                $(let $name = register(&registry, families!(
                    @make $kind, stringify!($name), $help $(, [$($label),+])? $(, in $buckets)?
                ));)+
                Families { registry, process: ProcessMetrics::new(), $($name),+ }
            }
        }
    };
    (@make Histogram, $name:expr, $help:expr, in $buckets:expr) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets))
    };
    (@make HistogramVec, $name:expr, $help:expr, [$($label:literal),+], in $buckets:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets), &[$($label),+])
    };
    (@make $kind:ident, $name:expr, $help:expr) => { $kind::new($name, $help) };
    (@make $kind:ident, $name:expr, $help:expr, [$($label:literal),+]) => {
        $kind::new(Opts::new($name, $help), &[$($label),+])
    };
}

families! {
    http_requests_total: IntCounterVec ["route", "method", "status"],
        "HTTP requests by route, method and status. The status is `hung-up` if the caller disconnected first.";
    http_request_duration_seconds: HistogramVec ["route"] in buckets(0.000_25, 18),
        "Seconds from the head of a request to its response.";
    client_requests_total: IntCounterVec ["client"],
        "Requests with the credentials of a registered client, by API key. Refused scopes and limits are included.";
    client_mints_total: IntCounterVec ["client", "outcome"],
        "Mints by the API key of the client whose request started them, and by outcome as in mints_total.";
    handouts_total: IntCounterVec ["outcome"],
        "Valid token requests by outcome: minted, reused, or the slug of the problem.";
    mints_total: IntCounterVec ["outcome"],
        "Mints by outcome: minted, voided (invalidated during the mint), unrecorded, abandoned (before any call), failed or unknown.";
    mint_duration_seconds: Histogram in buckets(0.01, 11),
        "Seconds that a mint spends on calls to the provider, all attempts together.";
    upstream_budget_remaining: Gauge,
        "Calls to the provider left in the rolling hour, over all replicas.";
    circuit_open: CountGauge,
        "1 while the circuit breaker is open because calls to the provider fail, otherwise 0.";
    clock_skew_seconds: Gauge,
        "Seconds between the database's clock and the clock of this replica, or the latest database time that this replica has seen, whichever is more.";
    audit_queue_depth: CountGauge,
        "Handouts queued for the handout writer.";
    audit_batch_size: Histogram in buckets(1.0, 10),
        "Handouts recorded in one statement.";
    audit_flush_seconds: Histogram in buckets(0.000_25, 14),
        "Seconds from the statement of a batch to its commit.";
    cache_entries: CountGauge,
        "Tokens in the cache.";
    cache_lookups_total: IntCounterVec ["result"],
        "Cache lookups by result: hit or miss.";
    database_up: CountGauge,
        "1 if the primary answered the last query for metrics and commits handouts, otherwise 0.";
    database_connections: CountGaugeVec ["state"],
        "Pooled database connections by state: idle or used.";
    read_fallbacks_total: IntCounter,
        "Reads that the primary did because the standby of READ_DATABASE_URL could not be used.";
    audit_partitions_ahead_months: Gauge,
        "Months after the current one for which the audit log has partitions.";
    seal_lag_seconds: Gauge,
        "Age of the oldest event that is not sealed; 0 if all are sealed. NaN with SEAL_INTERVAL=off and on Citus.";
    cleanup_rows_total: IntCounterVec ["kind"],
        "Rows changed and partitions created or dropped by the cleanup of this replica, by kind.";
    cleanup_overdue_tokens: Gauge,
        "Expired tokens that the cleanup has not marked yet.";
    cleanup_oldest_overdue_timestamp_seconds: Gauge,
        "Expiry of the oldest expired token that is not marked yet, as a Unix time; 0 if there is none.";
    cleanup_last_success_timestamp_seconds: Gauge,
        "End of the last cleanup of any replica that left no work, as a Unix time; 0 for never.";
    client_expiry_seconds: Gauge,
        "Seconds until the first enabled client expires; negative if one has expired, +Inf if none ever does.";
    tokens_unreadable_total: IntCounter,
        "Stored tokens that could not be decrypted. A key is missing, or a row was changed. Alert on any increase.";
    build_info: CountGaugeVec ["version"],
        "Always 1. The label has the version of the program.";
}

type CountGaugeVec = prometheus::core::GenericGaugeVec<AtomicU64>;

fn register<T: Collector + Clone + 'static>(
    registry: &Registry,
    family: prometheus::Result<T>,
) -> T {
    let family = family.expect("a valid name");
    registry
        .register(Box::new(family.clone()))
        .expect("a unique name");
    family
}

/// Returns bucket limits that double from `first`.
fn buckets(first: f64, count: usize) -> Vec<f64> {
    exponential_buckets(first, 2.0, count).expect("positive arguments")
}

impl Families {
    /// Creates the metrics with all counts at zero. The usual label values exist from the start, so that
    /// the first event shows as an increase.
    pub fn at_zero() -> Metrics {
        let all = Families::new();
        for (family, label) in [
            (&all.handouts_total, "minted"),
            (&all.handouts_total, "reused"),
            (&all.mints_total, "minted"),
            (&all.mints_total, "failed"),
            (&all.mints_total, "unknown"),
            (&all.cache_lookups_total, "hit"),
            (&all.cache_lookups_total, "miss"),
            (&all.cleanup_rows_total, "expired"),
            (&all.cleanup_rows_total, "abandoned_mints"),
        ] {
            family.with_label_values(&[label]);
        }
        let requests = &all.http_requests_total;
        requests.with_label_values(&["/metrics", "GET", "200"]);
        let version = all
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")]);
        version.set(1);
        Arc::new(all)
    }

    /// Counts a mint that a request of this client started.
    pub fn count_mint(&self, client: &str, outcome: &str) {
        self.mints_total.with_label_values(&[outcome]).inc();
        let by_client = &self.client_mints_total;
        by_client.with_label_values(&[client, outcome]).inc();
    }

    /// Returns all metrics in the Prometheus text format 0.0.4.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let families = [self.registry.gather(), self.process.gather()].concat();
        TextEncoder::new()
            .encode_utf8(&families, &mut text)
            .expect("writing to a string succeeds");
        text
    }
}
