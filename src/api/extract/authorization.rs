//! Authentication and authorization. A handler declares its scope with an [`Authorized`] argument.

use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::LocalBoxFuture;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

use crate::api::middleware::header::single_header;
use crate::api::middleware::request_context::{RequestContext, Route};
use crate::api::middleware::source_address::source_ip;
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::auth::Authentication;
use crate::jobs::denials::DenialKey;
use crate::model::{Caller, Client, Scope};

/// The required scopes as a type, for [`Authorized`].
pub trait RequiredScope: 'static {
    /// The scopes that the client must hold.
    const SCOPES: &[Scope];
}

macro_rules! required_scopes {
    ($($name:ident),+) => {$(
        #[doc = concat!("[`Scope::", stringify!($name), "`].")]
        pub enum $name {}

        impl RequiredScope for $name {
            const SCOPES: &[Scope] = &[Scope::$name];
        }
    )+};
}

required_scopes!(
    TokensIssue,
    TokensRead,
    TokensInvalidate,
    AuditRead,
    Maintenance,
    ClientsManage
);

/// The scopes to invalidate tokens in the console.
pub enum ConsoleInvalidate {}

impl RequiredScope for ConsoleInvalidate {
    const SCOPES: &[Scope] = &[Scope::AuditRead, Scope::TokensInvalidate];
}

/// The scopes to manage clients in the console.
pub enum ConsoleClients {}

impl RequiredScope for ConsoleClients {
    const SCOPES: &[Scope] = &[Scope::AuditRead, Scope::ClientsManage];
}

/// Proof that the caller is a registered client, calls from an allowed address, holds the scope `S` and is within its
/// rate limit.
///
/// Extracting it returns 401, 403 or 429, in this order, before the handler starts.
pub struct Authorized<S> {
    caller: Caller,
    client: Arc<Client>,
    waited: Duration,
    scope: PhantomData<S>,
}

impl<S> Authorized<S> {
    /// Returns the duration of the authentication. It counts towards the time limit of the request.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Returns true if the client holds this further scope.
    pub fn holds_scope(&self, scope: Scope) -> bool {
        self.client.scopes.contains(&scope)
    }

    /// Returns the client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the caller as the audit log names it.
    pub fn into_caller(self) -> Caller {
        self.caller
    }
}

impl<S: RequiredScope> FromRequest for Authorized<S> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let started = Instant::now();
            let state: &web::Data<ApiState> = request.app_data().expect("the state is registered");
            let (caller, client) = authenticate(state, &request).await?;
            let address = source_ip(&request, &state.trusted_proxies);
            if !is_allowed_from(&client, address) {
                note_forbidden(state, &request, caller.client, address);
                let detail =
                    "this client may not call from this address; use an address that it allows";
                return Err(Problem::new(ProblemKind::Forbidden, detail));
            }
            let missing = S::SCOPES
                .iter()
                .find(|scope| !client.scopes.contains(scope));
            if let Some(missing) = missing {
                count_denial(state, &request, caller.client);
                let detail = format!("use another client: this one lacks the scope {missing}");
                return Err(Problem::new(ProblemKind::Forbidden, detail));
            }
            state.rate_limit.check(&client)?;
            Ok(Authorized {
                caller,
                client,
                waited: started.elapsed(),
                scope: PhantomData,
            })
        })
    }
}

/// Returns true unless the client has a list of networks that does not contain the address.
fn is_allowed_from(client: &Client, address: Option<IpAddr>) -> bool {
    let contain = |networks: &Vec<IpNet>| {
        address.is_some_and(|address| networks.iter().any(|network| network.contains(&address)))
    };
    client.limits.allow_from.as_ref().is_none_or(contain)
}

/// Counts a request of a client that was denied with 403, for the audit log.
pub fn count_denial(state: &ApiState, request: &HttpRequest, client: String) {
    note_forbidden(state, request, client, None);
}

fn note_forbidden(
    state: &ApiState,
    request: &HttpRequest,
    client: String,
    source_ip: Option<IpAddr>,
) {
    state.denials.note(DenialKey {
        client: Some(client),
        source_ip: source_ip.map(|address| address.to_string()),
        route: route(request),
        status: Some(StatusCode::FORBIDDEN.as_u16()),
        ..DenialKey::default()
    });
}

fn route(request: &HttpRequest) -> Option<&'static str> {
    request.app_data::<Route>().map(|Route(name)| *name)
}

