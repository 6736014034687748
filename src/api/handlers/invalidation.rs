//! `/bank/tokens/…/invalidate` and `/bank/tokens/lookup`: end tokens, and find one that turned up.

use actix_web::{HttpResponse, web};
use serde_json::json;
use uuid::Uuid;

use super::token_view::RecordView;
use crate::api::extract::authorization::{Authorized, TokensInvalidate, TokensRead};
use crate::api::extract::body::Body;
use crate::api::extract::fields;
use crate::api::extract::json::Json;
use crate::api::problem::Problem;
use crate::api::problem::field_error::Detail;
use crate::api::state::ApiState;
use crate::model::InvalidationReason;

/// The members of the body that ends one token.
pub const REASON: [&str; 1] = ["reason"];

/// Those of the body that ends all tokens of a user, or the one of a token string.
pub const WHOSE: [&str; 3] = ["reason", "userId", "tokenString"];

/// Those of the body that looks one up.
pub const LOOKUP: [&str; 1] = ["tokenString"];

/// `POST /bank/tokens/{id}/invalidate`: ends a token; the record as it is after. Saying it twice is
/// fine: the first reason stays.
pub async fn invalidate_token(
    authorized: Authorized<TokensInvalidate>,
    id: web::Path<Uuid>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([reason], mut errors) = body.read_members(REASON).await?;
    let reason = errors.field("#/reason", read_reason(reason));
    let reason = errors.check(reason)?;
    let ended = state
        .vendor
        .invalidate(id.into_inner(), reason, authorized.into_caller());
    let token = ended
        .await?
        .ok_or_else(|| Problem::not_found("no token has this id"))?;
    Ok(HttpResponse::Ok().json(RecordView::new(&token)))
}

/// Whose tokens are to end.
enum Whose {
    User(String),
    Holder(String),
}

/// `POST /bank/tokens/invalidate`: ends all tokens of a user, or the one with that token string;
/// how many it ended.
pub async fn invalidate_tokens(
    authorized: Authorized<TokensInvalidate>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([reason, user_id, token_string], mut errors) = body.read_members(WHOSE).await?;
    let reason = errors.field("#/reason", read_reason(reason));
    let whose = match (user_id, token_string) {
        (Some(value), None) => {
            let user_id = fields::text(Some(value)).and_then(fields::user_id);
            errors.field("#/userId", user_id).map(Whose::User)
        }
        (None, Some(value)) => {
            let token_string = read_token_string(Some(value));
            errors
                .field("#/tokenString", token_string)
                .map(Whose::Holder)
        }
        _ => {
            errors.pointer("#", "must have exactly one of userId and tokenString");
            None
        }
    };
    let (reason, whose) = errors.check(reason.zip(whose))?;
    let (vendor, caller) = (&state.vendor, authorized.into_caller());
    let invalidated = match whose {
        Whose::User(user_id) => vendor.invalidate_user(user_id, reason, caller).await?,
        Whose::Holder(text) => {
            vendor
                .invalidate_token_string(&text, reason, caller)
                .await?
        }
    };
    Ok(HttpResponse::Ok().json(json!({ "invalidated": invalidated })))
}

/// `POST /bank/tokens/lookup`: whose is this token that turned up?
pub async fn look_up_token(
    _permit: Authorized<TokensRead>,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ([token_string], mut errors) = body.read_members(LOOKUP).await?;
    let token_string = errors.field("#/tokenString", read_token_string(token_string));
    let token_string = errors.check(token_string)?;
    let token = state
        .vendor
        .look_up(&token_string)
        .await?
        .ok_or_else(|| Problem::not_found("no token on record has this token string"))?;
    Ok(HttpResponse::Ok().json(RecordView::new(&token)))
}

fn read_reason(value: Option<Json>) -> Result<InvalidationReason, Detail> {
    let text = fields::text(value)?;
    InvalidationReason::from_name(&text).ok_or(Detail::Borrowed(
        "must be one of used, compromised, requested",
    ))
}

fn read_token_string(value: Option<Json>) -> Result<String, Detail> {
    fields::token_string(fields::text(value)?)
}
