//! `/console/invalidate`: invalidates a token or all tokens of a user, after a confirmation page.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use url::form_urlencoded::Serializer;
use uuid::Uuid;

use super::{form, page, see_other, text};
use crate::api::extract::authorization::{Authorized, ConsoleInvalidate};
use crate::api::extract::body::Body;
use crate::api::extract::event_query::uuid;
use crate::api::extract::query::read_parameters;
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::tokens::{TokenFilter, find_token, list_tokens};
use crate::db::{Checkout, Lane};
use crate::model::rules;
use crate::model::{InvalidationReason, Token};

/// The maximum number of valid tokens that the confirmation page counts.
const MAX_COUNTED: i64 = 100;

/// A parsed invalidation form.
struct Invalidation {
    target: Target,
    reason: InvalidationReason,
}

enum Target {
    Token(Uuid),
    User(String),
}

impl Invalidation {
    /// Parses the fields `tokenId`, `userId` and `reason`. Exactly one of the first two must be present.
    fn parse(
        [token_id, user_id, reason]: [Option<String>; 3],
        mut errors: FieldErrors,
    ) -> Result<Self, FieldErrors> {
        let reason = InvalidationReason::from_name(&reason.unwrap_or_default());
        let reason = errors.check_parameter(
            "reason",
            reason.ok_or("must be one of used, compromised, requested".into()),
        );
        let target = match (token_id, user_id) {
            (Some(text), None) => errors
                .check_parameter("tokenId", uuid(&text))
                .map(Target::Token),
            (None, Some(text)) => errors
                .check_parameter("userId", rules::user_id(text))
                .map(Target::User),
            _ => {
                errors.add_parameter(
                    "tokenId",
                    "is required, or userId is; give exactly one of them",
                );
                None
            }
        };
        let parsed = target
            .zip(reason)
            .map(|(target, reason)| Invalidation { target, reason });
        errors.into_result(parsed)
    }

    /// The action that the form token authorizes.
    fn action(&self) -> String {
        let (field, value) = self.field();
        format!("invalidate {} {field} {value}", self.reason)
    }

    /// The form field that names the target, with its value.
    fn field(&self) -> (&'static str, String) {
        match &self.target {
            Target::Token(id) => ("tokenId", id.to_string()),
            Target::User(user_id) => ("userId", user_id.clone()),
        }
    }

    /// The page that shows the result.
    fn result_page(&self) -> String {
        match &self.target {
            Target::Token(id) => format!("/console/tokens/{id}?done=1"),
            Target::User(user_id) => {
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
    /// The valid tokens, up to [`MAX_COUNTED`] and one more.
    tokens: Vec<Token>,
}

/// `GET /console/invalidate?tokenId=|userId=&reason=`: asks for confirmation.
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
    let invalidation = Invalidation::parse(values, errors)?;
    let tokens = match &invalidation.target {
        Target::Token(id) => {
            let id = *id;
            let found = state
                .db
                .run(Lane::Reads, async move |mut connection| {
                    find_token(&mut connection, id).await
                })
                .await?;
            let token = found.ok_or_else(|| Problem::not_found("no token has this id"))?;
            Vec::from_iter(Some(token).filter(|token| token.is_valid))
        }
        Target::User(user_id) => {
            let filter = TokenFilter {
                user_id: Some(user_id.clone()),
                is_valid: Some(true),
                ..TokenFilter::default()
            };
            let list = async move |mut connection: Checkout| {
                list_tokens(&mut connection, &filter, None, MAX_COUNTED + 1).await
            };
            state.db.run(Lane::Reads, list).await?
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

/// `POST /console/invalidate`: invalidates and redirects to the page that shows the result.
pub async fn invalidate(
    authorized: Authorized<ConsoleInvalidate>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let names = ["tokenId", "userId", "reason", "formToken"];
    let ([token_id, user_id, reason, form_token], errors) = body.read_form(names).await?;
    let invalidation = Invalidation::parse([token_id, user_id, reason], errors)?;
    form::check_token(
        &request,
        &state,
        &authorized,
        &invalidation.action(),
        form_token,
    )?;
    let (caller, reason) = (authorized.into_caller(), invalidation.reason);
    match &invalidation.target {
        Target::Token(id) => {
            let token = state.vendor.invalidate(*id, reason, caller).await?;
            token.ok_or_else(|| Problem::not_found("no token has this id"))?;
        }
        Target::User(user_id) => {
            state
                .vendor
                .invalidate_user(user_id.clone(), reason, caller)
                .await?;
        }
    }
    Ok(see_other(invalidation.result_page()))
}
