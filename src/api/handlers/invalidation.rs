//! `/bank/tokens/…/invalidate` and `/bank/tokens/lookup`: invalidates tokens and finds a token by its string.

use actix_web::{HttpResponse, web};
use serde_json::json;
use uuid::Uuid;

use super::token_view::RecordView;
use crate::api::extract::authorization::{Authorized, TokensInvalidate, TokensRead};
use crate::api::extract::body::Body;
use crate::api::extract::fields;
use crate::api::extract::json::Json;
use crate::api::problem::Problem;
use crate::api::problem::field_error::{Detail, FieldErrors};
use crate::api::state::ApiState;
use crate::db::audit_events::TokenReadRow;
use crate::model::rules;
use crate::model::{Caller, EventKind, Fingerprint, InvalidationReason, Token, TokenString};

/// The members of the body that invalidates one token.
pub const REASON: [&str; 1] = ["reason"];

/// The members of the body that looks up a token.
pub const LOOKUP: [&str; 1] = ["tokenString"];

/// `POST /bank/tokens/{id}/invalidate`. Returns the record after the invalidation.
///
/// A repeated call succeeds and keeps the first reason.
pub async fn invalidate_token(
    authorized: Authorized<TokensInvalidate>,
    id: web::Path<Uuid>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([reason], mut errors) = body.read_object(REASON).await?;
    let reason = errors.check_member("#/reason", read_reason(reason));
    let reason = errors.into_result(reason)?;
    let token = state
        .vendor
        .invalidate(id.into_inner(), reason, authorized.into_caller())
        .await?
        .ok_or_else(|| Problem::not_found("no token has this id"))?;
    Ok(HttpResponse::Ok().json(RecordView::new(&token)))
}

/// `POST /bank/tokens/invalidate`. Invalidates all tokens of a user or all with a token string.
///
/// Returns the number of valid tokens that it invalidated.
pub async fn invalidate_tokens(
    authorized: Authorized<TokensInvalidate>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let names = ["reason", "userId", "tokenString"];
    let ([reason, user_id, token_string], mut errors) = body.read_object(names).await?;
    let reason = errors.check_member("#/reason", read_reason(reason));
    let target = read_target(user_id, token_string, &mut errors);
    let (reason, target) = errors.into_result(reason.zip(target))?;
    let (vendor, caller) = (&state.vendor, authorized.into_caller());
    let invalidated = match target {
        Target::User(user_id) => vendor.invalidate_user(user_id, reason, caller).await,
        Target::TokenString(text) => vendor.invalidate_token_string(&text, reason, caller).await,
    };
    Ok(HttpResponse::Ok().json(json!({ "invalidated": invalidated? })))
}

/// The tokens to invalidate.
enum Target {
    User(String),
    TokenString(TokenString),
}

fn read_target(
    user_id: Option<Json>,
    token_string: Option<Json>,
    errors: &mut FieldErrors,
) -> Option<Target> {
    match (user_id, token_string) {
        (user_id @ Some(_), None) => {
            let user_id = fields::required_string(user_id).and_then(rules::user_id);
            errors.check_member("#/userId", user_id).map(Target::User)
        }
        (None, token_string @ Some(_)) => errors
            .check_member("#/tokenString", read_token_string(token_string))
            .map(Target::TokenString),
        _ => {
            errors.add_member("#", "must contain exactly one of userId and tokenString");
            None
        }
    }
}

/// `POST /bank/tokens/lookup`. Returns the record of a token string.
pub async fn look_up_token(
    authorized: Authorized<TokensRead>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([token_string], mut errors) = body.read_object(LOOKUP).await?;
    let token_string = errors.check_member("#/tokenString", read_token_string(token_string));
    let token_string = errors.into_result(token_string)?;
    let (fingerprint, token) = state.vendor.look_up(&token_string).await?;
    record_lookup(
        &state,
        fingerprint,
        token.as_ref(),
        authorized.into_caller(),
    )
    .await?;
    let token =
        token.ok_or_else(|| Problem::not_found("no token on record has this token string"))?;
    Ok(HttpResponse::Ok().json(RecordView::new(&token)))
}

/// Records the lookup of a token string, which found this token or none.
pub async fn record_lookup(
    state: &ApiState,
    fingerprint: Fingerprint,
    token: Option<&Token>,
    caller: Caller,
) -> Result<(), Problem> {
    let read = match token {
        Some(token) => TokenReadRow::of_record(EventKind::TokenLookedUp, caller, token),
        None => TokenReadRow::of_unknown_string(caller, fingerprint),
    };
    Ok(state.token_reads.record(read).await?)
}

fn read_reason(value: Option<Json>) -> Result<InvalidationReason, Detail> {
    let text = fields::required_string(value)?;
    InvalidationReason::from_name(&text).ok_or(Detail::Borrowed(
        "must be one of used, compromised, requested",
    ))
}

fn read_token_string(value: Option<Json>) -> Result<TokenString, Detail> {
    fields::token_string(fields::required_string(value)?)
}
