//! `/health/live` and `/health/ready`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::TimeDelta;
use serde::Serialize;
use serde_json::json;

use crate::api::extract::query::reject_parameters;
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::db::Database;
use crate::db::schema::DatabaseHealth;

const OK: &str = "ok";

/// The minimum number of audit partitions ahead. Fewer mean that the cleanup is failing.
const MIN_MONTHS_AHEAD: i32 = 2;

/// The difference between the clocks beyond which readiness warns. It includes the duration of a query.
pub const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::seconds(2);

/// The lag of sealing beyond which readiness warns, in seconds. It is about 10 while all is well.
pub const MAX_SEAL_LAG: f64 = 60.0;

/// `GET /health/live`. Succeeds while the process answers.
pub async fn get_liveness(request: HttpRequest) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(HttpResponse::Ok().json(json!({"status": OK, "version": version})))
}

/// `GET /health/ready`. Succeeds while requests can be served, or returns 503 with the failing checks.
pub async fn get_readiness(
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let readiness = check_readiness(&state).await;
    if readiness.status == OK {
        return Ok(HttpResponse::Ok().json(readiness));
    }
    let mut response = HttpResponse::ServiceUnavailable()
        .insert_header((header::RETRY_AFTER, 1))
        .json(readiness);
    let outcome = LoggedOutcome("not-ready");
    response.extensions_mut().insert(outcome);
    Ok(response)
}

async fn check_readiness(state: &ApiState) -> ReadinessView {
    let health = state.database_check.latest_health(&state.db).await;
    let is_current = health.map(|health| health.is_schema_current);
    let has_partition = health.map(|health| health.partitions_ahead >= 0);
    let recording_failure = state.vendor.recording_failure();
    let is_stopping = state.stopping.load(Ordering::Relaxed);
    let checks = [
        check("database", Some(health.is_some()), "unavailable"),
        check("schema", is_current, "outdated"),
        check("partitions", has_partition, "missing"),
        check(
            "writer",
            Some(recording_failure.is_none()),
            recording_failure.unwrap_or(OK),
        ),
        check("shutdown", Some(!is_stopping), "stopping"),
    ];
    let is_ready = checks.iter().all(|(_, result)| *result == OK);
    ReadinessView {
        status: if is_ready { OK } else { "unavailable" },
        checks: checks.into(),
        warnings: list_warnings(state, health),
        database: health.map(|health| DatabaseView {
            partitions_ahead_months: health.partitions_ahead,
            synchronous_standby: health.has_synchronous_standby,
            distributed: health.is_distributed,
        }),
    }
}

/// Returns the name and the result of a check: `ok`, `failure`, or `unknown` while the database is down.
fn check(
    name: &'static str,
    passed: Option<bool>,
    failure: &'static str,
) -> (&'static str, &'static str) {
    let result = match passed {
        Some(true) => OK,
        Some(false) => failure,
        None => "unknown",
    };
    (name, result)
}

fn list_warnings(state: &ApiState, health: Option<DatabaseHealth>) -> Vec<String> {
    let ahead = health.map_or(MIN_MONTHS_AHEAD, |health| health.partitions_ahead);
    let partitions = (ahead < MIN_MONTHS_AHEAD).then(|| {
        format!(
            "the audit log has partitions for {ahead} months after this one; \
             check the log of the cleanup"
        )
    });
    let is_falling_back = state
        .standby
        .as_ref()
        .is_some_and(Database::is_falling_back);
    let fallback = is_falling_back.then(|| {
        "the standby of READ_DATABASE_URL cannot be used; the primary does its reads".to_owned()
    });
    let clock_skew = state.vendor.clock_skew();
    let clocks = (clock_skew > MAX_CLOCK_SKEW).then(|| {
        format!(
            "the database clock differs by {} s from the clock of this machine or from the latest time that it \
             showed; synchronise both machines with NTP",
            clock_skew.num_seconds()
        )
    });
    let seal_lag = health.map_or(0.0, |health| health.seal_lag);
    let sealing = (state.seals && seal_lag > MAX_SEAL_LAG).then(|| {
        format!(
            "the oldest event that is not sealed is {seal_lag:.0} s old; look for a transaction that has been open as \
             long, and for errors of sealing in the log"
        )
    });
    partitions
        .into_iter()
        .chain(sealing)
        .chain(fallback)
        .chain(clocks)
        .collect()
}

/// The body of `GET /health/ready`.
#[derive(Serialize)]
struct ReadinessView {
    /// `ok`, or `unavailable` if a check is not `ok`.
    status: &'static str,
    checks: BTreeMap<&'static str, &'static str>,
    /// Conditions that will make a check fail if nobody acts.
    warnings: Vec<String>,
    #[serde(flatten)]
    database: Option<DatabaseView>,
}

/// Facts about the database that do not affect readiness.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseView {
    partitions_ahead_months: i32,
    synchronous_standby: bool,
    distributed: bool,
}
