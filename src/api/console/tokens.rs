//! `/console/users` and `/console/tokens/{id}`: the tokens of a user, and one token with its history.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::audit::FormQuery;
use super::search::Meaning;
use super::{now, page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::event_query::ListEvents;
use crate::api::extract::query::read_parameters;
use crate::api::handlers::audit::read_events;
use crate::api::handlers::tokens::{ListTokens, read_token, read_tokens};
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::event_page::{EventFilter, EventOrder};
use crate::db::search::{SearchIds, find_recorded_ids};
use crate::db::tokens::{Mint, find_mint};
use crate::db::{Checkout, Lane};
use crate::model::{AuditEvent, EventKind, EventRef, InvalidationReason, Scope, Token};

/// The maximum number of events on a token's page. Older events are left out.
const MAX_EVENTS: u32 = 500;

#[derive(Template)]
#[template(path = "console/user.html")]
struct UserPage {
    user_id: String,
    tokens: Vec<Token>,
    next: Option<String>,
    /// True if the user has a token, a mint or an event.
    is_known: bool,
    may_invalidate: bool,
    is_done: bool,
    found: Option<Meaning>,
    reasons: &'static [InvalidationReason],
    now: DateTime<Utc>,
}

impl UserPage {
    fn has_valid(&self) -> bool {
        self.tokens.iter().any(|token| token.is_valid)
    }
}

/// `GET /console/users?userId=`: lists the user's tokens, newest first, in pages.
///
/// A user without a valid token can be invalidated too, because a mint may be in progress. An unknown user cannot.
pub async fn show_user(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let fields = FormQuery::from_request(&request);
    let is_done = !fields.value("done").is_empty();
    let mut errors = FieldErrors::default();
    let found = Some(fields.value("found")).filter(|text| !text.is_empty());
    let found = errors.check_optional("found", found.map(str::to_owned), Meaning::parse);
    let list = ListTokens::from_query(&fields.to_query(&["done", "found"], &[]))?;
    if list.filter.user_id.is_none() {
        errors.add_parameter("userId", "is required");
    }
    let user_id = errors.into_result(list.filter.user_id.clone())?;
    // A standby may not have received the invalidation yet.
    let db = if is_done { &state.db } else { state.reads() };
    let may_invalidate = authorized.holds_scope(Scope::TokensInvalidate);
    let (tokens, next) = read_tokens(&state, db, list, authorized.into_caller()).await?;
    let is_known = !tokens.is_empty() || is_recorded(&state, &user_id).await?;
    let removed = ["cursor", "done", "found"];
    let view = UserPage {
        user_id,
        tokens,
        next: next.map(|cursor| fields.to_query(&removed, &[("cursor", &cursor)])),
        is_known,
        may_invalidate: may_invalidate && is_known,
        is_done,
        found,
        reasons: InvalidationReason::ALL,
        now: now(),
    };
    page(StatusCode::OK, &view)
}

/// Asks the primary, because a standby may not have received the first mint of the user yet.
async fn is_recorded(state: &ApiState, user_id: &str) -> Result<bool, Problem> {
    let ids = SearchIds {
        user_id: Some(user_id.to_owned()),
        ..SearchIds::default()
    };
    let find = async move |mut connection: Checkout| find_recorded_ids(&mut connection, &ids).await;
    Ok(state.db.run(Lane::Reads, find).await?.has_user)
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
    found: Option<Meaning>,
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
    let [done, found] = read_parameters(request.query_string(), ["done", "found"], &mut errors);
    let found = errors.check_optional("found", found, Meaning::parse);
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
        found,
        reasons: InvalidationReason::ALL,
        now: now(),
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
