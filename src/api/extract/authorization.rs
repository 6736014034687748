//! Who calls, and whether they may: a permission is an argument of the handler.

use std::marker::PhantomData;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpRequest, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::LocalBoxFuture;
use secrecy::{ExposeSecret, SecretString};

use crate::api::middleware::header::single_header;
use crate::api::middleware::request_context::RequestContext;
use crate::api::middleware::request_context::Route;
use crate::api::middleware::source_address::source_ip;
use crate::api::problem::{Problem, ProblemKind};
use crate::api::state::ApiState;
use crate::jobs::denials::DenialKey;
use crate::model::{Caller, Client, Scope};

/// A scope as a type, for [`Authorized`].
pub trait RequiredScope: 'static {
    /// The scope.
    const SCOPE: Scope;
    /// A second one, where it takes two.
    const ALSO: Option<Scope> = None;
}

macro_rules! required_scopes {
    ($($name:ident),+) => {$(
        #[doc = concat!("[`Scope::", stringify!($name), "`].")]
        pub enum $name {}

        impl RequiredScope for $name {
            const SCOPE: Scope = Scope::$name;
        }
    )+};
}

required_scopes!(
    TokensIssue,
    TokensRead,
    TokensInvalidate,
    AuditRead,
    Maintenance
);

/// To end tokens from the pages of the console.
pub enum ConsoleInvalidate {}

impl RequiredScope for ConsoleInvalidate {
    const SCOPE: Scope = Scope::AuditRead;
    const ALSO: Option<Scope> = Some(Scope::TokensInvalidate);
}

/// Proof that the caller is a client of ours, holds the scope `S` and is within its rate.
///
/// Extracting it answers 401, 403 and 429, in this order, before a handler begins.
pub struct Authorized<S> {
    caller: Caller,
    client: Arc<Client>,
    scope: PhantomData<S>,
}

impl<S> Authorized<S> {
    /// Whether the client holds a further scope.
    pub fn also(&self, scope: Scope) -> bool {
        self.client.scopes.contains(&scope)
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The caller as the audit names them.
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
            let state: &web::Data<ApiState> = request.app_data().expect("the state is registered");
            let authenticated = authenticate(state, &request).await;
            let (caller, client) = authenticated.inspect_err(|problem| {
                if problem.kind == ProblemKind::Unauthenticated {
                    note_denial(state, &request, None);
                }
            })?;
            let mut needed = [Some(S::SCOPE), S::ALSO].into_iter().flatten();
            if let Some(lacking) = needed.find(|scope| !client.scopes.contains(scope)) {
                note_denial(state, &request, Some(caller.client));
                let detail = format!("the client lacks the scope {lacking}");
                return Err(Problem::new(ProblemKind::Forbidden, detail));
            }
            state.rate_limit.check(&caller.client)?;
            Ok(Authorized {
                caller,
                client,
                scope: PhantomData,
            })
        })
    }
}

/// Has a refusal counted, for the trail: by client, or by address where nobody can be told.
pub fn note_denial(state: &ApiState, request: &HttpRequest, client: Option<String>) {
    let source_ip = match client {
        Some(_) => None,
        None => source_ip(request, &state.trusted_proxies),
    };
    let route = request.app_data::<Route>();
    state.denials.note(DenialKey {
        client,
        source_ip: source_ip.map(|address| address.to_string()),
        route: route.map(|Route(name)| *name),
    });
}

async fn authenticate(
    state: &ApiState,
    request: &HttpRequest,
) -> Result<(Caller, Arc<Client>), Problem> {
    let credentials = credentials(request.headers());
    // No key is empty: a header that cannot be read costs what an unknown key costs.
    let (api_key, secret) = credentials
        .as_ref()
        .and_then(|pair| pair.expose_secret().split_once(':'))
        .unwrap_or_default();
    let found = state
        .authenticator
        .authenticate(api_key, secret.as_bytes())
        .await?;
    let client = found.ok_or_else(|| {
        let detail = "HTTP Basic with an API key and its secret is required";
        Problem::new(ProblemKind::Unauthenticated, detail)
    })?;
    let context = RequestContext::of(request);
    context.identify(request, &client.api_key);
    let caller = Caller {
        client: client.api_key.clone(),
        request_id: context.request_id().to_owned(),
        source_ip: source_ip(request, &state.trusted_proxies).map(|address| address.to_string()),
    };
    Ok((caller, client))
}

/// `key:secret` of an `Authorization` header, RFC 7617; `None` unless there is one header, with the
/// scheme Basic, in canonical base64 of UTF-8, and a key `[A-Za-z0-9_-]+`.
fn credentials(headers: &HeaderMap) -> Option<SecretString> {
    let line = single_header(headers, header::AUTHORIZATION)?;
    let (scheme, encoded) = line.to_str().ok()?.split_once(' ')?;
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
    fn credentials_are_one_basic_header_with_a_well_formed_key() {
        let read = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(line).unwrap());
            }
            Some(credentials(&headers)?.expose_secret().to_owned())
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
