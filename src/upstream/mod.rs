//! HTTP out: the provider's one call, `POST /bank/tokens/`, and nothing of what it says taken on trust.

mod answer;
mod circuit;
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

/// An answer larger than this is not the provider's.
const MAX_ANSWER: usize = 64 * 1024;
/// A connection that does not come about in this time is retried rather than waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Shorter than servers commonly keep connections, so that a request seldom meets a dying one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Where the provider is and who we are to it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Its base address.
    pub base_url: Url,
    /// Username of HTTP Basic.
    pub api_key: SecretString,
    /// Password of HTTP Basic.
    pub api_secret: SecretString,
    /// Calls at the same time.
    pub max_in_flight: usize,
}

/// The provider, as this replica calls it.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    url: Url,
    api_key: SecretString,
    api_secret: SecretString,
    in_flight: std::sync::Arc<Semaphore>,
    /// Keeps calls away from a provider that is down.
    pub circuit: Circuit,
}

/// What went wrong with one call.
#[derive(Debug)]
pub struct CallError {
    /// What the caller is told if it is not tried again.
    pub failure: Failure,
    /// Trying again is safe, or advised by the provider.
    pub is_retryable: bool,
    /// The provider may have minted a token that we do not see.
    pub may_have_minted: bool,
    /// No answer came: nobody knows what the provider did.
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
    /// Builds the client; opens nothing.
    pub fn new(settings: UpstreamSettings) -> anyhow::Result<Self> {
        // The process's provider, unless another part has set one already.
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
        // Joined by text: `Url::join` would drop the last segment of a base without a final slash.
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

    /// A place among the calls in flight, if one comes free in time.
    pub async fn reserve(&self, max_wait: Duration) -> Result<OwnedSemaphorePermit, Failure> {
        match timeout(max_wait, self.in_flight.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Failure::overloaded()),
        }
    }

    /// One call. Takes no longer than `time`, and no more memory than the answer may have.
    pub async fn mint(
        &self,
        combination: &Combination,
        lifetime: i32,
        time: Duration,
    ) -> Result<Minted, CallError> {
        let request = BankTokenRequest {
            lifetime,
            country: combination.country.map(|country| country.code()),
            bank: combination.bank.as_deref(),
            access: combination.access,
        };
        let body = serde_json::to_vec(&request).expect("a request is plain data");
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
        let mut minted = timeout(time, call)
            .await
            .unwrap_or_else(|_| Err(CallError::timed_out()));
        if let Err(CallError { failure, .. }) = &mut minted
            && let Some(answer) = &mut failure.upstream
        {
            answer.shorten(|text| !self.leaks_credentials(text));
        }
        minted
    }

    /// Whether what the upstream says repeats our credentials: then it is passed on to nobody.
    fn leaks_credentials(&self, text: &str) -> bool {
        let (key, secret) = (
            self.api_key.expose_secret(),
            self.api_secret.expose_secret(),
        );
        let basic = BASE64_STANDARD.encode(format!("{key}:{secret}"));
        [key, secret, &basic].iter().any(|own| text.contains(own))
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
            return Err(CallError::not_the_contract(
                "its answer is over 64 KiB",
                status,
            ));
        }
        body.extend_from_slice(&chunk);
    }
    if status == StatusCode::CREATED {
        #[expect(
            clippy::disallowed_methods,
            reason = "the margin CLOCK_DOUBT covers this clock's error"
        )]
        let received_at = Utc::now();
        answer::read_minted(&body, date.as_ref(), combination, lifetime, received_at)
            .map_err(|why| CallError::not_the_contract(why, status))
    } else {
        Err(CallError::from_status(status, &body))
    }
}

impl CallError {
    /// The contract's mapping of the provider's statuses.
    fn from_status(status: StatusCode, body: &[u8]) -> Self {
        let answer = answer::read_error(status.as_u16(), body);
        let (kind, detail, is_retryable, may_have_minted) = match status.as_u16() {
            400 | 409 | 422 => (
                FailureKind::UpstreamRejected,
                "the upstream refused this request",
                false,
                false,
            ),
            401..=404 => (
                FailureKind::UpstreamRefused,
                "the upstream refused this service",
                false,
                false,
            ),
            429 => (
                FailureKind::UpstreamUnavailable,
                "the upstream limits our rate",
                true,
                false,
            ),
            503 => (
                FailureKind::UpstreamFailed,
                "the upstream is out of service",
                true,
                false,
            ),
            500 | 502 => (
                FailureKind::UpstreamFailed,
                "the upstream failed",
                true,
                true,
            ),
            300..=399 => (
                FailureKind::UpstreamFailed,
                "the upstream answered with a redirect",
                false,
                false,
            ),
            _ => (
                FailureKind::UpstreamFailed,
                "the upstream answered with a status that is not its contract's",
                false,
                true,
            ),
        };
        CallError {
            failure: Failure::new(kind, detail).with_upstream(answer),
            is_retryable,
            may_have_minted,
            is_lost: false,
        }
    }

    fn from_transport(error: reqwest::Error) -> Self {
        if error.is_connect() || error.is_builder() {
            tracing::warn!(error = %transport_cause(&error), "the upstream cannot be reached");
            let detail = "the upstream cannot be reached";
            return CallError {
                failure: Failure::new(FailureKind::UpstreamUnavailable, detail),
                is_retryable: true,
                may_have_minted: false,
                is_lost: false,
            };
        }
        CallError::lost()
    }

    fn lost() -> Self {
        let detail = "the connection to the upstream was lost before its answer; nobody knows whether it minted";
        CallError {
            failure: Failure::new(FailureKind::UpstreamFailed, detail),
            is_retryable: false,
            may_have_minted: true,
            is_lost: true,
        }
    }

    fn timed_out() -> Self {
        let detail = "the upstream did not answer in time; nobody knows whether it minted";
        CallError {
            failure: Failure::new(FailureKind::UpstreamTimeout, detail),
            ..CallError::lost()
        }
    }

    fn not_the_contract(why: &'static str, status: StatusCode) -> Self {
        let answer = UpstreamAnswer {
            status: status.as_u16(),
            identifier: None,
            message: None,
        };
        CallError {
            failure: Failure::new(FailureKind::UpstreamFailed, why).with_upstream(answer),
            is_retryable: false,
            may_have_minted: true,
            is_lost: false,
        }
    }
}

/// What a GET of that address is answered with, any certificate taken if `trusts_all`. No
/// credentials are sent.
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

/// The innermost cause: reqwest's own text would repeat the address.
fn transport_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
