//! Authentication of bearer tokens. A token names a client, and grants nothing itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::last_use::LastUse;
use super::{Authentication, Authenticator, KNOWN_FOR, LOOKUP_TIMEOUT, MAX_AGE, MAX_CLIENTS};
use crate::auth::oidc::{KeysUnknown, TokenVerifier, VerifiedToken};
use crate::db::clients::find_client_by_subject;
use crate::db::clock::DatabaseClock;
use crate::db::{Database, DbError, Lane};
use crate::model::rules::is_oidc_subject;
use crate::model::{Client, Failure, FailureKind};

/// The maximum length of a token, in bytes. Most proxies in front of a service accept no longer header.
const MAX_TOKEN: usize = 8 * 1024;
/// The longest time for which a verified token is not verified again.
const VERIFIED_FOR: Duration = Duration::from_secs(300);
/// The maximum number of cached tokens.
const MAX_TOKENS: u64 = 100_000;

const REFUSED: Authentication = Authentication::Refused { known_key: None };

/// Authenticates bearer tokens of the configured issuer.
#[derive(Debug)]
pub struct BearerAuthenticator {
    verifier: Arc<TokenVerifier>,
    /// The verified tokens by SHA-256, until they expire.
    tokens: Cache<[u8; 32], Arc<VerifiedToken>>,
    /// The enabled clients by subject. `None` if a subject has none.
    clients: Cache<String, Option<Arc<Client>>>,
    /// The subjects that had a client lately. They are looked up in a lane of their own, which a flood of others cannot
    /// fill: anybody can get a token of a public issuer.
    known: Cache<String, ()>,
    last_use: LastUse,
    db: Database,
    clock: Arc<DatabaseClock>,
}

impl BearerAuthenticator {
    /// Creates an authenticator with empty caches, which records the last use of clients as `beside` does.
    pub fn new(verifier: Arc<TokenVerifier>, beside: &Authenticator) -> Self {
        let tokens = Cache::builder().max_capacity(MAX_TOKENS);
        let clients = Cache::builder().max_capacity(MAX_CLIENTS);
        let known = Cache::builder().max_capacity(MAX_CLIENTS);
        BearerAuthenticator {
            verifier,
            tokens: tokens.expire_after(UntilExpired).build(),
            clients: clients.time_to_live(MAX_AGE).build(),
            known: known.time_to_idle(KNOWN_FOR).build(),
            last_use: beside.last_use.clone(),
            db: beside.db.clone(),
            clock: beside.clock.clone(),
        }
    }

    /// Returns the enabled client that the token names. Refuses an invalid token and an unknown subject.
    ///
    /// # Errors
    /// Returns `issuer-unavailable` if the issuer's keys have not been read since the start.
    pub async fn authenticate(&self, token: &str) -> Result<Authentication, Failure> {
        if token.len() > MAX_TOKEN {
            return Ok(REFUSED);
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let token = match self.tokens.get(&digest).await {
            Some(verified) => verified,
            None => match self.verifier.verify(token).await {
                Ok(Some(verified)) if is_oidc_subject(&verified.subject) => {
                    let verified = Arc::new(verified);
                    self.tokens.insert(digest, Arc::clone(&verified)).await;
                    verified
                }
                Ok(_) => return Ok(REFUSED),
                Err(KeysUnknown) => return Err(issuer_unavailable()),
            },
        };
        let client = self.find_client(&token.subject).await?;
        Ok(client.map_or(REFUSED, Authentication::Client))
    }

    /// Returns the enabled client of a subject, at most 3 s old. Concurrent lookups share one query.
    async fn find_client(&self, subject: &str) -> Result<Option<Arc<Client>>, Failure> {
        let lookup = async {
            let lane = match self.known.get(subject).await {
                Some(()) => Lane::Authentication,
                None => Lane::UnknownKeys,
            };
            let (key, lower_bound) = (subject.to_owned(), self.clock.lower_bound());
            let found = self.db.run(lane, async move |mut connection| {
                find_client_by_subject(&mut connection, &key, lower_bound).await
            });
            let client = timeout(LOOKUP_TIMEOUT, found)
                .await
                .unwrap_or(Err(DbError::TimedOut(LOOKUP_TIMEOUT)))?;
            if let Some(client) = &client {
                self.known.insert(subject.to_owned(), ()).await;
                self.last_use.note(client);
            }
            Ok(client.map(Arc::new))
        };
        let found = self.clients.try_get_with_by_ref(subject, lookup).await;
        found.map_err(|error: Arc<DbError>| {
            tracing::error!(%error, "looking up the client of a bearer token failed");
            Failure::from(&*error)
        })
    }
}

fn issuer_unavailable() -> Failure {
    let detail = "the keys of the OIDC issuer cannot be read, so bearer tokens cannot be checked; HTTP Basic works";
    Failure::new(FailureKind::IssuerUnavailable, detail).with_retry_after(5)
}

/// Keeps a verified token until it expires, at most 5 minutes.
struct UntilExpired;

impl Expiry<[u8; 32], Arc<VerifiedToken>> for UntilExpired {
    fn expire_after_create(
        &self,
        _: &[u8; 32],
        token: &Arc<VerifiedToken>,
        _: Instant,
    ) -> Option<Duration> {
        Some(token.valid_for.min(VERIFIED_FOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verified_token_is_cached_until_it_expires_at_most_five_minutes() {
        for (valid_for, cached_for) in [(0, 0), (7, 7), (300, 300), (3_600, 300)] {
            let token = Arc::new(VerifiedToken {
                subject: "s".into(),
                valid_for: Duration::from_secs(valid_for),
            });
            let expiry = UntilExpired.expire_after_create(&[0; 32], &token, Instant::now());
            assert_eq!(expiry, Some(Duration::from_secs(cached_for)));
        }
    }
}
