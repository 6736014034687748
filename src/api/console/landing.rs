//! `GET /`: the version and the addresses of what people look for.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use serde_json::json;

use super::page;
use crate::api::extract::query::reject_parameters;
use crate::api::problem::Problem;

const READINESS: &str = "/health/ready";

#[derive(Template)]
#[template(path = "console/landing.html")]
struct LandingPage {
    /// False if `METRICS_ADDR` has the health.
    has_health: bool,
}

/// `GET /`. Returns a page for browsers and JSON for programs, which rarely ask for HTML.
pub async fn show_landing(request: HttpRequest) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let has_health = request.resource_map().has_resource(READINESS);
    let mut response = match accepts_html(request.headers()) {
        true => page(StatusCode::OK, &LandingPage { has_health })?,
        false => HttpResponse::Ok().json(json!({
            "name": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "links": {
                "docs": "/docs/",
                "console": "/console/",
                "openapi": "/openapi.json",
                "readiness": has_health.then_some(READINESS),
            },
        })),
    };
    let accept = header::HeaderValue::from_static("Accept");
    response.headers_mut().insert(header::VARY, accept);
    Ok(response)
}

/// Returns true if an `Accept` header names `text/html`, as every browser does.
fn accepts_html(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::ACCEPT);
    lines.any(|line| {
        let types = line.to_str().unwrap_or_default().split(',');
        let mut essences = types.map(|range| range.split(';').next().unwrap_or_default().trim());
        essences.any(|essence| essence.eq_ignore_ascii_case("text/html"))
    })
}
