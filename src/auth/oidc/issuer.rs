//! Reads the discovery document and the keys of the issuer (OpenID Connect Discovery 1.0).

use std::time::Duration;

use reqwest::{Client, StatusCode, redirect};
use serde::Deserialize;
use url::Url;

use super::keys::{SigningKey, parse_key_set};

/// The maximum size of a document of the issuer, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;
/// The time limit of one document.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why the keys of the issuer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// There was no answer, or the answer says nothing about the setting.
    #[error("the OIDC issuer cannot be read: {0}")]
    Unavailable(String),
    /// The answer shows that the setting is wrong.
    #[error("AUTH_OIDC_ISSUER: {0}")]
    NotAnIssuer(String),
}

/// The HTTP client of the issuer. Follows no redirect and uses no proxy.
#[derive(Debug)]
pub struct Issuer {
    client: Client,
    /// The exact text that discovery and tokens must contain.
    name: String,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Builds the client. Opens no connection.
    pub fn new(name: String) -> anyhow::Result<Self> {
        // Sets the TLS implementation of the process. Fails if it is set already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(TIMEOUT)
            .user_agent(concat!("token-vendor/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Issuer { client, name })
    }

    /// Returns the `iss` of the issuer's tokens.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the discovery document and the keys that it names, at least one.
    pub async fn read_keys(&self) -> Result<Vec<SigningKey>, IssuerError> {
        let url = discovery_url(&self.name);
        let wrong = |why: &str| IssuerError::NotAnIssuer(format!("{url} {why}"));
        let discovery: Discovery = serde_json::from_slice(&self.read(&url).await?)
            .map_err(|_| wrong("is no discovery document"))?;
        if discovery.issuer != self.name {
            return Err(wrong(&format!(
                "is of another issuer; set the exact text {:?}",
                discovery.issuer
            )));
        }
        let keys = discovery.jwks_uri;
        if !is_trustworthy(&keys, &self.name) {
            return Err(wrong("has a jwks_uri that is no https:// URL"));
        }
        let set = self.read(&keys).await?;
        let unusable = |why| IssuerError::NotAnIssuer(format!("{keys} {why}"));
        match parse_key_set(&set) {
            None => Err(unusable("is no JSON Web Key Set")),
            Some(keys) if keys.is_empty() => {
                Err(unusable("has no key for RS, PS, ES or EdDSA signatures"))
            }
            Some(keys) => Ok(keys),
        }
    }

    async fn read(&self, url: &str) -> Result<Vec<u8>, IssuerError> {
        let unavailable =
            |why: String| IssuerError::Unavailable(format!("{url} cannot be read: {why}"));
        let lost = |error: reqwest::Error| unavailable(innermost_cause(&error));
        let mut response = self.client.get(url).send().await.map_err(lost)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                return Err(IssuerError::NotAnIssuer(format!("{url} does not exist")));
            }
            status => return Err(unavailable(format!("its status is {status}"))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > MAX_DOCUMENT {
                return Err(unavailable("it is over 256 KiB".into()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn discovery_url(issuer: &str) -> String {
    format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    )
}

/// Returns whether the keys come over TLS, or from the very place of the issuer, which may be a loopback address.
fn is_trustworthy(keys: &str, issuer: &str) -> bool {
    let origin = |url| Url::parse(url).ok().map(|url| url.origin());
    keys.starts_with("https://") || origin(keys).is_some() && origin(keys) == origin(issuer)
}

/// Returns the innermost cause, because the text of the outer errors repeats the address.
fn innermost_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
