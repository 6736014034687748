//! `/maintenance/cleanup`: whether the cleanup keeps up, and a run on demand.

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};

use crate::api::extract::authorization::{Authorized, Maintenance};
use crate::api::extract::body::Body;
use crate::api::extract::fields;
use crate::api::extract::query::no_parameters;
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::jobs::cleanup::CleanupOptions;
use crate::model::Origin;

/// The members of the body that starts a run.
pub const RUN: [&str; 3] = ["dryRun", "batchSize", "maxRuntimeSeconds"];

/// Rows in one transaction.
pub const BATCH_SIZES: RangeInclusive<i32> = 1..=10_000;

/// Seconds that a run may take.
pub const RUNTIMES: RangeInclusive<i32> = 1..=3600;

/// `GET /maintenance/cleanup`: the backlog, the last run, when the next is due.
pub async fn get_cleanup(
    _permit: Authorized<Maintenance>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    Ok(HttpResponse::Ok().json(state.cleaner.find_backlog().await?))
}

/// `POST /maintenance/cleanup`: one run; its summary.
pub async fn run_cleanup(
    authorized: Authorized<Maintenance>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([dry_run, batch_size, seconds], mut errors) = body.read_members(RUN).await?;
    let dry_run = errors.field("#/dryRun", fields::boolean(dry_run));
    let batch_size = errors.field("#/batchSize", fields::integer(batch_size, BATCH_SIZES));
    let seconds = fields::integer(seconds, RUNTIMES);
    let seconds = errors.field("#/maxRuntimeSeconds", seconds);
    let ((dry_run, batch_size), seconds) = errors.check(dry_run.zip(batch_size).zip(seconds))?;
    let default = CleanupOptions::default();
    let seconds = seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs().into()));
    let run = CleanupOptions {
        dry_run: dry_run.unwrap_or(default.dry_run),
        batch_size: batch_size.map_or(default.batch_size, i64::from),
        max_runtime: seconds.unwrap_or(default.max_runtime),
    };
    let origin = Origin::Request(authorized.into_caller());
    Ok(HttpResponse::Ok().json(state.cleaner.run(run, origin).await?))
}
