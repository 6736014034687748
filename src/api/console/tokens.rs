//! `/console/users` and `/console/tokens/{id}`: whose tokens there are, and the life of one.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::audit::Fields;
use super::{page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::event_query::ListEvents;
use crate::api::extract::query::parameters;
use crate::api::handlers::audit::read_events;
use crate::api::handlers::tokens::{ListTokens, read_tokens};
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::event_page::{EventFilter, EventOrder};
use crate::db::tokens::{Mint, find_mint, find_token};
use crate::model::{AuditEvent, EventKind, EventRef, InvalidationReason, Scope, Token};

/// Events of a token that its page shows: the newest.
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

/// `GET /console/users?userId=`: the user's tokens, newest first, a page at a time.
pub async fn show_user(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let fields = Fields::of(&request);
    let is_done = !fields.value("done").is_empty();
    let list = ListTokens::from_query(&fields.query(&["done"], &[]))?;
    let Some(user_id) = list.filter.user_id.clone() else {
        let mut errors = FieldErrors::default();
        errors.parameter("userId", "is required");
        return Err(errors.into());
    };
    // After an invalidation a standby may not know of it yet.
    let db = if is_done { &state.db } else { state.reads() };
    let (tokens, next) = read_tokens(db, list).await?;
    let found = UserPage {
        user_id,
        tokens,
        next: next.map(|cursor| fields.query(&["cursor", "done"], &[("cursor", &cursor)])),
        may_invalidate: authorized.also(Scope::TokensInvalidate),
        is_done,
        reasons: InvalidationReason::ALL,
    };
    page(StatusCode::OK, &found)
}

/// An event of a timeline, or a run of reuses by the same client.
struct Step {
    event: AuditEvent,
    last_at: DateTime<Utc>,
    count: usize,
}

impl Step {
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

/// `GET /console/tokens/{id}`: the record, its mint, and what became of it. There may be events of a token
/// whose record is gone, or of a mint that gave none.
pub async fn show_token(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    id: web::Path<Uuid>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut errors = FieldErrors::default();
    let [done] = parameters(request.query_string(), ["done"], &mut errors);
    errors.check(Some(()))?;
    let id = id.into_inner();
    let token = state
        .db
        .run(move |pool| async move { find_token(&pool, id).await })
        .await?;
    let list = ListEvents {
        filter: EventFilter {
            token_id: Some(id),
            ..EventFilter::default()
        },
        order: EventOrder::Desc,
        limit: MAX_EVENTS,
        after: None,
    };
    let may_invalidate = authorized.also(Scope::TokensInvalidate);
    let keep = |events: &mut Vec<AuditEvent>, event: &EventRef<'_>| events.push(event.into());
    let (events, next) = read_events(&state, &list, authorized.into_caller(), keep).await?;
    let of_record = token
        .as_ref()
        .map(|token| String::from(&*token.combination.user_id));
    let user_id = of_record.or_else(|| events.iter().find_map(|event| event.user_id.clone()));
    let mint = match user_id.clone() {
        Some(user) => {
            state
                .db
                .run(move |pool| async move { find_mint(&pool, &user, id).await })
                .await?
        }
        None => None,
    };
    if token.is_none() && events.is_empty() {
        return Err(Problem::not_found("no token has this id"));
    }
    let found = TokenPage {
        id,
        user_id,
        token,
        mint,
        steps: steps(events),
        has_older: next.is_some(),
        may_invalidate,
        is_done: done.is_some(),
        reasons: InvalidationReason::ALL,
        #[expect(
            clippy::disallowed_methods,
            reason = "the page shows ages relative to this time"
        )]
        now: Utc::now(),
    };
    page(StatusCode::OK, &found)
}

/// Oldest first, with runs of reuses by one client told as one.
fn steps(newest_first: Vec<AuditEvent>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for event in newest_first.into_iter().rev() {
        match steps.last_mut() {
            Some(step)
                if event.kind == EventKind::TokenReused.name()
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
