//! The HTTP client of the provider's `POST /bank/tokens/`. It validates every answer and bounds its size and duration.

mod answer;
mod circuit;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;
use percent_encoding::percent_decode_str;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderValue};
use reqwest::{Client, ClientBuilder, Proxy, Response, StatusCode, Url, redirect, retry};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

pub use answer::Minted;
pub use circuit::Circuit;

use crate::model::{Access, Combination, Failure, FailureKind, UpstreamAnswer};

/// The maximum size of an answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// The time limit of a connection attempt. After it, the call is retried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The time to keep an idle connection. Servers commonly keep it longer, so a request seldom uses a closed one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The address of the provider and the credentials for it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// The base address.
    pub base_url: Url,
    /// The username of HTTP Basic.
    pub api_key: SecretString,
    /// The password of HTTP Basic.
    pub api_secret: SecretString,
    /// The URL of the HTTP proxy for all calls. The system's proxy settings are never used.
    pub proxy: Option<SecretString>,
    /// The maximum number of calls in flight.
    pub max_in_flight: usize,
}

/// The client of the provider, one per replica.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    url: Url,
    api_key: SecretString,
    api_secret: SecretString,
    /// The texts that no failure may contain: credentials for the provider and for the proxy.
    secrets: Vec<SecretString>,
    in_flight: std::sync::Arc<Semaphore>,
    /// The circuit breaker, which stops calls to a provider that is down.
    pub circuit: Circuit,
}

/// The failure of one call.
#[derive(Debug)]
pub struct CallError {
    /// The failure for the caller, if the call is not retried.
    pub failure: Failure,
    /// True if a retry is safe, or if the provider advises it.
    pub is_retryable: bool,
    /// True if the provider may have minted a token that the service did not receive.
    pub may_have_minted: bool,
    /// True if there was no answer, so that the outcome is unknown.
    pub is_lost: bool,
}

#[derive(Serialize)]
struct BankTokenRequest<'a> {
    lifetime: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    country: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bank: Option<&'a str>,
    access: Access,
}

impl Upstream {
    /// Builds the client. Opens no connection.
    pub fn new(settings: UpstreamSettings) -> anyhow::Result<Self> {
        let (client, mut secrets) = client_builder(settings.proxy.as_ref())?;
        let client = client
            .http1_only()
            .retry(retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(concat!("token-vendor/", env!("CARGO_PKG_VERSION")))
            .build()?;
        // `Url::join` would drop the last segment of a base address without a final slash.
        let base = settings.base_url.as_str().trim_end_matches('/');
        let (key, secret) = (
            settings.api_key.expose_secret(),
            settings.api_secret.expose_secret(),
        );
        secrets.extend([key.into(), secret.into(), encode_basic(key, secret).into()]);
        Ok(Upstream {
            client,
            url: Url::parse(&format!("{base}/bank/tokens/"))?,
            api_key: settings.api_key,
            api_secret: settings.api_secret,
            secrets,
            in_flight: std::sync::Arc::new(Semaphore::new(settings.max_in_flight)),
            circuit: Circuit::default(),
        })
    }

    /// Waits for a permit for one of the `max_in_flight` calls.
    ///
    /// # Errors
    /// Returns `overloaded` if no permit becomes free within `max_wait`.
    pub async fn reserve(&self, max_wait: Duration) -> Result<OwnedSemaphorePermit, Failure> {
        match timeout(max_wait, self.in_flight.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Failure::overloaded()),
        }
    }

    /// Makes one call, without retries. It takes at most `time_limit`, and reads at most 64 KiB of the answer.
    pub async fn mint(
        &self,
        combination: &Combination,
        lifetime: i32,
        time_limit: Duration,
    ) -> Result<Minted, CallError> {
        let request = BankTokenRequest {
            lifetime,
            country: combination.country.map(|country| country.code()),
            bank: combination.bank.as_deref(),
            access: combination.access,
        };
        let body = serde_json::to_vec(&request).expect("a request has a JSON form");
        let call = async {
            let response = self
                .client
                .post(self.url.clone())
                .basic_auth(
                    self.api_key.expose_secret(),
                    Some(self.api_secret.expose_secret()),
                )
                .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
                .body(body)
                .send()
                .await
                .map_err(CallError::from_transport)?;
            read_answer(response, combination, lifetime).await
        };
        let mut minted = timeout(time_limit, call)
            .await
            .unwrap_or_else(|_| Err(CallError::timed_out()));
        if let Err(CallError { failure, .. }) = &mut minted
            && let Some(answer) = &mut failure.upstream
        {
            answer.redact(|text| self.leaks_credentials(text));
        }
        minted
    }

    /// Returns true if a text of the provider or the proxy contains credentials. Such a text is never passed on.
    fn leaks_credentials(&self, text: &str) -> bool {
        self.secrets
            .iter()
            .any(|secret| text.contains(secret.expose_secret()))
    }
}

/// Encodes credentials for HTTP Basic.
fn encode_basic(username: &str, password: &str) -> String {
    BASE64_STANDARD.encode(format!("{username}:{password}"))
}

