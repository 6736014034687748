//! Verifies bearer tokens, which are JWTs of one OIDC issuer. Knows nothing of clients.

mod issuer;
mod key_cache;
mod keys;
mod signature;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jsonwebtoken::{Header, Validation, decode, decode_header, get_current_timestamp};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::time::timeout;

use self::issuer::Issuer;
pub use self::issuer::IssuerError;
use self::key_cache::{KeyCache, Trigger};
use self::keys::{SigningKey, find_key};

/// The allowed difference between the clocks of the issuer and of this service.
const LEEWAY: Duration = Duration::from_secs(30);
/// The time that a request waits for the keys. A slower fetch goes on for later requests.
const MAX_WAIT: Duration = Duration::from_millis(1_500);

/// The issuer and the audience of accepted tokens.
#[derive(Clone, Debug)]
pub struct OidcSettings {
    /// The exact `iss`, which is the base address of the discovery document.
    pub issuer: String,
    /// A value of `aud`.
    pub audience: String,
}

/// The content of a valid token.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The `sub`.
    pub subject: String,
    /// The time until the token is no longer accepted.
    pub valid_for: Duration,
}

/// The error of a token that cannot be judged, because the keys of the issuer have not been read since the start.
#[derive(Debug)]
pub struct KeysUnknown;

/// Verifies tokens. One per replica.
#[derive(Debug)]
pub struct TokenVerifier {
    issuer: Issuer,
    audience: String,
    cache: Mutex<KeyCache>,
    /// Held during a fetch. Requests that wait for it share the fetch.
    fetching: tokio::sync::Mutex<()>,
    runtime: Handle,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
}

impl TokenVerifier {
    /// Builds a verifier without keys, which fetches them on the current runtime. Opens no connection.
    pub fn new(settings: OidcSettings) -> anyhow::Result<Arc<Self>> {
        signature::install();
        Ok(Arc::new(TokenVerifier {
            issuer: Issuer::new(settings.issuer)?,
            audience: settings.audience,
            cache: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            runtime: Handle::current(),
        }))
    }

    /// Reads the keys of the issuer and returns their number.
    ///
    /// # Errors
    /// Returns the reason if they cannot be read. The last keys then stay in use.
    pub async fn fetch_keys(&self) -> Result<usize, IssuerError> {
        self.cache().note_fetch(Instant::now());
        let keys = self.issuer.read_keys().await?;
        let count = keys.len();
        self.cache().keys = Some(keys.into());
        Ok(count)
    }

    /// Verifies a token by the keys of the issuer, the claims and the system clock. Returns `None` for an invalid token.
    ///
    /// # Errors
    /// Fails if the keys have not been read since the start.
    pub async fn verify(
        self: &Arc<Self>,
        token: &str,
    ) -> Result<Option<VerifiedToken>, KeysUnknown> {
        // An extension in `crit` changes the meaning of a token, and this version knows none.
        let header = decode_header(token).ok();
        let Some(header) = header.filter(|header| header.crit.is_none()) else {
            return Ok(None);
        };
        let keys = self.keys_for(&header).await?;
        let verified = find_key(&keys, &header).and_then(|key| {
            let mut validation = Validation::new(header.alg);
            validation.leeway = LEEWAY.as_secs();
            validation.validate_nbf = true;
            validation.set_issuer(&[self.issuer.name()]);
            validation.set_audience(&[&self.audience]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            let claims = decode::<Claims>(token, &key.key, &validation).ok()?.claims;
            let end = claims.exp + LEEWAY.as_secs_f64();
            let valid_for = end - get_current_timestamp() as f64;
            Some(VerifiedToken {
                subject: claims.sub,
                valid_for: Duration::try_from_secs_f64(valid_for).unwrap_or_default(),
            })
        });
        Ok(verified)
    }

    /// Returns the keys, after a new fetch if they lack the one of this header.
    async fn keys_for(self: &Arc<Self>, header: &Header) -> Result<Arc<[SigningKey]>, KeysUnknown> {
        let keys = self.cache().keys.clone();
        let trigger = match &keys {
            Some(keys) if find_key(keys, header).is_some() => Trigger::Age,
            Some(_) => Trigger::UnknownKey,
            None => Trigger::NoKeys,
        };
        let found = keys.filter(|_| matches!(trigger, Trigger::Age));
        if let Some(keys) = &found
            && !self.cache().is_due(trigger, Instant::now())
        {
            return Ok(Arc::clone(keys));
        }
        // A task of its own, so that a caller that hangs up does not end the fetch for the others.
        let verifier = Arc::clone(self);
        let fetching = async move { verifier.fetch_keys_if_due(trigger).await };
        let fetching = self.runtime.spawn(fetching);
        if let Some(keys) = found {
            return Ok(keys);
        }
        let is_done = timeout(MAX_WAIT, fetching).await.is_ok();
        self.cache()
            .keys
            .clone()
            .filter(|_| is_done)
            .ok_or(KeysUnknown)
    }

    async fn fetch_keys_if_due(&self, trigger: Trigger) {
        let _turn = self.fetching.lock().await;
        let is_due = self.cache().take_turn(trigger, Instant::now());
        if is_due && let Err(error) = self.fetch_keys().await {
            tracing::warn!(%error, "the keys of the OIDC issuer were not read again");
        }
    }

    fn cache(&self) -> MutexGuard<'_, KeyCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;

    use super::keys::parse_key_set;
    use super::*;

    /// An Ed25519 key (RFC 8037, appendix A.2).
    const KEYS: &[u8] = br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[tokio::test]
    async fn a_token_of_a_known_key_causes_a_fetch_if_the_keys_are_old() {
        let settings = OidcSettings {
            issuer: "http://127.0.0.1:1".into(),
            audience: "a".into(),
        };
        let verifier = TokenVerifier::new(settings).unwrap();
        verifier.cache().keys = parse_key_set(KEYS).map(Into::into);
        let header = Header::new(Algorithm::EdDSA);
        let Some(fetched_at) = Instant::now().checked_sub(Duration::from_secs(300)) else {
            return eprintln!("not run: this machine started less than 5 minutes ago");
        };
        verifier.cache().note_fetch(fetched_at);
        assert!(verifier.keys_for(&header).await.is_ok(), "the old keys");
        let began = async {
            while verifier.cache().take_turn(Trigger::Age, Instant::now()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), began).await.unwrap();
    }
}
