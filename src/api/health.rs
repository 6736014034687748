//! Whether the process lives, and whether it may be sent requests.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::ApiState;
use super::problem::Problem;
use super::query::no_parameters;
use super::request_context::Outcome;
use crate::db::schema::{DatabaseHealth, find_database_health};
use crate::db::{Database, DbError};

const OK: &str = "ok";

/// A database that takes longer to answer counts as down.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Anyone may ask for readiness; the database is asked no more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What the last look at the database showed, and when; `None` = it was down.
#[derive(Debug, Default)]
pub struct DatabaseCheck(Mutex<Option<(Instant, Option<DatabaseHealth>)>>);

impl DatabaseCheck {
    /// The state of the database at most `CHECK_INTERVAL` ago. Those who ask during a look wait
    /// for it.
    async fn latest(&self, db: &Database) -> Option<DatabaseHealth> {
        let mut last = self.0.lock().await;
        if let Some((at, health)) = *last
            && at.elapsed() < CHECK_INTERVAL
        {
            return health;
        }
        let look = db.run(|pool| async move { find_database_health(&pool).await });
        let looked = tokio::time::timeout(CHECK_TIMEOUT, look).await;
        let looked = looked.unwrap_or(Err(DbError::TimedOut(CHECK_TIMEOUT)));
        let health = looked
            .inspect_err(|cause| tracing::warn!(%cause, "the database check failed"))
            .ok();
        *last = Some((Instant::now(), health));
        health
    }
}

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
    let health = state.database_check.latest(&state.db).await;
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

/// The body of `GET /health/ready`.
#[derive(Serialize)]
struct ReadyView {
    /// `ok`, or `unavailable` where a check is not `ok`.
    status: &'static str,
    checks: BTreeMap<&'static str, &'static str>,
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
