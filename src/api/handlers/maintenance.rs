//! `/maintenance/cleanup`: the state of the cleanup, and a cleanup pass on demand.

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};

use crate::api::extract::authorization::{Authorized, Maintenance};
use crate::api::extract::body::Body;
use crate::api::extract::fields;
use crate::api::extract::json::Json;
use crate::api::extract::query::reject_parameters;
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::jobs::cleanup::CleanupOptions;
use crate::model::Origin;

/// The members of the body that starts a cleanup pass.
pub const RUN: [&str; 3] = ["dryRun", "batchSize", "maxRuntimeSeconds"];

/// The allowed numbers of rows per transaction.
pub const BATCH_SIZES: RangeInclusive<i32> = 1..=10_000;

/// The allowed time limits of a pass, in seconds.
pub const RUNTIMES: RangeInclusive<i32> = 1..=3600;

/// `GET /maintenance/cleanup`. Returns the backlog, the last run and the next due time.
pub async fn get_cleanup(
    _authorized: Authorized<Maintenance>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    Ok(HttpResponse::Ok().json(state.cleaner.find_backlog().await?))
}

/// `POST /maintenance/cleanup`. Runs one cleanup pass and returns its summary. A request without a body uses the
/// defaults.
pub async fn run_cleanup(
    authorized: Authorized<Maintenance>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let (members, errors) = body.read_optional_object(RUN).await?;
    let options = read_options(members, errors)?;
    let origin = Origin::Request(authorized.into_caller());
    Ok(HttpResponse::Ok().json(state.cleaner.run(options, origin).await?))
}

fn read_options(
    [dry_run, batch_size, seconds]: [Option<Json>; 3],
    mut errors: FieldErrors,
) -> Result<CleanupOptions, FieldErrors> {
    let dry_run = errors.check_member("#/dryRun", fields::optional_boolean(dry_run));
    let batch_size = fields::optional_integer(batch_size, BATCH_SIZES);
    let batch_size = errors.check_member("#/batchSize", batch_size);
    let seconds = fields::optional_integer(seconds, RUNTIMES);
    let seconds = errors.check_member("#/maxRuntimeSeconds", seconds);
    let values = dry_run.zip(batch_size).zip(seconds);
    let ((dry_run, batch_size), seconds) = errors.into_result(values)?;
    let default = CleanupOptions::default();
    let max_runtime = seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs().into()));
    Ok(CleanupOptions {
        dry_run: dry_run.unwrap_or(default.dry_run),
        batch_size: batch_size.map_or(default.batch_size, i64::from),
        max_runtime: max_runtime.unwrap_or(default.max_runtime),
    })
}
