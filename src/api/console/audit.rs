//! `/console/audit`: the trail with all its filters. Each look is in it.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::SubsecRound;
use url::form_urlencoded::{Serializer, parse};

use super::{page, text};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::event_query::ListEvents;
use crate::api::handlers::audit::read_events;
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::field_error::FieldError;
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::model::time::parse_timestamp;
use crate::model::{AuditEvent, EventKind, EventRef};

/// The fields of a form as a browser sends them, made a query of the API's: it sends empty ones, too, and
/// times without their offset, which are UTC here.
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads them.
    pub fn of(request: &HttpRequest) -> Self {
        let filled =
            parse(request.query_string().as_bytes()).filter(|(_, value)| !value.is_empty());
        let complete = |name: &str, value: String| match (name, value.len()) {
            ("from" | "to", 16) => value + ":00Z",
            ("from" | "to", 19 | 21..=23) if !value.ends_with('Z') => value + "Z",
            _ => value,
        };
        let fields = filled.map(|(name, value)| (complete(&name, value.into()), name.into()));
        Fields(fields.map(|(value, name)| (name, value)).collect())
    }

    /// Its value, empty if there is none.
    pub fn value(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// The query, less these fields, and with those.
    pub fn query(&self, less: &[&str], more: &[(&str, &str)]) -> String {
        let rest = self.0.iter().filter(|(name, _)| !less.contains(&&**name));
        let mut query = Serializer::new(String::new());
        query.extend_pairs(rest).extend_pairs(more).finish()
    }
}

#[derive(Template)]
#[template(path = "console/audit.html")]
struct AuditPage {
    fields: Fields,
    errors: Vec<FieldError>,
    events: Vec<AuditEvent>,
    next: Option<String>,
    kinds: &'static [EventKind],
}

impl AuditPage {
    /// A time as its field takes it: without an offset, and no finer than a millisecond.
    fn local(&self, name: &str) -> String {
        let at = parse_timestamp(self.fields.value(name)).ok();
        at.map(|at| at.trunc_subsecs(3).format("%FT%T%.f").to_string())
            .unwrap_or_default()
    }

    fn export(&self, format: &str) -> String {
        self.fields
            .query(&["order", "limit", "cursor"], &[("format", format)])
    }

    fn page_after(&self, cursor: &str) -> String {
        self.fields.query(&["cursor"], &[("cursor", cursor)])
    }
}

/// `GET /console/audit`: events that match, a page at a time; with what is wrong with the filter, if anything.
pub async fn show_audit(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    let fields = Fields::of(&request);
    let mut found = AuditPage {
        fields,
        errors: vec![],
        events: vec![],
        next: None,
        kinds: EventKind::ALL,
    };
    match ListEvents::from_query(&found.fields.query(&[], &[])) {
        Ok(list) => {
            let keep = |events: &mut Vec<_>, event: &EventRef<'_>| events.push(event.into());
            (found.events, found.next) =
                read_events(&state, &list, authorized.into_caller(), keep).await?;
            page(StatusCode::OK, &found)
        }
        Err(errors) => {
            found.errors = errors.into_vec();
            let mut answer = page(StatusCode::BAD_REQUEST, &found)?;
            answer
                .extensions_mut()
                .insert(LoggedOutcome(ProblemKind::Validation.slug()));
            Ok(answer)
        }
    }
}
