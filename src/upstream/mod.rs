//! The HTTP client of the provider's `POST /bank/tokens/`. It validates every answer and bounds its size and duration.

mod answer;
mod circuit;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use chrono::Utc;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url, redirect, retry};
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
        // Sets the TLS implementation of the process. Fails if it is set already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(concat!("token-vendor/", env!("CARGO_PKG_VERSION")))
            .build()?;
        // `Url::join` would drop the last segment of a base address without a final slash.
        let base = settings.base_url.as_str().trim_end_matches('/');
        Ok(Upstream {
            client,
            url: Url::parse(&format!("{base}/bank/tokens/"))?,
            api_key: settings.api_key,
            api_secret: settings.api_secret,
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

    /// Returns true if a text of the provider contains the credentials. Such a text is never passed on.
    fn leaks_credentials(&self, text: &str) -> bool {
        let (key, secret) = (
            self.api_key.expose_secret(),
            self.api_secret.expose_secret(),
        );
        let basic = BASE64_STANDARD.encode(format!("{key}:{secret}"));
        [key, secret, &basic]
            .iter()
            .any(|credential| text.contains(credential))
    }
}

async fn read_answer(
    mut response: Response,
    combination: &Combination,
    lifetime: i32,
) -> Result<Minted, CallError> {
    let status = response.status();
    let date = response.headers().get(DATE).cloned();
    let mut body = BytesMut::new();
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
            may_have_minted: !matches!(code, 300..=404 | 409 | 422 | 429 | 503),
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

/// Sends a GET without credentials and returns the status. Accepts any certificate if `trusts_all` is true.
pub async fn probe(url: &Url, max_wait: Duration, trusts_all: bool) -> anyhow::Result<StatusCode> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .timeout(max_wait)
        .tls_danger_accept_invalid_certs(trusts_all)
        .build()?;
    match client.get(url.clone()).send().await {
        Ok(response) => Ok(response.status()),
        Err(error) => anyhow::bail!("{url} cannot be reached: {}", transport_cause(&error)),
    }
}

/// Returns the innermost cause, because the text of the outer errors repeats the address.
fn transport_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
