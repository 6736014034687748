//! `/audit/events`: pages and exports of the audit log. Each read is itself an event.
//!
//! `HEAD` returns no event. Therefore it reads none and records no read.

use std::time::Duration;

use actix_web::body;
use actix_web::http::Method;
use actix_web::http::header::{
    self, ContentDisposition, ContentType, DispositionParam, DispositionType,
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde_json::json;

use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::cursor::Cursor;
use crate::api::extract::event_query::{ExportEvents, ListEvents};
use crate::api::problem::Problem;
use crate::api::state::ApiState;
use crate::db::audit_events::{self, AuditReadRecord, EventPages, insert_audit_read};
use crate::db::event_page::EventPage;
use crate::db::horizon::{find_horizon, wait_for_horizon};
use crate::db::{Checkout, Database, DbError, Lane};
use crate::model::event_format::{EventFormat, push_item};
use crate::model::{Caller, EventRef};

/// `GET /audit/events`. Returns one page of matching events.
///
/// The body has the form of [`PageView`](super::token_view::PageView). Its items are written directly
/// from the database rows.
pub async fn list_events(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let list = ListEvents::from_query(request.query_string())?;
    if request.method() == Method::HEAD {
        return Ok(HttpResponse::Ok()
            .content_type(ContentType::json())
            .body(body::None::new()));
    }
    let take = |items: &mut Vec<u8>, event: &EventRef<'_>| {
        if !items.is_empty() {
            items.push(b',');
        }
        push_item(items, event);
    };
    let page = read_events(&state, &list, authorized.into_caller(), take).await?;
    let next_cursor = json!(page.next_cursor).to_string();
    let complete_until = json!(page.complete_until).to_string();
    let body: [&[u8]; 7] = [
        b"{\"items\":[",
        &page.taken,
        b"],\"nextCursor\":",
        next_cursor.as_bytes(),
        b",\"completeUntil\":",
        complete_until.as_bytes(),
        b"}",
    ];
    Ok(HttpResponse::Ok()
        .content_type(ContentType::json())
        .body(body.concat()))
}

/// A page of events.
pub struct EventList<T> {
    /// The events.
    pub taken: T,
    /// The cursor of the next page. None on the last page.
    pub next_cursor: Option<String>,
    /// The time before which no event can still appear.
    pub complete_until: DateTime<Utc>,
}

/// Reads a page of events, passing each to `take`.
///
/// The event of this read is committed before the function returns.
pub async fn read_events<T: Default + Send + 'static>(
    state: &ApiState,
    list: &ListEvents,
    caller: Caller,
    take: fn(&mut T, &EventRef<'_>),
) -> Result<EventList<T>, Problem> {
    let mut filter = list.filter.clone();
    // Pagination stops at the time of its first page. Each page adds an event, so without this bound
    // it would never reach the end.
    let until = list.after.and_then(|cursor| cursor.until);
    filter.to = filter.to.into_iter().chain(until).min();
    let limit = i64::from(list.limit);
    let page = EventPage {
        order: list.order,
        after: list.after.map(|cursor| (cursor.at, cursor.id)),
        limit: limit + 1,
        with_names: true,
    };
    let record = AuditReadRecord {
        caller: Some(caller),
        detail: json!({"filter": list.filter, "order": list.order, "limit": list.limit}),
    };
    // The read is recorded before the response: in the transaction of the page, or on the primary after a read from a
    // standby.
    let is_recorded_apart = state.standby.is_some();
    let read = state
        .reads()
        .run(Lane::Reads, move |mut connection| async move {
            let (mut taken, mut count, mut last) = (T::default(), 0, None);
            let take = |event: &EventRef<'_>| {
                count += 1;
                if count <= limit {
                    take(&mut taken, event);
                    last = Some((event.occurred_at, event.id));
                }
            };
            let with_page = (!is_recorded_apart).then_some(&record);
            let complete_until = find_horizon(&mut connection).await?;
            let read_at =
                audit_events::read_events(&mut connection, &filter, page, with_page, take).await?;
            let last = last.filter(|_| count > limit);
            Ok((taken, last, complete_until, read_at, record))
        });
    let (taken, last, complete_until, mut read_at, record) = read.await?;
    if is_recorded_apart {
        read_at = Some(record_read(&state.db, record).await?.0);
    }
    let next_cursor = last.map(|(at, id)| {
        list.encode_cursor(Cursor {
            at,
            id,
            until: until.or(read_at),
        })
    });
    Ok(EventList {
        taken,
        next_cursor,
        complete_until,
    })
}

