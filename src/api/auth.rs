//! Who calls, and whether they may: a permission is an argument of the handler.

use std::marker::PhantomData;
use std::num::NonZeroU32;

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::LocalBoxFuture;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use secrecy::{ExposeSecret, SecretSlice};

use super::problem::Problem;
use super::problem_kind::ProblemKind;
use super::request_context::RequestContext;
use super::source_ip::source_ip;
use super::{ApiState, Route};
use crate::model::{Caller, Scope, ScopeSet};
use crate::vending::denials::Denied;

/// A scope as a type, for [`Permit`].
pub trait RequiredScope: 'static {
    /// The scope.
    const SCOPE: Scope;
}

/// [`Scope::TokensIssue`].
pub enum TokensIssue {}

impl RequiredScope for TokensIssue {
    const SCOPE: Scope = Scope::TokensIssue;
}

/// [`Scope::TokensRead`].
pub enum TokensRead {}

impl RequiredScope for TokensRead {
    const SCOPE: Scope = Scope::TokensRead;
}

/// [`Scope::TokensInvalidate`].
pub enum TokensInvalidate {}

impl RequiredScope for TokensInvalidate {
    const SCOPE: Scope = Scope::TokensInvalidate;
}

/// [`Scope::Maintenance`].
pub enum Maintenance {}

impl RequiredScope for Maintenance {
    const SCOPE: Scope = Scope::Maintenance;
}

/// [`Scope::AuditRead`].
pub enum AuditRead {}

impl RequiredScope for AuditRead {
    const SCOPE: Scope = Scope::AuditRead;
}

/// Proof that the caller is a client of ours, holds the scope `S` and is within its rate.
///
/// Extracting it answers 401, 403 and 429, in this order, before a handler begins.
pub struct Permit<S> {
    caller: Caller,
    scopes: ScopeSet,
    scope: PhantomData<S>,
}

impl<S> Permit<S> {
    /// Whether the client holds a further scope.
    pub fn also(&self, scope: Scope) -> bool {
        self.scopes.contains(scope)
    }

    /// The caller as the audit names them.
    pub fn into_caller(self) -> Caller {
        self.caller
    }
}

impl<S: RequiredScope> FromRequest for Permit<S> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let state: &web::Data<ApiState> = request.app_data().expect("the state is registered");
            let authenticated = authenticate(state, &request).await;
            let (caller, scopes) = authenticated.inspect_err(|problem| {
                if problem.kind() == ProblemKind::Unauthenticated {
                    note_denial(state, &request, None);
                }
            })?;
            if !scopes.contains(S::SCOPE) {
                note_denial(state, &request, Some(caller.client));
                let detail = format!("the client lacks the scope {}", S::SCOPE);
                return Err(Problem::new(ProblemKind::Forbidden, detail));
            }
            state.rate_limit.check(&caller.client)?;
            Ok(Permit {
                caller,
                scopes,
                scope: PhantomData,
            })
        })
    }
}

/// Has a refusal counted, for the trail: by client, or by address where nobody can be told.
fn note_denial(state: &ApiState, request: &HttpRequest, client: Option<String>) {
    let source_ip = match client {
        Some(_) => None,
        None => source_ip(request, &state.trusted_proxies),
    };
    let route = request.app_data::<Route>();
    state.denials.note(Denied {
        client,
        source_ip: source_ip.map(|address| address.to_string()),
        route: route.map(|Route(name)| *name),
    });
}

async fn authenticate(
    state: &ApiState,
    request: &HttpRequest,
) -> Result<(Caller, ScopeSet), Problem> {
    let unauthenticated = || {
        Problem::new(
            ProblemKind::Unauthenticated,
            "HTTP Basic with an API key and its secret is required",
        )
    };
    let Some(credentials) = Credentials::from_headers(request.headers()) else {
        // No key is empty: a header that cannot be read costs what an unknown key costs.
        let _ = state.vendor.authenticate("", b"").await;
        return Err(unauthenticated());
    };
    let client = state
        .vendor
        .authenticate(credentials.api_key(), credentials.secret())
        .await?
        .ok_or_else(unauthenticated)?;
    let context = RequestContext::of(request);
    context.identify(request, &client.api_key);
    let caller = Caller {
        client: client.api_key.clone(),
        request_id: context.request_id().to_owned(),
        source_ip: source_ip(request, &state.trusted_proxies).map(|address| address.to_string()),
    };
    Ok((caller, client.scopes))
}

