//! `/console/search`: one box for ids, fingerprints, token strings and verification links.

use std::fmt::Display;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;
use url::form_urlencoded::Serializer;

use super::{form, page, see_other};
use crate::api::extract::authorization::{AuditRead, Authorized};
use crate::api::extract::body::Body;
use crate::api::extract::event_query::uuid;
use crate::api::extract::fields;
use crate::api::extract::query::reject_parameters;
use crate::api::handlers::invalidation::record_lookup;
use crate::api::middleware::request_context::LoggedOutcome;
use crate::api::problem::Problem;
use crate::api::problem::field_error::Detail;
use crate::api::state::ApiState;
use crate::db::audit_log::find_event;
use crate::db::search::{SearchIds, find_recorded_ids};
use crate::db::{Checkout, Lane};
use crate::model::{Scope, rules};

/// The action of the search form, for its form token.
const LOOK_UP: &str = "look up";

/// A meaning of the text in the search box.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    UserId,
    TokenId,
    EventId,
    RequestId,
    Fingerprint,
    ApiKey,
    TokenString,
    VerificationLink,
}

impl Meaning {
    const ALL: [Meaning; 8] = [
        Meaning::UserId,
        Meaning::TokenId,
        Meaning::EventId,
        Meaning::RequestId,
        Meaning::Fingerprint,
        Meaning::ApiKey,
        Meaning::TokenString,
        Meaning::VerificationLink,
    ];

    /// Returns the name, as in "found by its token string".
    pub fn name(self) -> &'static str {
        match self {
            Meaning::UserId => "user id",
            Meaning::TokenId => "token id",
            Meaning::EventId => "event id",
            Meaning::RequestId => "request id",
            Meaning::Fingerprint => "fingerprint",
            Meaning::ApiKey => "API key",
            Meaning::TokenString => "token string",
            Meaning::VerificationLink => "verification link",
        }
    }

    /// Returns the title of the page that the search leads to.
    fn record(self) -> &'static str {
        match self {
            Meaning::UserId => "The tokens of the user",
            Meaning::EventId => "The event",
            Meaning::RequestId => "The events of the request",
            Meaning::ApiKey => "The client",
            _ => "The token",
        }
    }

    /// Parses the parameter `found` of the page that the search redirects to.
    pub fn parse(text: String) -> Result<Self, Detail> {
        let found = Meaning::ALL
            .into_iter()
            .find(|meaning| meaning.name() == text);
        found.ok_or(Detail::Borrowed("must be a meaning of the search box"))
    }
}

/// A record that the text belongs to.
struct Match {
    meaning: Meaning,
    /// The address of its page.
    page: String,
}

/// Returns the address of a record's page, which names the meaning in a notice.
fn record_page(meaning: Meaning, path: &str, fields: &[(&str, &str)]) -> String {
    let mut query = Serializer::new(String::new());
    query
        .extend_pairs(fields)
        .append_pair("found", meaning.name());
    format!("{path}?{}", query.finish())
}

fn token_page(meaning: Meaning, id: impl Display) -> String {
    record_page(meaning, &format!("/console/tokens/{id}"), &[])
}

/// Returns the address of the audit log with a filter, which shows the meaning.
fn events_page(filter: &str, text: &str) -> String {
    let mut query = Serializer::new(String::new());
    format!(
        "/console/audit?{}",
        query.append_pair(filter, text).finish()
    )
}

#[derive(Template)]
#[template(path = "console/search.html")]
struct SearchPage {
    form_token: String,
    /// The records to choose from.
    matches: Vec<Match>,
    /// The meanings that the text was searched as.
    meanings: Vec<Meaning>,
}

/// `GET /console/search`: shows the search box.
pub async fn show_search(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    reject_parameters(request.query_string())?;
    let view = SearchPage {
        form_token: form::token(authorized.client(), LOOK_UP),
        matches: vec![],
        meanings: vec![],
    };
    page(StatusCode::OK, &view)
}