/// Records the read. Returns its time and the horizon of the audit log on the primary.
pub async fn record_read(
    db: &Database,
    record: AuditReadRecord,
) -> Result<(DateTime<Utc>, DateTime<Utc>), DbError> {
    db.run(Lane::Reads, async move |mut connection| {
        let read_at = insert_audit_read(&mut connection, &record).await?;
        Ok((read_at, find_horizon(&mut connection).await?))
    })
    .await
}

/// The header with the time before which the export has every matching event.
const COMPLETE_UNTIL: &str = "complete-until";

/// The time for which an export waits for a standby that lags.
const MAX_LAG: Duration = Duration::from_secs(5);

/// `GET /audit/events/export`. Streams all matching events, oldest first.
///
/// The event of this read is committed before the first byte is sent. A failure cuts the connection
/// before the final chunk. A standby must have all events that the primary knows to be complete.
pub async fn export_events(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let ExportEvents { mut filter, format } = ExportEvents::from_query(request.query_string())?;
    let mut response = HttpResponse::Ok();
    response
        .insert_header((header::CONTENT_TYPE, format.media_type()))
        .insert_header(ContentDisposition {
            disposition: DispositionType::Attachment,
            parameters: vec![DispositionParam::Filename(format!("audit-events.{format}"))],
        });
    if request.method() == Method::HEAD {
        return Ok(response.body(body::None::new()));
    }
    let record = AuditReadRecord {
        caller: Some(authorized.into_caller()),
        detail: json!({"filter": filter, "format": format}),
    };
    let (read_at, horizon) = record_read(&state.db, record).await?;
    let to = filter.to.unwrap_or(read_at);
    filter.to = Some(to);
    let complete_until = to.min(horizon);
    if let Some(standby) = &state.standby {
        let find = async || {
            let find = async move |mut connection: Checkout| find_horizon(&mut connection).await;
            standby.run(Lane::Reads, find).await
        };
        wait_for_horizon(complete_until, MAX_LAG, find).await?;
    }
    let until = complete_until.to_rfc3339_opts(SecondsFormat::Micros, true);
    response.insert_header((COMPLETE_UNTIL, until));

    let mut rest = Box::pin(chunks(
        state.reads().clone(),
        EventPages::new(filter, complete_until).with_names(format == EventFormat::Csv),
        format,
    ));
    // Reading the first page before the status is sent returns 503, not a broken stream, if the database
    // is down.
    let first = rest.try_next().await?;
    let head = format
        .head()
        .map(|head| Bytes::from_static(head.as_bytes()));
    let body = stream::iter(head.into_iter().chain(first).map(Ok)).chain(rest);
    Ok(response.streaming(body))
}

/// The initial capacity of a chunk, in bytes. Most pages of an export are smaller.
const CHUNK: usize = 1 << 20;

/// Returns one chunk per page. Reads the next page while the current one is sent.
///
/// No chunk is empty, because an empty chunk would end the body.
fn chunks(
    reads: Database,
    pages: EventPages,
    format: EventFormat,
) -> impl Stream<Item = Result<Bytes, DbError>> {
    let read = move |mut pages: EventPages| {
        reads.run(Lane::Reads, move |mut connection| async move {
            let mut rows = Vec::with_capacity(CHUNK);
            let push = |event: &EventRef<'_>| format.push(&mut rows, event);
            pages.read_next(&mut connection, push).await?;
            Ok((Bytes::from(rows), pages))
        })
    };
    let first = read(pages);
    stream::try_unfold(first, move |reading| {
        let read = read.clone();
        async move {
            let (rows, pages) = reading.await?;
            if rows.is_empty() {
                return Ok(None);
            }
            Ok(Some((rows, read(pages))))
        }
    })
    .inspect_err(|error: &DbError| tracing::error!(%error, "the audit export failed; the connection was cut"))
}
