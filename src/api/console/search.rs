//! `/console/search`: finds a user by id, or a token by its token string.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;

use super::{form, page, see_other};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::body::Body;
use crate::api::extract::fields;
use crate::api::extract::query::reject_parameters;
use crate::api::handlers::invalidation::find_by_string;
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::Problem;
use crate::api::state::ApiState;

/// The action of the lookup form, for its form token.
const LOOK_UP: &str = "look up";

#[derive(Template)]
#[template(path = "console/search.html")]
struct SearchPage {
    form_token: String,
    is_unknown: bool,
}

/// `GET /console/search`: shows the search forms.
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

/// `POST /console/search`: finds a token by its token string or verification link and redirects to the token's page.
///
/// The token string is sent in the body, so it appears in no address, log or browser history. No page shows it again.
pub async fn look_up(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let ([text, form_token], mut errors) = body.read_form(["tokenString", "formToken"]).await?;
    form::check_token(&request, &state, &authorized, LOOK_UP, form_token)?;
    let text = Zeroizing::new(text.unwrap_or_default());
    let token_string = match text.trim().strip_prefix(&state.verification_base_url) {
        Some(encoded) => percent_decode_str(encoded).decode_utf8_lossy().into_owned(),
        None => text.trim().to_owned(),
    };
    let token_string = errors.check_parameter("tokenString", fields::token_string(token_string));
    let token_string = errors.into_result(token_string)?;
    let form_token = form::token(authorized.client(), LOOK_UP);
    let found = find_by_string(&state, &token_string, authorized.into_caller()).await?;
    if let Some(token) = found {
        return Ok(see_other(format!("/console/tokens/{}", token.id)));
    }
    let mut response = page(
        StatusCode::NOT_FOUND,
        &SearchPage {
            form_token,
            is_unknown: true,
        },
    )?;
    response.extensions_mut().insert(LoggedOutcome("not-found"));
    Ok(response)
}
