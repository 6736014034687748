//! `/console/`: what an operator or auditor would rather look at than query.
//!
//! Pages are made here, whole; the one script draws plots of figures that the page also has as tables.
//! No page loads anything from elsewhere, and none shows a token string.

mod audit;
mod form;
mod invalidation;
mod overview;
mod search;
mod text;
mod tokens;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpResponse, HttpResponseBuilder, web};
use askama::Template;

pub use self::audit::show_audit;
pub use self::invalidation::{confirm_invalidation, invalidate};
pub use self::overview::show_overview;
pub use self::search::{look_up, show_search};
pub use self::tokens::{show_token, show_user};
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldError;

/// The headers of every page: what it may load, who may frame it, where its forms may go.
const SECURITY: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// Name, media type and content of what pages load.
#[rustfmt::skip]
const ASSETS: [(&str, &str, &str); 5] = [
    ("console.css", "text/css", include_str!("assets/console.css")),
    ("console.js", "text/javascript", include_str!("assets/console.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("uPlot.css", "text/css", include_str!("assets/uPlot.min.css")),
    ("uPlot.js", "text/javascript", include_str!("assets/uPlot.iife.min.js")),
];

/// Whether the path is one of the console's.
pub fn has(path: &str) -> bool {
    path.strip_prefix("/console")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `GET /console/assets/{file}`: for anybody, so that the page of a refusal has its looks.
pub async fn get_asset(file: web::Path<String>) -> Result<HttpResponse, Problem> {
    let found = ASSETS.iter().find(|(name, ..)| *name == *file);
    let (_, media_type, content) =
        found.ok_or_else(|| Problem::not_found("there is nothing at this path"))?;
    Ok(dress(&mut HttpResponse::Ok())
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

/// The answer to a person where there is a problem instead of a page.
pub fn refuse(problem: &Problem, request_id: &str) -> HttpResponse {
    let mut answer = problem.head();
    let page = ProblemPage {
        title: problem.kind.title(),
        status: actix_web::ResponseError::status_code(problem),
        detail: &problem.detail,
        errors: &problem.errors,
        request_id,
    };
    render(&mut answer, &page).unwrap_or_else(|_| answer.finish())
}

/// The page, with this status.
fn page(status: StatusCode, template: &impl Template) -> Result<HttpResponse, Problem> {
    render(&mut HttpResponse::build(status), template).map_err(Problem::internal)
}

fn render(
    answer: &mut HttpResponseBuilder,
    template: &impl Template,
) -> askama::Result<HttpResponse> {
    let html = template.render()?;
    Ok(dress(answer)
        .content_type(header::ContentType::html())
        .body(html))
}

fn dress(answer: &mut HttpResponseBuilder) -> &mut HttpResponseBuilder {
    SECURITY
        .into_iter()
        .fold(answer, |answer, line| answer.insert_header(line))
}

/// Post/Redirect/Get: reloading what follows repeats nothing.
fn see_other(location: String) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, location))
        .finish()
}