/// Creates a client that follows no redirect and uses only the given proxy. Returns the secrets of the proxy too.
///
/// The proxy's address loses its credentials, and their header is marked as sensitive. No log line and no `Debug`
/// output of a library can then contain them.
fn client_builder(
    proxy: Option<&SecretString>,
) -> anyhow::Result<(ClientBuilder, Vec<SecretString>)> {
    // Sets the TLS implementation of the process. Fails if it is set already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy();
    let Some(proxy) = proxy else {
        return Ok((client, Vec::new()));
    };
    let mut url = Url::parse(proxy.expose_secret())?;
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let username = decode(url.username());
    let password = decode(url.password().unwrap_or_default());
    let _ = (url.set_username(""), url.set_password(None));
    let proxy = Proxy::all(url)?;
    if username.is_empty() && password.is_empty() {
        return Ok((client.proxy(proxy), Vec::new()));
    }
    let basic = encode_basic(&username, &password);
    let mut header = HeaderValue::try_from(format!("Basic {basic}"))?;
    header.set_sensitive(true);
    // Some proxies take a key as the username, without a password.
    let secret = if password.is_empty() {
        username
    } else {
        password
    };
    let client = client.proxy(proxy.custom_http_auth(header));
    Ok((client, vec![secret.into(), basic.into()]))
}

async fn read_answer(
    mut response: Response,
    combination: &Combination,
    lifetime: i32,
) -> Result<Minted, CallError> {
    let status = response.status();
    let date = response.headers().get(DATE).cloned();
    // Does not grow, because a reallocation would leave a copy of the token string.
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while let Some(chunk) = response.chunk().await.map_err(|_| CallError::lost())? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(CallError::broken_contract(
                "the provider's answer is over 64 KiB",
                status,
            ));
        }
        body.extend_from_slice(&chunk);
    }
    if status == StatusCode::CREATED {
        #[expect(
            clippy::disallowed_methods,
            reason = "CLOCK_TOLERANCE covers the error of this clock"
        )]
        let received_at = Utc::now();
        answer::read_minted(&body, date.as_ref(), combination, lifetime, received_at)
            .map_err(|reason| CallError::broken_contract(reason, status))
    } else {
        Err(CallError::from_status(status, &body))
    }
}

impl CallError {
    /// Creates an error for a call that minted nothing and must not be retried.
    fn new(kind: FailureKind, detail: &'static str) -> Self {
        CallError {
            failure: Failure::new(kind, detail),
            is_retryable: false,
            may_have_minted: false,
            is_lost: false,
        }
    }

    /// Maps an error status of the provider. The retries follow its documentation.
    fn from_status(status: StatusCode, body: &[u8]) -> Self {
        use FailureKind::{UpstreamFailed, UpstreamRefused, UpstreamRejected, UpstreamUnavailable};
        let code = status.as_u16();
        let (kind, detail) = match code {
            400 | 409 | 422 => (UpstreamRejected, "the provider rejected this request"),
            401..=404 => (UpstreamRefused, "the provider refused this service"),
            // Only a proxy sends it (RFC 9110, section 15.5.8).
            407 => (
                UpstreamUnavailable,
                "the proxy to the provider refused this service",
            ),
            429 => (
                UpstreamUnavailable,
                "the provider limits the rate of this service",
            ),
            503 => (UpstreamFailed, "the provider is out of service"),
            500 | 502 => (UpstreamFailed, "the provider failed"),
            300..=399 => (UpstreamFailed, "the provider answered with a redirect"),
            _ => (
                UpstreamFailed,
                "the provider answered with an unexpected status",
            ),
        };
        let error = CallError::new(kind, detail);
        CallError {
            failure: error.failure.with_upstream(answer::read_error(code, body)),
            is_retryable: matches!(code, 429 | 500 | 502 | 503),
            may_have_minted: !matches!(code, 300..=404 | 407 | 409 | 422 | 429 | 503),
            ..error
        }
    }

    fn from_transport(error: reqwest::Error) -> Self {
        if !error.is_connect() && !error.is_builder() {
            return CallError::lost();
        }
        tracing::warn!(error = %transport_cause(&error), "the provider cannot be reached");
        CallError {
            is_retryable: true,
            ..CallError::new(
                FailureKind::UpstreamUnavailable,
                "the provider cannot be reached",
            )
        }
    }

    fn lost() -> Self {
        let detail =
            "the connection to the provider was lost before its answer; it may have minted a token";
        CallError {
            may_have_minted: true,
            is_lost: true,
            ..CallError::new(FailureKind::UpstreamFailed, detail)
        }
    }

    fn timed_out() -> Self {
        let detail = "the provider did not answer in time; it may have minted a token";
        CallError {
            failure: Failure::new(FailureKind::UpstreamTimeout, detail),
            ..CallError::lost()
        }
    }

    fn broken_contract(reason: &'static str, status: StatusCode) -> Self {
        let answer = UpstreamAnswer {
            status: status.as_u16(),
            identifier: None,
            message: None,
        };
        let error = CallError::new(FailureKind::UpstreamFailed, reason);
        CallError {
            failure: error.failure.with_upstream(answer),
            may_have_minted: true,
            ..error
        }
    }
}

/// Sends a GET without credentials of the provider and returns the status. Accepts any certificate if `trusts_all` is
/// true.
///
/// # Errors
/// Fails if there is no answer, or if the proxy refuses its credentials.
pub async fn probe(
    url: &Url,
    max_wait: Duration,
    proxy: Option<&SecretString>,
    trusts_all: bool,
) -> anyhow::Result<StatusCode> {
    let (client, _) = client_builder(proxy)?;
    let client = client
        .timeout(max_wait)
        .tls_danger_accept_invalid_certs(trusts_all)
        .build()?;
    let reason = match client.get(url.clone()).send().await {
        Ok(response) if response.status() != StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return Ok(response.status());
        }
        Ok(_) => "the proxy requires other credentials".to_owned(),
        Err(error) => transport_cause(&error),
    };
    let route = if proxy.is_some() {
        " through UPSTREAM_PROXY"
    } else {
        ""
    };
    anyhow::bail!("{url} cannot be reached{route}: {reason}")
}

/// Returns the innermost cause, because the text of the outer errors repeats the address.
fn transport_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
