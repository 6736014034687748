//! `/console/`: figures of all replicas, as of now and for the last hour and the last day.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, TimeDelta, Utc};

use super::{now, page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::query::reject_parameters;
use crate::api::handlers::health::{MAX_CLOCK_SKEW, MAX_SEAL_LAG};
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::api::state::{DatabaseMetrics, probe_metrics};
use crate::db::audit_log::{LogState, find_lag, find_log};
use crate::db::overview::{ClientFigures, MintFailures, Minute, find_figures, list_mint_failures};
use crate::db::replicas::{Replica, list_replicas};
use crate::db::{Checkout, Lane};
use crate::jobs::cleanup::Backlog;

/// The number of minutes in a day.
const DAY: i64 = 1440;

/// The age of the oldest overdue token from which the page shows the cleanup as behind.
const BEHIND_AFTER: TimeDelta = TimeDelta::minutes(5);

#[derive(Template)]
#[template(path = "console/overview.html")]
struct OverviewPage {
    now: DateTime<Utc>,
    /// The remaining budget (`None` inside means no limit) and the cleanup backlog. `None` while the primary is
    /// unavailable.
    database_metrics: Option<DatabaseMetrics>,
    log: LogState,
    /// The age of the oldest event that is not sealed. `None` if no event waits, or if this replica does not seal.
    lag: Option<TimeDelta>,
    seals: bool,
    ranges: [Range; 2],
    /// The number of uncounted minutes between the first counted one and now.
    missing: usize,
    /// The start of the last minute of the last day in which a token was minted.
    last_success: Option<DateTime<Utc>>,
    /// The failed and unknown mints of the last hour.
    failures: Vec<MintFailures>,
    /// The clients with the most handouts of the last hour.
    top_clients: Vec<ClientFigures>,
    /// The replicas that were seen in the last minute.
    replicas: Vec<Replica>,
}

/// The figures of one time range that ends now.
struct Range {
    id: &'static str,
    title: &'static str,
    /// The time that one table row covers.
    step: TimeDelta,
    total: Totals,
    rows: Vec<Totals>,
    /// The plot's columns as JSON: time, reused, minted, failed, unknown, median and 95th percentile of the latency.
    /// Each has one value per minute, without the current minute.
    plot: String,
}

/// The sums over consecutive minutes.
#[derive(Default)]
struct Totals {
    from: DateTime<Utc>,
    minted: i64,
    reused: i64,
    failed: i64,
    unknown: i64,
    /// The highest 95th percentile of any minute, in milliseconds.
    latency: Option<i32>,
}

/// A minute with its counts, or `None` if the minute was not counted.
type MinuteEntry = (DateTime<Utc>, Option<Minute>);

impl OverviewPage {
    fn is_behind(&self, backlog: &Backlog) -> bool {
        backlog
            .oldest_overdue
            .is_some_and(|oldest| self.now - oldest > BEHIND_AFTER)
    }

    /// Returns the root hash of the sealed log, which is the third line of its checkpoint.
    fn root(&self) -> Option<&str> {
        self.log.checkpoint.as_ref()?.lines().nth(2)
    }

    fn is_sealing_behind(&self, lag: &TimeDelta) -> bool {
        lag.as_seconds_f64() > MAX_SEAL_LAG
    }

    /// The number of replicas whose circuit breaker is open.
    fn open_circuits(&self) -> usize {
        let open = self
            .replicas
            .iter()
            .filter(|replica| replica.is_circuit_open);
        open.count()
    }

    fn running_for(&self, replica: &Replica) -> TimeDelta {
        self.now - replica.started_at
    }

    fn is_skewed(&self, replica: &Replica) -> bool {
        replica.clock_skew > MAX_CLOCK_SKEW.as_seconds_f64()
    }

    /// The share of the mints of the last hour that failed or have an unknown outcome.
    fn error_ratio(&self) -> Option<String> {
        let hour = &self.ranges[0].total;
        let errors = hour.failed + hour.unknown;
        percent(errors, hour.minted + errors)
    }
}

/// Returns a share in percent with one decimal. `None` if the whole is 0.
fn percent(part: i64, whole: i64) -> Option<String> {
    (whole > 0).then(|| format!("{:.1}\u{202f}%", 100.0 * part as f64 / whole as f64))
}

impl Totals {
    fn of(entries: &[MinuteEntry]) -> Totals {
        let start = Totals {
            from: entries[0].0,
            ..Totals::default()
        };
        entries
            .iter()
            .filter_map(|(_, minute)| minute.as_ref())
            .fold(start, |totals, minute| Totals {
                from: totals.from,
                minted: totals.minted + minute.minted,
                reused: totals.reused + minute.reused,
                failed: totals.failed + minute.failed,
                unknown: totals.unknown + minute.unknown,
                latency: totals.latency.max(minute.latency_p95),
            })
    }

    /// The share of handouts that reused a token, in percent. `None` if there were no handouts.
    fn hit_ratio(&self) -> Option<String> {
        percent(self.reused, self.minted + self.reused)
    }

    /// True if no token was requested.
    fn is_idle(&self) -> bool {
        self.minted + self.reused + self.failed + self.unknown == 0
    }
}

impl Range {
    fn new(
        id: &'static str,
        title: &'static str,
        step: TimeDelta,
        entries: &[MinuteEntry],
    ) -> Range {
        let rows = entries.chunks(step.num_minutes() as usize);
        let counted = rows.filter(|row| row.iter().any(|(_, minute)| minute.is_some()));
        Range {
            id,
            title,
            step,
            total: Totals::of(entries),
            rows: counted.map(Totals::of).collect(),
            plot: plot_columns(entries),
        }
    }
}

/// Returns the columns that `console.js` draws, as JSON arrays of numbers and nulls.
fn plot_columns(entries: &[MinuteEntry]) -> String {
    // The counts of the current minute are incomplete.
    let past = &entries[..entries.len() - 1];
    let column = |value: fn(&Minute) -> Option<i64>| -> Vec<Option<i64>> {
        past.iter()
            .map(|(_, minute)| minute.as_ref().and_then(value))
            .collect()
    };
    let columns = [
        past.iter().map(|(at, _)| Some(at.timestamp())).collect(),
        column(|minute| Some(minute.reused)),
        column(|minute| Some(minute.minted)),
        column(|minute| Some(minute.failed)),
        column(|minute| Some(minute.unknown)),
        column(|minute| minute.latency_p50.map(i64::from)),
        column(|minute| minute.latency_p95.map(i64::from)),
    ];
    serde_json::to_string(&columns).expect("numbers and nulls serialize")
}

/// `GET /console/`: shows the overview.
pub async fn show_overview(
    _authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let read = async move |mut connection: Checkout| {
        let log = find_log(&mut connection).await?;
        let lag = find_lag(&mut connection).await?;
        let failures = list_mint_failures(&mut connection).await?;
        let replicas = list_replicas(&mut connection).await?;
        Ok((
            find_figures(&mut connection).await?,
            log,
            lag,
            failures,
            replicas,
        ))
    };
    let (figures, log, lag, failures, replicas) = state.reads().run(Lane::Reads, read).await?;
    let minutes = figures.minutes;
    let current = minutes.last().map_or_else(now, |minute| minute.minute);
    let first = minutes.first().map_or(current, |minute| minute.minute);
    let minted = minutes.iter().rfind(|minute| minute.minted > 0);
    let last_success = minted.map(|minute| minute.minute);
    let counted: HashMap<_, _> = minutes
        .into_iter()
        .map(|minute| (minute.minute, minute))
        .collect();
    let entries: Vec<MinuteEntry> = (0..DAY)
        .rev()
        .map(|ago| current - TimeDelta::minutes(ago))
        .map(|at| (at, counted.get(&at).copied()))
        .collect();
    let missing = entries
        .iter()
        .filter(|(at, minute)| *at > first && minute.is_none())
        .count();
    let last_hour = &entries[entries.len() - 60..];
    let view = OverviewPage {
        now: now(),
        database_metrics: probe_metrics(&state).await,
        log,
        lag: (state.seals && lag > 0.0).then(|| TimeDelta::seconds(lag as i64)),
        seals: state.seals,
        ranges: [
            Range::new("hour", "Last hour", TimeDelta::minutes(5), last_hour),
            Range::new("day", "Last 24 hours", TimeDelta::hours(1), &entries),
        ],
        missing,
        last_success,
        failures,
        top_clients: figures.top_clients,
        replicas,
    };
    page(StatusCode::OK, &view)
}
