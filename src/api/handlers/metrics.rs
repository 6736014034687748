//! `GET /metrics` for Prometheus.

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::join;

use crate::api::extract::query::reject_parameters;
use crate::api::problem::Problem;
use crate::api::state::{ApiState, probe_metrics};

/// `GET /metrics`. Returns the metrics of this replica, and those of all replicas from the database.
///
/// A metric that the database cannot supply now is NaN.
pub async fn get_metrics(
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    state.vendor.measure();
    measure_connections(&state);
    measure_database(&state).await;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(state.metrics.encode()))
}

fn measure_connections(state: &ApiState) {
    if let Some(standby) = &state.standby {
        let fallbacks = &state.metrics.read_fallbacks_total;
        fallbacks.inc_by(standby.take_fallback_count());
    }
    let (all, idle) = state.db.count_connections();
    let connections = &state.metrics.database_connections;
    connections.with_label_values(&["idle"]).set(idle as u64);
    let used = connections.with_label_values(&["used"]);
    used.set(all.saturating_sub(idle) as u64);
}

async fn measure_database(state: &ApiState) {
    let metrics = &state.metrics;
    let health = state.database_check.latest_health(&state.db);
    let (probe, health) = join(probe_metrics(state), health).await;
    let is_up = probe.is_some() && state.vendor.recording_failure().is_none();
    metrics.database_up.set(u64::from(is_up));
    let (budget, overdue, oldest, last_success, expiry) = match probe {
        None => (f64::NAN, f64::NAN, f64::NAN, f64::NAN, f64::NAN),
        Some(probe) => {
            let backlog = probe.backlog;
            let seconds = |at: chrono::DateTime<_>| at.timestamp_millis() as f64 / 1000.0;
            (
                probe.budget.map_or(f64::INFINITY, f64::from),
                backlog.overdue_tokens as f64,
                backlog.oldest_overdue.map_or(0.0, seconds),
                backlog.last_success_at.map_or(0.0, seconds),
                probe.earliest_expiry.unwrap_or(f64::INFINITY),
            )
        }
    };
    metrics.upstream_budget_remaining.set(budget);
    metrics.client_expiry_seconds.set(expiry);
    metrics.cleanup_overdue_tokens.set(overdue);
    metrics.cleanup_oldest_overdue_timestamp_seconds.set(oldest);
    metrics
        .cleanup_last_success_timestamp_seconds
        .set(last_success);
    let lag = health
        .filter(|_| state.seals)
        .map_or(f64::NAN, |health| health.seal_lag);
    metrics.seal_lag_seconds.set(lag);
    let ahead = health.map_or(f64::NAN, |health| f64::from(health.partitions_ahead));
    metrics.audit_partitions_ahead_months.set(ahead);
}
