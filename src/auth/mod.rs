//! Authentication of API keys and secrets, with a cache of clients that is at most 3 s old.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use crate::db::clients::find_client;
use crate::db::clock::DatabaseClock;
use crate::db::{Database, DbError};
use crate::model::{Client, Failure};

/// Maximum age of a cached client. Every replica applies a change of a client within this time.
const MAX_AGE: Duration = Duration::from_secs(3);
/// Time limit of a lookup. After it the request fails with 503 `database-unavailable`.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Maximum number of cached clients.
const MAX_CLIENTS: u64 = 10_000;

/// Authenticates clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    cache: Cache<String, Arc<Client>>,
    db: Database,
    clock: Arc<DatabaseClock>,
}

impl Authenticator {
    /// Creates an authenticator with an empty cache.
    pub fn new(db: Database, clock: Arc<DatabaseClock>) -> Self {
        let cache = Cache::builder()
            .max_capacity(MAX_CLIENTS)
            .time_to_live(MAX_AGE)
            .build();
        Authenticator { cache, db, clock }
    }

    /// Returns the client with this key and secret. During the grace period of a rotation, the previous
    /// secret is accepted too.
    ///
    /// Returns `None` for an unknown key, a wrong secret and a disabled client. Each of these rejections
    /// reads the database first. They therefore take the same time, and a new secret works at once.
    pub async fn authenticate(
        &self,
        api_key: &str,
        secret: &[u8],
    ) -> Result<Option<Arc<Client>>, Failure> {
        let digest = Sha256::digest(secret);
        if let Some(client) = self.cache.get(api_key).await {
            if secret_matches(Some(&client), &digest) {
                return Ok(Some(client));
            }
            self.cache.invalidate(api_key).await;
        }
        let client = match is_well_formed(api_key) {
            true => self.look_up(api_key).await?,
            false => None,
        };
        let secret_matches = secret_matches(client.as_deref(), &digest);
        Ok(client.filter(|_| secret_matches))
    }

    /// Reads a client from the database and caches it. Concurrent lookups of a key share one query.
    async fn look_up(&self, api_key: &str) -> Result<Option<Arc<Client>>, Failure> {
        let lookup = async {
            let (key, lower_bound) = (api_key.to_owned(), self.clock.lower_bound());
            let found = self
                .db
                .run(|pool| async move { find_client(&pool, &key, Some(lower_bound)).await });
            let (client, now) = timeout(LOOKUP_TIMEOUT, found)
                .await
                .unwrap_or(Err(DbError::TimedOut(LOOKUP_TIMEOUT)))
                .map_err(Some)?;
            self.clock.observe(now);
            // An error is not cached: an unknown key is looked up again.
            client.map(Arc::new).ok_or(None::<DbError>)
        };
        match self.cache.try_get_with_by_ref(api_key, lookup).await {
            Ok(client) => Ok(Some(client)),
            Err(error) => match &*error {
                None => Ok(None),
                Some(error) => {
                    tracing::error!(%error, "looking up a client failed");
                    Err(Failure::database())
                }
            },
        }
    }
}

/// Returns whether the client is enabled and the digest is that of its secret. Compares in constant time.
fn secret_matches(client: Option<&Client>, digest: &[u8]) -> bool {
    // No known secret has the digest of zeros, which stands in for a missing one.
    let equals = |expected: Option<&[u8]>| digest.ct_eq(expected.unwrap_or(&[0; 32]));
    let is_current = equals(client.map(|client| &*client.secret_sha256));
    let previous = client.and_then(|client| client.previous_secret_sha256.as_deref());
    let secret_matches: bool = (is_current | equals(previous)).into();
    secret_matches && client.is_some_and(|client| client.is_enabled)
}

/// Returns whether the text can be an API key. Other texts cause no query.
fn is_well_formed(api_key: &str) -> bool {
    (1..=128).contains(&api_key.len())
        && api_key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
