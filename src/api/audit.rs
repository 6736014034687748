//! `/audit/events`: the trail, by page and as a whole. Each reading is in it.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::ApiState;
use super::auth::{AuditRead, Permit};
use super::cursor::Cursor;
use super::event_query::ListEvents;
use super::problem::Problem;
use super::token_view::PageView;
use crate::db::events::list_events as find_events;

/// `GET /audit/events`: events that match, a page at a time.
pub async fn list_events(
    permit: Permit<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let list = ListEvents::from_query(request.query_string())?;
    let (mut filter, order, after) = (list.filter.clone(), list.order, list.after);
    // A walk ends where it began: the readings that it leaves behind itself would go on for ever.
    let until = after.and_then(|cursor| cursor.until);
    filter.to = filter.to.into_iter().chain(until).min();
    let after = after.map(|cursor| (cursor.at, cursor.id));
    let one_more = i64::from(list.limit) + 1;
    let found = state
        .reads
        .run(move |pool| async move { find_events(&pool, &filter, order, after, one_more).await });
    let mut events = found.await?;
    let has_more = events.len() > list.limit as usize;
    events.truncate(list.limit as usize);

    let detail = json!({"filter": list.filter, "order": order, "limit": list.limit});
    let caller = permit.into_caller();
    let read_at = state.vendor.record_reading(caller, detail).await?;
    let last = events.last().filter(|_| has_more).map(|event| Cursor {
        at: event.occurred_at,
        id: event.id,
        until: until.or(Some(read_at)),
    });
    Ok(HttpResponse::Ok().json(PageView {
        next_cursor: last.map(|cursor| list.cursor(cursor)),
        items: events,
    }))
}
