//! `/console/search`: a user by id, a token by its string.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use percent_encoding::percent_decode_str;

use super::{form, page, see_other};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::body::Body;
use crate::api::extract::fields;
use crate::api::extract::query::reject_parameters;
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::Problem;
use crate::api::state::ApiState;

/// What the form with the token string does.
const LOOK_UP: &str = "look up";

#[derive(Template)]
#[template(path = "console/search.html")]
struct SearchPage {
    form_token: String,
    is_unknown: bool,
}

/// `GET /console/search`: the forms.
pub async fn show_search(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let form_token = form::token(authorized.client(), LOOK_UP);
    page(
        StatusCode::OK,
        &SearchPage {
            form_token,
            is_unknown: false,
        },
    )
}

/// `POST /console/search`: on to the token with that token string, or the verification link with it. It
/// comes in a body, so that it is in no address, log or history, and is not shown again.
pub async fn look_up(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let ([text, form_token], mut errors) = body.read_form(["tokenString", "formToken"]).await?;
    form::check_token(&request, &state, &authorized, LOOK_UP, form_token)?;
    let text = text.unwrap_or_default();
    let text = match text.trim().strip_prefix(&state.verification_base_url) {
        Some(encoded) => percent_decode_str(encoded).decode_utf8_lossy().into_owned(),
        None => text.trim().to_owned(),
    };
    let text = errors.check_parameter("tokenString", fields::token_string(text));
    let text = errors.into_result(text)?;
    if let Some(token) = state.vendor.look_up(&text).await? {
        return Ok(see_other(format!("/console/tokens/{}", token.id)));
    }
    let form_token = form::token(authorized.client(), LOOK_UP);
    let mut answer = page(
        StatusCode::NOT_FOUND,
        &SearchPage {
            form_token,
            is_unknown: true,
        },
    )?;
    answer.extensions_mut().insert(LoggedOutcome("not-found"));
    Ok(answer)
}
