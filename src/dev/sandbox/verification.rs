//! The page behind a verification link, which stands in for the provider's site.
//!
//! The provider documents that `TOKEN_NOT_VALID` means "expired, already used, or does not exist", and no status for it.

use std::sync::Mutex;

use actix_web::http::header::{self, ContentType};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;

use super::RecordedRequest;
use super::service::State;
use super::validation;

/// The path of the page. The query `?token=` names the token string.
pub(super) const PATH: &str = "/verify";

/// Allows nothing but the style in the page, its form and its empty icon. Without the icon, browsers would ask for one.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; \
                      base-uri 'none'";

/// The query of the page.
#[derive(Deserialize)]
pub(super) struct Parameters {
    #[serde(default)]
    token: String,
}

/// A token that the user may still use.
pub(super) struct Grant {
    country: Option<String>,
    bank: Option<String>,
    access: String,
    expires_at: DateTime<Utc>,
}

enum View {
    Open(Grant),
    Finished,
    NotValid { why: &'static str },
}

#[derive(Template)]
#[template(path = "sandbox/verify.html")]
struct Page {
    view: View,
}

/// Shows the request of a token (`GET`), or finishes its verification (`POST`).
pub(super) async fn verify(
    request: HttpRequest,
    query: web::Query<Parameters>,
    state: web::Data<Mutex<State>>,
) -> HttpResponse {
    #[expect(
        clippy::disallowed_methods,
        reason = "the sandbox acts as the provider, which has its own clock"
    )]
    let now = Utc::now();
    let mut state = state.lock().expect("the lock is not poisoned");
    let found = state.find_minted(&query.token).and_then(|minted| {
        let grant = read_grant(minted, now)?;
        minted.is_used = request.method() == Method::POST;
        Ok(match minted.is_used {
            true => View::Finished,
            false => View::Open(grant),
        })
    });
    respond(&request, found)
}

fn respond(request: &HttpRequest, found: Result<View, &'static str>) -> HttpResponse {
    let accept = request.headers().get(header::ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    let is_browser = accept.is_some_and(|accept| accept.contains("text/html"));
    let (status, view) = match found {
        Ok(view) => (StatusCode::OK, view),
        Err(why) if is_browser => (StatusCode::BAD_REQUEST, View::NotValid { why }),
        Err(why) => {
            return HttpResponse::BadRequest().json(json!({
                "identifier": "TOKEN_NOT_VALID",
                "message": why,
                "documentation": "",
                "severity": "NOT_SEVERE",
            }));
        }
    };
    let page = Page { view };
    HttpResponse::build(status)
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .content_type(ContentType::html())
        .body(page.render().expect("the template writes to a string"))
}

impl State {
    fn find_minted(&mut self, token_string: &str) -> Result<&mut RecordedRequest, &'static str> {
        let is_it =
            |request: &&mut RecordedRequest| request.token_string.as_deref() == Some(token_string);
        let found = self.ledger.iter_mut().rev().find(is_it);
        found.ok_or(
            "The sandbox has not minted this token since its start. Invalidate it to get another.",
        )
    }
}

/// Returns what the token permits, or why it is not valid.
fn read_grant(minted: &RecordedRequest, now: DateTime<Utc>) -> Result<Grant, &'static str> {
    if minted.is_used {
        return Err("The token is already used.");
    }
    let expires_at = minted.expires_at.filter(|at| *at > now);
    let expires_at = expires_at.ok_or("The token has expired.")?;
    let request = validation::parse(Some("application/json"), minted.body.as_bytes());
    let request = request.map_err(|_| "The token has no valid request.")?;
    let granted = request.access.names();
    Ok(Grant {
        country: request.country.map(|country| country.code().to_owned()),
        bank: request.bank,
        access: match granted.is_empty() {
            true => "none".into(),
            false => granted.join(", "),
        },
        expires_at,
    })
}
