//! `/console/users` and `/console/tokens/{id}`: the tokens of a user, and one token with its history.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::audit::FormQuery;
use super::{page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::event_query::ListEvents;
use crate::api::extract::query::read_parameters;
use crate::api::handlers::audit::read_events;
use crate::api::handlers::tokens::{ListTokens, read_token, read_tokens};
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::Lane;
use crate::db::event_page::{EventFilter, EventOrder};
use crate::db::tokens::{Mint, find_mint};
use crate::model::{AuditEvent, EventKind, EventRef, InvalidationReason, Scope, Token};

/// The maximum number of events on a token's page. Older events are left out.
const MAX_EVENTS: u32 = 500;

#[derive(Template)]
#[template(path = "console/user.html")]
struct UserPage {
    user_id: String,
    tokens: Vec<Token>,
    next: Option<String>,
    may_invalidate: bool,
    is_done: bool,
    reasons: &'static [InvalidationReason],
}

impl UserPage {
    fn has_valid(&self) -> bool {
        self.tokens.iter().any(|token| token.is_valid)
    }
}

/// `GET /console/users?userId=`: lists the user's tokens, newest first, in pages.
pub async fn show_user(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let fields = FormQuery::from_request(&request);
    let is_done = !fields.value("done").is_empty();
    let list = ListTokens::from_query(&fields.to_query(&["done"], &[]))?;
    let Some(user_id) = list.filter.user_id.clone() else {
        let mut errors = FieldErrors::default();
        errors.add_parameter("userId", "is required");
        return Err(errors.into());
    };
    // A standby may not have received the invalidation yet.
    let db = if is_done { &state.db } else { state.reads() };
    let may_invalidate = authorized.holds_scope(Scope::TokensInvalidate);
    let (tokens, next) = read_tokens(&state, db, list, authorized.into_caller()).await?;
    let view = UserPage {
        user_id,
        tokens,
        next: next.map(|cursor| fields.to_query(&["cursor", "done"], &[("cursor", &cursor)])),
        may_invalidate,
        is_done,
        reasons: InvalidationReason::ALL,
    };
    page(StatusCode::OK, &view)
}

/// An entry of the timeline: one event, or consecutive reuses or reads by the same client.
struct Step {
    event: AuditEvent,
    last_at: DateTime<Utc>,
    count: usize,
}

impl Step {
    /// The CSS class of the kind of event, for example `token-minted`.
    fn class(&self) -> String {
        self.event.kind.replace('.', "-")
    }
}

#[derive(Template)]
#[template(path = "console/token.html")]
struct TokenPage {
    id: Uuid,
    user_id: Option<String>,
    token: Option<Token>,
    mint: Option<Mint>,
    steps: Vec<Step>,
    has_older: bool,
    may_invalidate: bool,
    is_done: bool,
    reasons: &'static [InvalidationReason],
    now: DateTime<Utc>,
}

impl TokenPage {
    fn is_valid(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_valid)
    }
}

/// `GET /console/tokens/{id}`: shows a token's record, its mint and its events.
///
/// The record is missing if it is past retention or if the mint failed. The page then shows what is left.
pub async fn show_token(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    id: web::Path<Uuid>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut errors = FieldErrors::default();
    let [done] = read_parameters(request.query_string(), ["done"], &mut errors);
    errors.into_result(Some(()))?;
    let id = id.into_inner();
    let may_invalidate = authorized.holds_scope(Scope::TokensInvalidate);
    let caller = authorized.into_caller();
    let token = read_token(&state, id, caller.clone()).await?;
    let list = ListEvents {
        filter: EventFilter {
            token_id: Some(id),
            ..EventFilter::default()
        },
        order: EventOrder::Desc,
        limit: MAX_EVENTS,
        after: None,
    };
    let keep = |events: &mut Vec<AuditEvent>, event: &EventRef<'_>| events.push(event.into());
    let list = read_events(&state, &list, caller, keep).await?;
    let events = list.taken;
    let recorded_user = token
        .as_ref()
        .map(|token| String::from(&*token.combination.user_id));
    let user_id = recorded_user.or_else(|| events.iter().find_map(|event| event.user_id.clone()));
    let mint = match user_id.clone() {
        Some(user_id) => {
            state
                .db
                .run(Lane::Reads, async move |mut connection| {
                    find_mint(&mut connection, &user_id, id).await
                })
                .await?
        }
        None => None,
    };
    if token.is_none() && events.is_empty() {
        return Err(Problem::not_found("no token has this id"));
    }
    let view = TokenPage {
        id,
        user_id,
        token,
        mint,
        steps: timeline(events),
        has_older: list.next_cursor.is_some(),
        may_invalidate,
        is_done: done.is_some(),
        reasons: InvalidationReason::ALL,
        #[expect(
            clippy::disallowed_methods,
            reason = "the page shows ages relative to this time"
        )]
        now: Utc::now(),
    };
    page(StatusCode::OK, &view)
}

/// Returns the timeline, oldest first. Consecutive reuses or reads by one client become one step.
fn timeline(newest_first: Vec<AuditEvent>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for event in newest_first.into_iter().rev() {
        match steps.last_mut() {
            Some(step)
                if [EventKind::TokenReused, EventKind::TokenRead]
                    .iter()
                    .any(|kind| event.kind == kind.name())
                    && (&step.event.kind, &step.event.client) == (&event.kind, &event.client) =>
            {
                step.last_at = event.occurred_at;
                step.count += 1;
            }
            _ => steps.push(Step {
                last_at: event.occurred_at,
                event,
                count: 1,
            }),
        }
    }
    steps
}
