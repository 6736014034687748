//! `/console/`: web pages for operators and auditors.
//!
//! The server renders complete pages. The only script draws plots, refreshes the overview and shows local times. Every
//! page works without it: tables contain the figures of the plots. Pages load nothing from other addresses and never contain a token string.

mod audit;
mod clients;
mod event;
mod form;
mod invalidation;
mod landing;
mod overview;
mod search;
mod text;
mod tokens;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpResponse, HttpResponseBuilder, web};
use askama::Template;
use chrono::{DateTime, Utc};

pub use self::audit::show_audit;
pub use self::clients::{change_client, create_client, show_client, show_clients};
pub use self::event::show_event;
pub use self::invalidation::{confirm_invalidation, invalidate};
pub use self::landing::show_landing;
pub use self::overview::show_overview;
pub use self::search::{look_up, show_search};
pub use self::tokens::{show_token, show_user};
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldError;

/// The security headers of pages and their files. They restrict what a page loads, who frames it and where forms go.
const SECURITY_HEADERS: [(HeaderName, &str); 2] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// The files that pages load: name, media type and content.
#[rustfmt::skip]
const ASSETS: [(&str, &str, &str); 5] = [
    ("console.css", "text/css", include_str!("assets/console.css")),
    ("console.js", "text/javascript", include_str!("assets/console.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("uPlot.css", "text/css", include_str!("assets/uPlot.min.css")),
    ("uPlot.js", "text/javascript", include_str!("assets/uPlot.iife.min.js")),
];

/// Returns true for `/console` and every path below it.
pub fn is_console_path(path: &str) -> bool {
    path.strip_prefix("/console")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `GET /console/assets/{file}`: needs no authentication, so that error pages have their style sheet.
pub async fn get_asset(file: web::Path<String>) -> Result<HttpResponse, Problem> {
    let found = ASSETS.iter().find(|(name, ..)| *name == *file);
    let (_, media_type, content) =
        found.ok_or_else(|| Problem::not_found("there is nothing at this path"))?;
    Ok(add_security_headers(&mut HttpResponse::Ok())
        .content_type(format!("{media_type}; charset=utf-8"))
        .body(*content))
}

#[derive(Template)]
#[template(path = "console/problem.html")]
struct ProblemPage<'a> {
    title: &'a str,
    status: StatusCode,
    detail: &'a str,
    errors: &'a [FieldError],
    request_id: &'a str,
}

/// Renders a problem as a page. Responses below `/console` use it instead of `application/problem+json`.
pub fn render_problem(problem: &Problem, request_id: &str) -> HttpResponse {
    let mut response = problem.head();
    let page = ProblemPage {
        title: problem.kind.title(),
        status: actix_web::ResponseError::status_code(problem),
        detail: &problem.detail,
        errors: &problem.errors,
        request_id,
    };
    render(&mut response, &page).unwrap_or_else(|_| response.finish())
}

/// Renders a page with the given status.
fn page(status: StatusCode, template: &impl Template) -> Result<HttpResponse, Problem> {
    render(&mut HttpResponse::build(status), template).map_err(Problem::internal)
}

fn render(
    response: &mut HttpResponseBuilder,
    template: &impl Template,
) -> askama::Result<HttpResponse> {
    let html = template.render()?;
    Ok(add_security_headers(response)
        .content_type(header::ContentType::html())
        .body(html))
}

fn add_security_headers(response: &mut HttpResponseBuilder) -> &mut HttpResponseBuilder {
    SECURITY_HEADERS
        .into_iter()
        .fold(response, |response, header| response.insert_header(header))
}

/// Returns the time to which pages relate ages. Nothing is decided by it.
fn now() -> DateTime<Utc> {
    #[expect(
        clippy::disallowed_methods,
        reason = "pages show ages relative to this time"
    )]
    Utc::now()
}

/// Redirects after a POST, so that a reload of the target does not repeat the POST.
fn see_other(location: String) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, location))
        .finish()
}
