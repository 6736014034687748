//! `/console/invalidate`: ends a token, or all of a user's, once it was asked whether that is meant.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use url::form_urlencoded::Serializer;
use uuid::Uuid;

use super::{form, page, see_other, text};
use crate::api::extract::authorization::{Authorized, ConsoleInvalidate};
use crate::api::extract::body::Body;
use crate::api::extract::event_query::uuid;
use crate::api::extract::fields;
use crate::api::extract::query::read_parameters;
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::tokens::{TokenFilter, find_token, list_tokens};
use crate::model::{InvalidationReason, Token};

/// Of a user's valid tokens so many are counted for the question.
const MAX_COUNTED: i64 = 100;

/// What is to end, and why.
struct Invalidation {
    whose: Whose,
    reason: InvalidationReason,
}

enum Whose {
    Token(Uuid),
    User(String),
}

impl Invalidation {
    fn read(
        [token_id, user_id, reason]: [Option<String>; 3],
        mut errors: FieldErrors,
    ) -> Result<Self, FieldErrors> {
        let reason = InvalidationReason::from_name(&reason.unwrap_or_default());
        let reason = errors.check_parameter(
            "reason",
            reason.ok_or("must be one of used, compromised, requested".into()),
        );
        let whose = match (token_id, user_id) {
            (Some(text), None) => errors
                .check_parameter("tokenId", uuid(&text))
                .map(Whose::Token),
            (None, Some(text)) => errors
                .check_parameter("userId", fields::user_id(text))
                .map(Whose::User),
            _ => {
                errors.add_parameter("tokenId", "or userId must be there, and not both");
                None
            }
        };
        let read = whose
            .zip(reason)
            .map(|(whose, reason)| Invalidation { whose, reason });
        errors.into_result(read)
    }

    /// What its form is good for.
    fn action(&self) -> String {
        let (kind, name) = self.field();
        format!("invalidate {} {kind} {name}", self.reason)
    }

    fn field(&self) -> (&'static str, String) {
        match &self.whose {
            Whose::Token(id) => ("tokenId", id.to_string()),
            Whose::User(user_id) => ("userId", user_id.clone()),
        }
    }

    /// The page that shows what came of it.
    fn outcome(&self) -> String {
        match &self.whose {
            Whose::Token(id) => format!("/console/tokens/{id}?done=1"),
            Whose::User(user_id) => {
                let fields = [("userId", &**user_id), ("done", "1")];
                let query = Serializer::new(String::new()).extend_pairs(fields).finish();
                format!("/console/users?{query}")
            }
        }
    }
}

#[derive(Template)]
#[template(path = "console/confirm.html")]
struct ConfirmPage {
    invalidation: Invalidation,
    form_token: String,
    /// The tokens that are valid now, at most one more than are counted.
    tokens: Vec<Token>,
}

/// `GET /console/invalidate?tokenId=|userId=&reason=`: the question.
pub async fn confirm_invalidation(
    authorized: Authorized<ConsoleInvalidate>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut errors = FieldErrors::default();
    let values = read_parameters(
        request.query_string(),
        ["tokenId", "userId", "reason"],
        &mut errors,
    );
    let invalidation = Invalidation::read(values, errors)?;
    let tokens = match &invalidation.whose {
        Whose::Token(id) => {
            let id = *id;
            let found = state
                .db
                .run(move |pool| async move { find_token(&pool, id).await })
                .await?;
            let token = found.ok_or_else(|| Problem::not_found("no token has this id"))?;
            Vec::from_iter(Some(token).filter(|token| token.is_valid))
        }
        Whose::User(user_id) => {
            let user_id = Some(user_id.clone());
            let filter = TokenFilter {
                user_id,
                is_valid: Some(true),
                ..TokenFilter::default()
            };
            let list =
                move |pool| async move { list_tokens(&pool, &filter, None, MAX_COUNTED + 1).await };
            state.db.run(list).await?
        }
    };
    let form_token = form::token(authorized.client(), &invalidation.action());
    page(
        StatusCode::OK,
        &ConfirmPage {
            invalidation,
            form_token,
            tokens,
        },
    )
}

/// `POST /console/invalidate`: does it, and goes on to the page that shows it.
pub async fn invalidate(
    authorized: Authorized<ConsoleInvalidate>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let names = ["tokenId", "userId", "reason", "formToken"];
    let ([token_id, user_id, reason, form_token], errors) = body.read_form(names).await?;
    let invalidation = Invalidation::read([token_id, user_id, reason], errors)?;
    form::check_token(
        &request,
        &state,
        &authorized,
        &invalidation.action(),
        form_token,
    )?;
    let (caller, reason) = (authorized.into_caller(), invalidation.reason);
    match &invalidation.whose {
        Whose::Token(id) => {
            let ended = state.vendor.invalidate(*id, reason, caller).await?;
            ended.ok_or_else(|| Problem::not_found("no token has this id"))?;
        }
        Whose::User(user_id) => {
            state
                .vendor
                .invalidate_user(user_id.clone(), reason, caller)
                .await?;
        }
    }
    Ok(see_other(invalidation.outcome()))
}
