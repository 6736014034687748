//! What the service counts and measures, in one table; `GET /metrics` tells it. No user, bank or
//! token is in a label.

use std::sync::Arc;

use prometheus::core::{AtomicF64, AtomicU64, Collector, GenericGauge};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
    exponential_buckets,
};

/// A number that goes up and down.
pub type Gauge = GenericGauge<AtomicF64>;
/// A number of things at hand.
pub type CountGauge = GenericGauge<AtomicU64>;

/// The metrics of one replica. Cheap to clone.
pub type Metrics = Arc<Families>;

macro_rules! families {
    ($($name:ident: $kind:ident $([$($label:literal),+])? $(in $buckets:expr)?, $help:literal;)+) => {
        /// The metrics of one replica, each named `token_vendor_` and as its field.
        #[derive(Debug)]
        pub struct Families {
            registry: Registry,
            $(#[doc = $help] pub $name: $kind,)+
        }

        impl Families {
            fn new() -> Self {
                let registry = Registry::new_custom(Some("token_vendor".into()), None).expect("a name");
                $(let $name = register(&registry, families!(
                    @make $kind, stringify!($name), $help $(, [$($label),+])? $(, in $buckets)?
                ));)+
                Families { registry, $($name),+ }
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
        "Requests, by route, method and status; `hung-up` where the caller did not wait.";
    http_request_duration_seconds: HistogramVec ["route"] in buckets(0.000_25, 18),
        "From a request's head to its answer.";
    handouts_total: IntCounterVec ["outcome"],
        "Requests for a token that were in order: minted, reused, or the slug of the problem.";
    mints_total: IntCounterVec ["outcome"],
        "Mints claimed: minted, voided (invalidated meanwhile), unrecorded, failed or unknown.";
    mint_duration_seconds: Histogram in buckets(0.01, 11),
        "The upstream's part of a mint, all attempts together.";
    upstream_budget_remaining: Gauge,
        "Calls to the upstream that the current hour has left, over all replicas.";
    circuit_open: CountGauge,
        "1 while the upstream is left alone because it has been failing.";
    audit_queue_depth: CountGauge,
        "Handouts that wait for the writer.";
    audit_batch_size: Histogram in buckets(1.0, 10),
        "Handouts put on record in one statement.";
    audit_flush_seconds: Histogram in buckets(0.000_25, 14),
        "From a batch's statement to its commit.";
    cache_entries: CountGauge,
        "Tokens in memory.";
    cache_lookups_total: IntCounterVec ["result"],
        "Looks for a token in memory: hit or miss.";
    database_up: CountGauge,
        "1 if the database answered the look for the figures that are its own.";
    database_connections: CountGaugeVec ["state"],
        "Connections of the pool: idle or used.";
    audit_partitions_ahead_months: Gauge,
        "Months after the current one that the trail has room for.";
    cleanup_rows_total: IntCounterVec ["kind"],
        "What this replica's cleanups did, by kind.";
    cleanup_overdue_tokens: Gauge,
        "Expired tokens that no cleanup has marked yet.";
    cleanup_oldest_overdue_timestamp_seconds: Gauge,
        "When the oldest of them expired; 0 where there is none.";
    cleanup_last_success_timestamp_seconds: Gauge,
        "When a cleanup, of whichever replica, last left nothing to do; 0 for never.";
    tokens_unreadable_total: IntCounter,
        "Stored tokens that could not be opened: keys are missing, or rows were changed. Raise an alarm.";
    build_info: CountGaugeVec ["version"],
        "1.";
}

type CountGaugeVec = prometheus::core::GenericGaugeVec<AtomicU64>;

fn register<T: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<T>) -> T {
    let family = made.expect("a well-formed name");
    registry
        .register(Box::new(family.clone()))
        .expect("a name of its own");
    family
}

/// Twice as wide each.
fn buckets(first: f64, count: usize) -> Vec<f64> {
    exponential_buckets(first, 2.0, count).expect("more than nothing")
}

impl Families {
    /// The metrics of a replica that has done nothing yet. What it will count is there from the
    /// start, so that a first event is an increase rather than a beginning.
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

    /// All of it, as Prometheus reads it (text format 0.0.4).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&self.registry.gather(), &mut text)
            .expect("a string takes all");
        text
    }
}