/// Returns the problem of a request without valid credentials, and counts it for the audit log by its source address.
///
/// `attempt` is `None` for a request without credentials.
fn refuse(state: &ApiState, request: &HttpRequest, attempt: Option<Attempt>) -> Problem {
    let source = source_ip(request, &state.trusted_proxies);
    let wait = match (&attempt, source) {
        (Some(_), Some(source)) => state.failed_attempts.note(source),
        _ => None,
    };
    let problem = match (&attempt, wait) {
        (_, Some(wait)) => Problem::rate_limited(TOO_MANY, wait),
        (attempt, None) => Problem::unauthenticated(attempt.is_none(), state.bearer.is_some()),
    };
    state.denials.note(DenialKey {
        source_ip: source.map(|address| address.to_string()),
        attempted_key: attempt.and_then(|attempt| attempt.known_key),
        route: route(request),
        status: Some(problem.kind.status().as_u16()),
        ..DenialKey::default()
    });
    problem
}

/// Wrong credentials.
struct Attempt {
    /// The API key, if a client has it.
    known_key: Option<String>,
}

const TOO_MANY: &str = "too many wrong credentials came from this address; valid ones still work. \
     Try again after the seconds in `Retry-After`";

async fn authenticate(
    state: &ApiState,
    request: &HttpRequest,
) -> Result<(Caller, Arc<Client>), Problem> {
    if !request.headers().contains_key(header::AUTHORIZATION) {
        return Err(refuse(state, request, None));
    }
    let bearer = state.bearer.as_ref();
    let authenticated = match bearer.zip(read_bearer_token(request.headers())) {
        Some((bearer, token)) => bearer.authenticate(token).await?,
        None => {
            let credentials = read_credentials(request.headers());
            // No API key is empty, so an invalid header takes as long to reject as an unknown key.
            let (api_key, secret) = credentials
                .as_ref()
                .and_then(|pair| pair.expose_secret().split_once(':'))
                .unwrap_or_default();
            let authenticator = &state.authenticator;
            authenticator
                .authenticate(api_key, secret.as_bytes())
                .await?
        }
    };
    let client = match authenticated {
        Authentication::Client(client) => client,
        Authentication::Refused { known_key } => {
            return Err(refuse(state, request, Some(Attempt { known_key })));
        }
    };
    let requests = &state.metrics.client_requests_total;
    requests.with_label_values(&[&client.api_key]).inc();
    let context = RequestContext::of(request);
    context.record_client(request, &client.api_key);
    let caller = Caller {
        client: client.api_key.clone(),
        request_id: context.request_id().to_owned(),
        source_ip: source_ip(request, &state.trusted_proxies).map(|address| address.to_string()),
    };
    Ok((caller, client))
}

/// Returns the token from the only `Authorization` header, if its scheme is Bearer (RFC 6750).
fn read_bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = single_header(headers, header::AUTHORIZATION)?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

/// Returns `key:secret` from the `Authorization` header (RFC 7617).
///
/// Returns `None` unless there is exactly one such header, with the scheme Basic, canonical base64 of
/// UTF-8, and a key that matches `[A-Za-z0-9_-]+`.
fn read_credentials(headers: &HeaderMap) -> Option<SecretString> {
    let value = single_header(headers, header::AUTHORIZATION)?;
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    let pair = STANDARD.decode(encoded.trim_matches(' ')).ok()?;
    let pair = SecretString::from(String::from_utf8(pair).ok()?);
    let (key, _) = pair.expose_secret().split_once(':')?;
    let is_key_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let is_key = !key.is_empty() && key.bytes().all(is_key_byte);
    (is_key && scheme.eq_ignore_ascii_case("basic")).then_some(pair)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn credentials_require_one_basic_header_with_a_well_formed_key() {
        let read = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(line).unwrap());
            }
            Some(read_credentials(&headers)?.expose_secret().to_owned())
        };
        for pair in ["dev:dev", "a_B-9:x:y", "k:", "k:ž"] {
            for scheme in ["Basic ", "bAsIc ", "Basic   "] {
                let line = scheme.to_owned() + &STANDARD.encode(pair);
                assert_eq!(read(&[&line]).as_deref(), Some(pair));
            }
        }
        let good = "Basic ZGV2OmRldg==";
        let scheme = "Bearer ZGV2OmRldg==";
        assert!(read(&[]).is_none() && read(&[good, good]).is_none());
        for bad in [
            "",
            "Basic",
            "Basic ",
            "Basic !!!!",
            scheme,
            "Basic ZGV2OmRldg",
        ] {
            assert_eq!(read(&[bad]), None, "{bad}");
        }
        for pair in [&b"dev"[..], b":dev", b"d v:dev", b"d\0v:dev", b"dev:\xff"] {
            let line = format!("Basic {}", STANDARD.encode(pair));
            assert_eq!(read(&[&line]), None, "{pair:?}");
        }
    }
}