/// The API key and secret of an `Authorization` header, RFC 7617.
struct Credentials {
    user_pass: SecretSlice<u8>,
    colon: usize,
}

impl Credentials {
    /// `None` unless there is one header, with the scheme Basic, in canonical base64, of a key
    /// `[A-Za-z0-9_-]+` and a secret in UTF-8.
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::AUTHORIZATION);
        let (line, None) = (lines.next()?, lines.next()) else {
            return None;
        };
        let (scheme, encoded) = line.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let encoded = encoded.trim_matches(' ');
        let user_pass = SecretSlice::from(STANDARD.decode(encoded).ok()?);
        let bytes = user_pass.expose_secret();
        let colon = bytes.iter().position(|byte| *byte == b':')?;
        let (key, secret) = (&bytes[..colon], &bytes[colon + 1..]);
        let is_key = !key.is_empty()
            && key
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        (is_key && std::str::from_utf8(secret).is_ok()).then_some(Credentials { user_pass, colon })
    }

    fn api_key(&self) -> &str {
        std::str::from_utf8(&self.user_pass.expose_secret()[..self.colon]).expect("ASCII")
    }

    fn secret(&self) -> &[u8] {
        &self.user_pass.expose_secret()[self.colon + 1..]
    }
}

/// Each client's own limit of requests a second, in this replica.
#[derive(Debug)]
pub struct RateLimit(Option<DefaultKeyedRateLimiter<String>>);

impl RateLimit {
    /// So many requests a second for each client, as many at once; 0 = no limit.
    pub fn per_second(requests: u32) -> Self {
        RateLimit(NonZeroU32::new(requests).map(|n| RateLimiter::keyed(Quota::per_second(n))))
    }

    /// Counts a request. Only keys of clients come here: what is remembered is bounded.
    fn check(&self, client: &String) -> Result<(), Problem> {
        let Some(limiter) = &self.0 else {
            return Ok(());
        };
        limiter.check_key(client).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            Problem::rate_limited(wait.as_secs_f64().ceil() as u32)
        })
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn read(lines: &[&str]) -> Option<(String, Vec<u8>)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_str(line).unwrap();
            headers.append(header::AUTHORIZATION, value);
        }
        let credentials = Credentials::from_headers(&headers)?;
        let secret = credentials.secret().to_vec();
        Some((credentials.api_key().to_owned(), secret))
    }

    #[test]
    fn credentials_are_split_at_the_first_colon() {
        for (user_pass, key, secret) in [
            ("dev:dev", "dev", "dev"),
            ("a_B-9:x:y", "a_B-9", "x:y"),
            ("k:", "k", ""),
            ("k:ž", "k", "ž"),
        ] {
            let encoded = STANDARD.encode(user_pass);
            for scheme in ["Basic ", "bAsIc ", "Basic   "] {
                let expected = Some((key.to_owned(), secret.as_bytes().to_vec()));
                assert_eq!(read(&[&format!("{scheme}{encoded}")]), expected);
            }
        }
    }

    #[test]
    fn what_is_not_basic_is_nobody() {
        let good = format!("Basic {}", STANDARD.encode("dev:dev"));
        assert!(read(&[]).is_none());
        assert!(read(&[&good, &good]).is_none());
        for bad in [
            "",
            "Basic",
            "Basic ",
            "Basic !!!!",
            "Bearer ZGV2OmRldg==",
            "Basic ZGV2OmRldg",
        ] {
            assert!(read(&[bad]).is_none(), "{bad}");
        }
        for user_pass in [&b"dev"[..], b":dev", b"d v:dev", b"d\0v:dev", b"dev:\xff"] {
            let line = format!("Basic {}", STANDARD.encode(user_pass));
            assert!(read(&[&line]).is_none(), "{user_pass:?}");
        }
    }

    #[test]
    fn each_client_has_a_limit_of_its_own() {
        let limit = RateLimit::per_second(2);
        let (a, b) = ("a".to_owned(), "b".to_owned());
        assert!(limit.check(&a).is_ok() && limit.check(&a).is_ok());
        let problem = limit.check(&a).expect_err("over the limit");
        assert_eq!(problem.kind(), ProblemKind::RateLimited);
        assert!(limit.check(&b).is_ok());
        let unlimited = RateLimit::per_second(0);
        assert!((0..1000).all(|_| unlimited.check(&a).is_ok()));
    }
}
