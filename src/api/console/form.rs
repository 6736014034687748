//! Forms that do something: whether a page of ours sent them.
//!
//! Browsers add Basic credentials to whatever any site has them send. `Sec-Fetch-Site` tells them apart
//! where there is one (over HTTPS, or on loopback); `Origin` can but convict, since it is `null` from pages
//! without a referrer, as ours are. So each form has a token besides: another site can neither read nor
//! compute it, and it is good for this client and this very action alone.

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

/// The token of the form for that action, in hex. The key is what the database has of the client's secret: every
/// replica can tell, and a changed secret ends all of them.
pub fn token(client: &Client, action: &str) -> String {
    hex::encode(mac(client, action).finalize().into_bytes())
}

fn mac(client: &Client, action: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(&client.secret_sha256).expect("any length will do");
    mac.update(b"token-vendor console form 1\0");
    mac.update(action.as_bytes());
    mac
}

/// Refuses what another site sent, before a byte of it is read.
pub fn check_site<S>(
    request: &HttpRequest,
    state: &ApiState,
    authorized: &Authorized<S>,
) -> Result<(), Problem> {
    let text =
        |name| single_header(request.headers(), name).map(|line| line.to_str().unwrap_or_default());
    let is_ours = match (text(SEC_FETCH_SITE), text(header::ORIGIN)) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            origin == "null" || host.is_some() && host == text(header::HOST)
        }
        (None, None) => true,
    };
    if is_ours {
        Ok(())
    } else {
        Err(refuse(request, state, authorized))
    }
}

/// Refuses a form without its token.
pub fn check_token<S>(
    request: &HttpRequest,
    state: &ApiState,
    authorized: &Authorized<S>,
    action: &str,
    token: Option<String>,
) -> Result<(), Problem> {
    let expected = self::token(authorized.client(), action);
    let secret_matches =
        subtle::ConstantTimeEq::ct_eq(expected.as_bytes(), token.unwrap_or_default().as_bytes());
    if secret_matches.into() {
        Ok(())
    } else {
        Err(refuse(request, state, authorized))
    }
}

fn refuse<S>(request: &HttpRequest, state: &ApiState, authorized: &Authorized<S>) -> Problem {
    count_denial(state, request, Some(authorized.client().api_key.clone()));
    let detail = "this form was not sent from a page of this console; open the page again";
    Problem::new(ProblemKind::Forbidden, detail)
}