/// `POST /console/search`: redirects to the record that the text belongs to. Lists the records if there are several.
///
/// The text is sent in the body, because it may be a token string, which must appear in no address, log or browser
/// history. A text that is not on record is not shown again. The token string of a record and that of a verification
/// link are not sent to Postgres either, whose log may have the values of statements.
///
/// The lookup of a token string is recorded as `token.looked_up`. The search for the other ids is not recorded: it shows
/// no data of a record, and the page that it leads to records its own read.
pub async fn look_up(
    authorized: Authorized<AuditRead>,
    request: HttpRequest,
    body: Body,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    form::check_site(&request, &state, &authorized)?;
    let ([text, form_token], mut errors) = body.read_form(["text", "formToken"]).await?;
    form::check_token(&request, &state, &authorized, LOOK_UP, form_token)?;
    let text = Zeroizing::new(text.unwrap_or_default());
    let (meaning, token_string) = read_token_string(text.trim(), &state.verification_base_url);
    let token_string = errors.check_parameter("text", fields::token_string(token_string));
    let token_string = errors.into_result(token_string)?;
    let (fingerprint, token) = state.vendor.look_up(&token_string).await?;
    let (mut meanings, mut matches) = (vec![], vec![]);
    if token.is_none() && meaning == Meaning::TokenString {
        let may_manage = authorized.holds_scope(Scope::ClientsManage);
        (meanings, matches) = find_by_id(&state, text.trim(), may_manage).await?;
    }
    let form_token = form::token(authorized.client(), LOOK_UP);
    if matches.is_empty() {
        let caller = authorized.into_caller();
        record_lookup(&state, fingerprint, token.as_ref(), caller).await?;
        let page = token.map(|token| token_page(meaning, token.id));
        matches.extend(page.map(|page| Match { meaning, page }));
        meanings.push(meaning);
    }
    if let [found] = &mut matches[..] {
        return Ok(see_other(std::mem::take(&mut found.page)));
    }
    let view = SearchPage {
        form_token,
        matches,
        meanings,
    };
    if !view.matches.is_empty() {
        return page(StatusCode::OK, &view);
    }
    let mut response = page(StatusCode::NOT_FOUND, &view)?;
    response.extensions_mut().insert(LoggedOutcome("not-found"));
    Ok(response)
}

/// Returns the token string of a verification link. Any other text may be a token string itself.
fn read_token_string(text: &str, verification_base_url: &str) -> (Meaning, String) {
    match text.strip_prefix(verification_base_url) {
        Some(encoded) => {
            let decoded = percent_decode_str(encoded).decode_utf8_lossy();
            (Meaning::VerificationLink, decoded.into_owned())
        }
        None => (Meaning::TokenString, text.to_owned()),
    }
}

/// Returns the meanings that the form of the text allows, and the records that it belongs to.
async fn find_by_id(
    state: &ApiState,
    text: &str,
    may_manage_clients: bool,
) -> Result<(Vec<Meaning>, Vec<Match>), Problem> {
    let ids = SearchIds {
        user_id: rules::user_id(text.to_owned()).ok(),
        token_id: uuid(text).ok(),
        request_id: rules::printable(text.to_owned()).ok(),
        fingerprint: text.parse().ok(),
        api_key: rules::api_key(text.to_owned()).ok(),
    };
    let searched = ids.clone();
    let find = async move |mut connection: Checkout| {
        let found = find_recorded_ids(&mut connection, &searched).await?;
        // An id belongs to a token or to an event.
        let event_id = searched.token_id.filter(|_| !found.has_token);
        let is_event = match event_id {
            Some(id) => find_event(&mut connection, id, |_| ()).await?.is_some(),
            None => false,
        };
        Ok((found, is_event))
    };
    let (found, is_event) = state.db.run(Lane::Reads, find).await?;
    // The digits of a UUID and of a fingerprint may be upper case.
    let digits = text.to_ascii_lowercase();
    let pages = [
        record_page(Meaning::UserId, "/console/users", &[("userId", text)]),
        token_page(Meaning::TokenId, &digits),
        record_page(Meaning::EventId, &format!("/console/events/{digits}"), &[]),
        events_page("requestId", text),
        match found.token_of_fingerprint {
            Some(id) => token_page(Meaning::Fingerprint, id),
            None => events_page("fingerprint", &digits),
        },
        match may_manage_clients {
            true => record_page(Meaning::ApiKey, &format!("/console/clients/{text}"), &[]),
            false => events_page("client", text),
        },
    ];
    let results = [
        (Meaning::UserId, ids.user_id.is_some(), found.has_user),
        (Meaning::TokenId, ids.token_id.is_some(), found.has_token),
        (Meaning::EventId, ids.token_id.is_some(), is_event),
        (
            Meaning::RequestId,
            ids.request_id.is_some(),
            found.has_request,
        ),
        (
            Meaning::Fingerprint,
            ids.fingerprint.is_some(),
            found.has_fingerprint,
        ),
        (Meaning::ApiKey, ids.api_key.is_some(), found.has_client),
    ];
    let (mut meanings, mut matches) = (vec![], vec![]);
    for ((meaning, is_possible, is_on_record), page) in results.into_iter().zip(pages) {
        meanings.extend(is_possible.then_some(meaning));
        matches.extend(is_on_record.then_some(Match { meaning, page }));
    }
    Ok((meanings, matches))
}
