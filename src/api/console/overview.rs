//! `/console/`: how the service does, over all replicas: now, in the last hour and in the last day.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, TimeDelta, Utc};

use super::{page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::query::no_parameters;
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::api::state::probe_metrics;
use crate::db::overview::{Minute, list_minutes};
use crate::jobs::cleanup::Backlog;

/// The minutes of a day.
const DAY: i64 = 1440;

/// An expired token that is still marked valid after this long says that the cleanup does not keep up.
const PATIENCE: TimeDelta = TimeDelta::minutes(5);

#[derive(Template)]
#[template(path = "console/overview.html")]
struct OverviewPage {
    now: DateTime<Utc>,
    /// The budget left, `None` inside for no limit, and the cleanup's backlog; `None` while the primary does not tell.
    database_metrics: Option<(Option<u32>, Backlog)>,
    ranges: [Range; 2],
    /// Minutes between the first one known and now that nobody counted.
    missing: usize,
}

/// The minutes up to now.
struct Range {
    id: &'static str,
    title: &'static str,
    /// How much a row of its table covers.
    step: TimeDelta,
    total: Sum,
    rows: Vec<Sum>,
    /// Time, reused, minted, failed, unknown and both latencies of each minute but the one still running.
    plot: String,
}

/// What happened in some minutes.
#[derive(Default)]
struct Sum {
    from: DateTime<Utc>,
    minted: i64,
    reused: i64,
    failed: i64,
    unknown: i64,
    /// The highest 95th percentile of a minute.
    latency: Option<i32>,
}

/// A minute, and what is known of it.
type Slot = (DateTime<Utc>, Option<Minute>);

impl OverviewPage {
    fn is_behind(&self, backlog: &Backlog) -> bool {
        backlog
            .oldest_overdue
            .is_some_and(|oldest| self.now - oldest > PATIENCE)
    }
}

impl Sum {
    fn of(slots: &[Slot]) -> Sum {
        let start = Sum {
            from: slots[0].0,
            ..Sum::default()
        };
        slots
            .iter()
            .filter_map(|(_, minute)| minute.as_ref())
            .fold(start, |sum, minute| Sum {
                from: sum.from,
                minted: sum.minted + minute.minted,
                reused: sum.reused + minute.reused,
                failed: sum.failed + minute.failed,
                unknown: sum.unknown + minute.unknown,
                latency: sum.latency.max(minute.latency_p95),
            })
    }

    /// Handouts that needed no mint, in percent.
    fn hit_ratio(&self) -> Option<String> {
        let handouts = self.minted + self.reused;
        (handouts > 0).then(|| {
            format!(
                "{:.1}\u{202f}%",
                100.0 * self.reused as f64 / handouts as f64
            )
        })
    }
}

impl Range {
    fn new(id: &'static str, title: &'static str, step: TimeDelta, slots: &[Slot]) -> Range {
        let rows = slots.chunks(step.num_minutes() as usize);
        let known = rows.filter(|slots| slots.iter().any(|(_, minute)| minute.is_some()));
        Range {
            id,
            title,
            step,
            total: Sum::of(slots),
            rows: known.map(Sum::of).collect(),
            plot: plot(slots),
        }
    }
}

/// The columns that the script draws, as JSON: numbers and nulls alone.
fn plot(slots: &[Slot]) -> String {
    let done = &slots[..slots.len() - 1];
    let column = |value: fn(&Minute) -> Option<i64>| -> Vec<Option<i64>> {
        done.iter()
            .map(|(_, minute)| minute.as_ref().and_then(value))
            .collect()
    };
    let columns = [
        done.iter().map(|(at, _)| Some(at.timestamp())).collect(),
        column(|minute| Some(minute.reused)),
        column(|minute| Some(minute.minted)),
        column(|minute| Some(minute.failed)),
        column(|minute| Some(minute.unknown)),
        column(|minute| minute.latency_p50.map(i64::from)),
        column(|minute| minute.latency_p95.map(i64::from)),
    ];
    serde_json::to_string(&columns).expect("numbers")
}

/// `GET /console/`: the figures.
pub async fn show_overview(
    _permit: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    let minutes = state
        .reads()
        .run(|pool| async move { list_minutes(&pool).await })
        .await?;
    #[expect(
        clippy::disallowed_methods,
        reason = "an empty chart ends at this time"
    )]
    let now = minutes.last().map_or_else(Utc::now, |minute| minute.minute);
    let first = minutes.first().map_or(now, |minute| minute.minute);
    let known: HashMap<_, _> = minutes
        .into_iter()
        .map(|minute| (minute.minute, minute))
        .collect();
    let slots: Vec<Slot> = (0..DAY)
        .rev()
        .map(|ago| now - TimeDelta::minutes(ago))
        .map(|at| (at, known.get(&at).copied()))
        .collect();
    let missing = slots
        .iter()
        .filter(|(at, minute)| *at > first && minute.is_none())
        .count();
    let hour = &slots[slots.len() - 60..];
    let found = OverviewPage {
        #[expect(
            clippy::disallowed_methods,
            reason = "the page shows ages relative to this time"
        )]
        now: Utc::now(),
        database_metrics: probe_metrics(&state).await,
        ranges: [
            Range::new("hour", "Last hour", TimeDelta::minutes(5), hour),
            Range::new("day", "Last 24 hours", TimeDelta::hours(1), &slots),
        ],
        missing,
    };
    page(StatusCode::OK, &found)
}
