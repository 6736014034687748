//! Whether the process lives, and whether it may be sent requests.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::json;

use crate::api::extract::query::no_parameters;
use crate::api::middleware::request_context::Outcome;
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::db::schema::DatabaseHealth;

const OK: &str = "ok";

/// Fewer months than this ahead, and the upkeep of the audit's partitions has been failing.
const MONTHS_AHEAD: i32 = 2;

/// `GET /health/live`: the process answers.
pub async fn get_liveness(request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(HttpResponse::Ok().json(json!({"status": OK, "version": version})))
}

/// `GET /health/ready`: requests will be served, or 503 with what is in the way.
pub async fn get_readiness(
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    let health = state.database_check.latest_health(&state.db).await;
    let is_current = health.map(|health| health.is_schema_current);
    let has_partition = health.map(|health| health.partitions_ahead >= 0);
    let is_recording = state.vendor.is_recording();
    let is_stopping = state.stopping.load(Ordering::Relaxed);
    let checks = [
        check("database", Some(health.is_some()), "unavailable"),
        check("schema", is_current, "outdated"),
        check("partitions", has_partition, "missing"),
        check("writer", Some(is_recording), "stopped"),
        check("shutdown", Some(!is_stopping), "stopping"),
    ];
    let is_ready = checks.iter().all(|(_, state)| *state == OK);
    let view = ReadyView {
        status: if is_ready { OK } else { "unavailable" },
        checks: checks.into(),
        warnings: warnings(health),
        database: health.map(|health| DatabaseView {
            partitions_ahead_months: health.partitions_ahead,
            synchronous_standby: health.has_synchronous_standby,
        }),
    };
    if is_ready {
        return Ok(HttpResponse::Ok().json(view));
    }
    let mut answer = HttpResponse::ServiceUnavailable()
        .insert_header((header::RETRY_AFTER, 1))
        .json(view);
    answer.extensions_mut().insert(Outcome("not-ready"));
    Ok(answer)
}

/// A check's name, and `ok` or what is the matter.
fn check(
    name: &'static str,
    is_good: Option<bool>,
    bad: &'static str,
) -> (&'static str, &'static str) {
    let state = match is_good {
        Some(true) => OK,
        Some(false) => bad,
        None => "unknown",
    };
    (name, state)
}

fn warnings(health: Option<DatabaseHealth>) -> Vec<String> {
    let ahead = health.map_or(MONTHS_AHEAD, |health| health.partitions_ahead);
    let short = (ahead < MONTHS_AHEAD).then(|| {
        format!(
            "the audit has partitions for {ahead} months after this one: is the cleanup failing?"
        )
    });
    short.into_iter().collect()
}

/// The body of `GET /health/ready`.
#[derive(Serialize)]
struct ReadyView {
    /// `ok`, or `unavailable` where a check is not `ok`.
    status: &'static str,
    checks: BTreeMap<&'static str, &'static str>,
    /// What will be in the way unless somebody sees to it.
    warnings: Vec<String>,
    #[serde(flatten)]
    database: Option<DatabaseView>,
}

/// What is good to know, and no reason to send requests elsewhere.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseView {
    partitions_ahead_months: i32,
    synchronous_standby: bool,
}
