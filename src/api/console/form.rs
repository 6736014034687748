//! Protection of the console's POST forms against cross-site request forgery.
//!
//! Browsers add Basic credentials to every request to this origin, whichever site caused it. Two checks reject forms
//! that another site submits:
//! - [`check_site`] reads `Sec-Fetch-Site`, which browsers send over HTTPS and to loopback addresses. Without that
//!   header it reads `Origin`. A foreign `Origin` proves a foreign form. `null` proves nothing, because the console's
//!   own pages send it too (`Referrer-Policy: no-referrer`).
//! - [`check_token`] compares a form token that another site can neither read nor compute. It is valid for one client
//!   and one action.

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderName};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::api::extract::authorization::{Authorized, count_denial};
use crate::api::middleware::header::single_header;
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::model::Client;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns the form token for an action, in hex.
///
/// The HMAC key is the stored hash of the client's secret. Every replica can therefore check the token, and a new
/// secret invalidates it.
pub fn token(client: &Client, action: &str) -> String {
    hex::encode(mac(client, action).finalize().into_bytes())
}

fn mac(client: &Client, action: &str) -> Hmac<Sha256> {
    let mut mac =
        Hmac::new_from_slice(&client.secret_sha256).expect("HMAC accepts keys of any length");
    mac.update(b"token-vendor console form 1\0");
    mac.update(action.as_bytes());
    mac
}

/// Rejects a form that another site submitted, before its body is read.
pub fn check_site<S>(
    request: &HttpRequest,
    state: &ApiState,
    authorized: &Authorized<S>,
) -> Result<(), Problem> {
    let value =
        |name| single_header(request.headers(), name).map(|line| line.to_str().unwrap_or_default());
    let is_same_origin = match (value(SEC_FETCH_SITE), value(header::ORIGIN)) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            origin == "null" || host.is_some() && host == value(header::HOST)
        }
        (None, None) => true,
    };
    if is_same_origin {
        Ok(())
    } else {
        Err(reject(request, state, authorized))
    }
}

/// Rejects a form whose token is missing or wrong.
pub fn check_token<S>(
    request: &HttpRequest,
    state: &ApiState,
    authorized: &Authorized<S>,
    action: &str,
    form_token: Option<String>,
) -> Result<(), Problem> {
    let expected = token(authorized.client(), action);
    let submitted = form_token.unwrap_or_default();
    let matches = subtle::ConstantTimeEq::ct_eq(expected.as_bytes(), submitted.as_bytes());
    if matches.into() {
        Ok(())
    } else {
        Err(reject(request, state, authorized))
    }
}

/// Counts the rejected form as `access.denied` and returns its problem.
fn reject<S>(request: &HttpRequest, state: &ApiState, authorized: &Authorized<S>) -> Problem {
    count_denial(state, request, authorized.client().api_key.clone());
    let detail = "the form was not sent from a page of this console; reload the page and submit the form again";
    Problem::new(ProblemKind::Forbidden, detail)
}
