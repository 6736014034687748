//! `/maintenance/cleanup`: whether the cleanup keeps up, and a run on demand.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};

use super::ApiState;
use super::auth::{Maintenance, Permit};
use super::body::Body;
use super::fault::{Detail, Faults};
use super::json::{Json, members};
use super::problem::Problem;
use super::query::{no_parameters, parameters};
use crate::model::Origin;
use crate::vending::cleanup::Run;

/// `GET /maintenance/cleanup`: the backlog, the last run, when the next is due.
pub async fn get_cleanup(
    _permit: Permit<Maintenance>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    Ok(HttpResponse::Ok().json(state.cleaner.find_backlog().await?))
}

/// `POST /maintenance/cleanup`: one run; its summary.
pub async fn run_cleanup(
    permit: Permit<Maintenance>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let document = body.read().await?;
    let mut faults = Faults::default();
    let [] = parameters(request.query_string(), [], &mut faults);
    let run = read_run(document, &mut faults);
    let run = faults.check(run)?;
    let origin = Origin::Request(permit.into_caller());
    Ok(HttpResponse::Ok().json(state.cleaner.run(run, origin).await?))
}

fn read_run(document: Json, faults: &mut Faults) -> Option<Run> {
    let names = ["dryRun", "batchSize", "maxRuntimeSeconds"];
    let [dry_run, batch_size, seconds] = members(document, "#", names, faults)?;
    let default = Run::default();
    let dry_run = match dry_run {
        None => Some(default.dry_run),
        Some(Json::Bool(dry_run)) => Some(dry_run),
        Some(other) => faults.field("#/dryRun", Err(other.instead_of("a boolean").into())),
    };
    let batch_size = faults.field(
        "#/batchSize",
        integer(batch_size, 10_000, default.batch_size),
    );
    let runtime = default.max_runtime.as_secs() as i64;
    let seconds = faults.field("#/maxRuntimeSeconds", integer(seconds, 3600, runtime));
    Some(Run {
        dry_run: dry_run?,
        batch_size: batch_size?,
        max_runtime: Duration::from_secs(seconds?.unsigned_abs()),
    })
}

fn integer(value: Option<Json>, max: i64, default: i64) -> Result<i64, Detail> {
    match value {
        None => Ok(default),
        Some(Json::Number(number))
            if number.fract() == 0.0 && (1.0..=max as f64).contains(&number) =>
        {
            Ok(number as i64)
        }
        Some(_) => Err(format!("must be an integer from 1 to {max}").into()),
    }
}
