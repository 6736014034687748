//! `/console/audit`: lists audit events with every filter of the API.
//!
//! Each view is recorded as an `audit.read` event. Those events are hidden unless the checkbox or a filter asks for
//! them.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, SubsecRound, Utc};
use url::form_urlencoded::{Serializer, parse};

use super::{now, page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::event_query::ListEvents;
use crate::api::handlers::audit::read_events;
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::field_error::FieldError;
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::db::clients::list_clients;
use crate::db::{Checkout, DbError, Lane};
use crate::model::time::parse_timestamp;
use crate::model::{AuditEvent, ClientRecord, EventKind, EventRef};

/// The maximum number of clients that the filter offers by name.
const MAX_OFFERED: i64 = 500;

/// The field of the checkbox that shows the reads of the audit log. It is not a parameter of the API.
const SHOW_READS: &str = "showReads";

/// The query of a console form, converted to a query of the API.
///
/// Browsers also send empty fields, which are dropped. Their times have no offset and are completed as UTC.
pub struct FormQuery(Vec<(String, String)>);

impl FormQuery {
    /// Parses the query string of a request.
    pub fn from_request(request: &HttpRequest) -> Self {
        let filled =
            parse(request.query_string().as_bytes()).filter(|(_, value)| !value.is_empty());
        // `datetime-local` fields send `2026-11-22T09:39`, with seconds and milliseconds if they are not zero.
        let complete_time = |name: &str, value: String| match (name, value.len()) {
            ("from" | "to", 16) => value + ":00Z",
            ("from" | "to", 19 | 21..=23) if !value.ends_with('Z') => value + "Z",
            _ => value,
        };
        FormQuery(
            filled
                .map(|(name, value)| {
                    let value = complete_time(&name, value.into());
                    (name.into(), value)
                })
                .collect(),
        )
    }

    /// Returns the first value of a field, or an empty string.
    pub fn value(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// Returns all values of a field.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let found = self.0.iter().filter(|(known, _)| known == name);
        found.map(|(_, value)| &**value).collect()
    }

    /// Serializes the query without the fields `removed` and with the fields `added`.
    pub fn to_query(&self, removed: &[&str], added: &[(&str, &str)]) -> String {
        let kept = self
            .0
            .iter()
            .filter(|(name, _)| !removed.contains(&&**name));
        let mut query = Serializer::new(String::new());
        query.extend_pairs(kept).extend_pairs(added).finish()
    }
}

#[derive(Template)]
#[template(path = "console/audit.html")]
struct AuditPage {
    fields: FormQuery,
    errors: Vec<FieldError>,
    events: Vec<AuditEvent>,
    next: Option<String>,
    complete_until: Option<DateTime<Utc>>,
    kinds: &'static [EventKind],
    /// The clients that the filter offers, at most [`MAX_OFFERED`].
    clients: Vec<ClientRecord>,
    now: DateTime<Utc>,
}

impl AuditPage {
    /// Formats a time for a `datetime-local` field, in UTC without an offset and in whole milliseconds.
    fn local_time(&self, name: &str) -> String {
        let at = parse_timestamp(self.fields.value(name)).ok();
        at.map(|at| at.trunc_subsecs(3).format("%FT%T%.f").to_string())
            .unwrap_or_default()
    }

    /// True if `kind` is one of the values of the field.
    fn is_selected(&self, name: &str, kind: &EventKind) -> bool {
        self.fields.values(name).contains(&kind.name())
    }

    /// True if the page leaves out the reads of the audit log.
    ///
    /// A filter by kind or request may be there to find one. Events of a user or a token are no reads.
    fn hides_reads(&self) -> bool {
        [
            "kind",
            "requestId",
            "userId",
            "tokenId",
            "fingerprint",
            SHOW_READS,
        ]
        .iter()
        .all(|name| self.fields.value(name).is_empty())
    }

    /// The query of the API for the events of the page.
    fn api_query(&self, removed: &[&str], added: &[(&str, &str)]) -> String {
        let hidden = [("excludeKind", EventKind::AuditRead.name())];
        let hidden = &hidden[..usize::from(self.hides_reads())];
        self.fields.to_query(
            &[removed, &[SHOW_READS]].concat(),
            &[added, hidden].concat(),
        )
    }

    /// The query of an export of all matching events.
    fn export_query(&self, format: &str) -> String {
        self.api_query(&["order", "limit", "cursor"], &[("format", format)])
    }

    /// The query of the first page with the reads of the audit log.
    fn with_reads_query(&self) -> String {
        self.fields.to_query(&["cursor"], &[(SHOW_READS, "1")])
    }

    /// The query of the page that `cursor` points to.
    fn next_page_query(&self, cursor: &str) -> String {
        self.fields.to_query(&["cursor"], &[("cursor", cursor)])
    }
}

async fn list_offered(state: &ApiState) -> Result<Vec<ClientRecord>, DbError> {
    let list = async move |mut connection: Checkout| {
        list_clients(&mut connection, None, MAX_OFFERED).await
    };
    state.reads().run(Lane::Reads, list).await
}

/// `GET /console/audit`: shows one page of the matching events.
///
/// An invalid filter gets status 400 and the filter form with the errors.
pub async fn show_audit(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let mut view = AuditPage {
        fields: FormQuery::from_request(&request),
        errors: vec![],
        events: vec![],
        next: None,
        complete_until: None,
        kinds: EventKind::ALL,
        clients: list_offered(&state).await?,
        now: now(),
    };
    match ListEvents::from_query(&view.api_query(&[], &[])) {
        Ok(list) => {
            let keep = |events: &mut Vec<_>, event: &EventRef<'_>| events.push(event.into());
            let list = read_events(&state, &list, authorized.into_caller(), keep).await?;
            (view.events, view.next) = (list.taken, list.next_cursor);
            view.complete_until = Some(list.complete_until);
            page(StatusCode::OK, &view)
        }
        Err(errors) => {
            view.errors = errors.into_vec();
            let mut response = page(StatusCode::BAD_REQUEST, &view)?;
            response
                .extensions_mut()
                .insert(LoggedOutcome(ProblemKind::Validation.slug()));
            Ok(response)
        }
    }
}
