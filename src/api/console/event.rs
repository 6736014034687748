//! `/console/events/{id}`: one audit event, and its verification against the sealed log.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use serde_json::json;
use uuid::Uuid;

use super::search::Meaning;
use super::{page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::query::read_parameters;
use crate::api::handlers::audit_log::{NoProof, ProofView, read_proof};
use crate::api::problem::Problem;
use crate::api::problem::field_error::FieldErrors;
use crate::api::state::ApiState;
use crate::db::audit_events::{AuditReadRecord, insert_audit_read};
use crate::db::audit_log::find_event;
use crate::db::{Checkout, Lane};
use crate::model::{AuditEvent, EventRef};

#[derive(Template)]
#[template(path = "console/event.html")]
struct EventPage {
    event: AuditEvent,
    /// The proof and the size of its tree, or why there is none. `None` if the page does not verify the event.
    verified: Option<Result<(ProofView, u64), NoProof>>,
    seals: bool,
    found: Option<Meaning>,
}

/// `GET /console/events/{id}`: shows an event. With `?verify=1`, verifies that the sealed log contains it.
///
/// The view is recorded as an `audit.read` event before the event is read.
pub async fn show_event(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    id: web::Path<Uuid>,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut errors = FieldErrors::default();
    let [verify, found] = read_parameters(request.query_string(), ["verify", "found"], &mut errors);
    let found = errors.check_optional("found", found, Meaning::parse);
    errors.into_result(Some(()))?;
    let id = id.into_inner();
    let record = AuditReadRecord {
        caller: Some(authorized.into_caller()),
        detail: json!({"filter": {"id": id}}),
    };
    let read = async move |mut connection: Checkout| {
        insert_audit_read(&mut connection, &record).await?;
        let own = |event: &EventRef<'_>| AuditEvent::from(event);
        let event = find_event(&mut connection, id, own).await?;
        let verified = match verify {
            Some(_) => Some(read_proof(&mut connection, id).await?),
            None => None,
        };
        Ok((event, verified))
    };
    let (event, verified) = state.db.run(Lane::Reads, read).await?;
    let (_, event) = event.ok_or_else(|| Problem::not_found("no event has this id"))?;
    let view = EventPage {
        event,
        verified,
        seals: state.seals,
        found,
    };
    page(StatusCode::OK, &view)
}
