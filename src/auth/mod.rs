//! Authentication of clients: API keys and secrets here, bearer tokens in [`bearer`]. Cached clients are at most 3 s old.

pub mod bearer;
pub mod clients;
mod last_use;
pub mod oidc;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::future::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::last_use::LastUse;
use crate::db::clients::{SecretHashes, find_client, find_secret_hashes};
use crate::db::clock::DatabaseClock;
use crate::db::{Database, DbError, Lane};
use crate::model::rules::is_api_key;
use crate::model::{Client, Failure};

/// Maximum age of a cached client. Every replica applies a change of a client within this time.
const MAX_AGE: Duration = Duration::from_secs(3);
/// Time for which a client that was authenticated is refreshed in the lane of known clients.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);
/// Time limit of a lookup. After it the request fails with 503 `database-unavailable`.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Maximum number of cached clients.
const MAX_CLIENTS: u64 = 10_000;
/// Lookups per second of credentials that were not right lately. Further ones get 503 `overloaded`.
const MAX_UNKNOWN_PER_SECOND: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// An API key and the SHA-256 of the secret that came with it.
///
/// The digest is part of the key of both caches. A wrong secret therefore neither finds nor removes the entry of the
/// right one.
type Credentials = (String, [u8; 32]);

/// The result of an authentication.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// The client of the credentials.
    Client(Arc<Client>),
    /// The key is unknown, the secret is wrong, or the client is disabled.
    Refused {
        /// The key, if a client has it.
        known_key: Option<String>,
    },
}

/// The reason why a lookup returns no client. It is not cached.
enum NotFound {
    Refused { is_known: bool },
    Failed(DbError),
}

/// Authenticates clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    cache: Cache<Credentials, Arc<Client>>,
    /// The credentials that were right lately. They are looked up in a lane of their own, which a flood of wrong ones
    /// cannot fill.
    known: Cache<Credentials, ()>,
    unknown_limit: Arc<DefaultDirectRateLimiter>,
    last_use: LastUse,
    db: Database,
    clock: Arc<DatabaseClock>,
}

impl Authenticator {
    /// Creates an authenticator with an empty cache.
    pub fn new(db: Database, clock: Arc<DatabaseClock>) -> Self {
        let cache = Cache::builder().max_capacity(MAX_CLIENTS);
        let known = Cache::builder().max_capacity(MAX_CLIENTS);
        Authenticator {
            cache: cache.time_to_live(MAX_AGE).build(),
            known: known.time_to_idle(KNOWN_FOR).build(),
            unknown_limit: Arc::new(RateLimiter::direct(Quota::per_second(
                MAX_UNKNOWN_PER_SECOND,
            ))),
            last_use: LastUse::default(),
            db,
            clock,
        }
    }

    /// Records the days of the last use of clients until `stop` is cancelled.
    pub async fn record_use_until(self, stop: CancellationToken) {
        self.last_use.record_until(self.db, stop).await;
    }

    /// Returns the client with this key and secret. During the grace period of a rotation, the previous
    /// secret is accepted too.
    ///
    /// Refuses an unknown key, a wrong secret and a disabled client. Each of these refusals reads the database first.
    /// They therefore take the same time, and a new secret works at once.
    pub async fn authenticate(
        &self,
        api_key: &str,
        secret: &[u8],
    ) -> Result<Authentication, Failure> {
        let credentials = (api_key.to_owned(), Sha256::digest(secret).into());
        if let Some(client) = self.cache.get(&credentials).await {
            return Ok(Authentication::Client(client));
        }
        // Other texts cause no query.
        match is_api_key(api_key) {
            true => self.look_up(credentials).await,
            false => Ok(Authentication::Refused { known_key: None }),
        }
    }

    /// Reads a client from the database. Caches it if the secret is right. Concurrent lookups share one query.
    async fn look_up(&self, credentials: Credentials) -> Result<Authentication, Failure> {
        let (key, digest) = credentials.clone();
        let lookup = async {
            let lane = match self.known.get(&credentials).await {
                Some(()) => Lane::Authentication,
                None if self.unknown_limit.check().is_ok() => Lane::UnknownKeys,
                None => return Err(NotFound::Failed(DbError::Overloaded)),
            };
            let lower_bound = self.clock.lower_bound();
            let found = self.db.run(lane, async move |mut connection| {
                let (hashes, now) = find_secret_hashes(&mut connection, &key, lower_bound).await?;
                let client = match is_secret(&hashes, &digest) {
                    true => find_client(&mut connection, &key, lower_bound).await?,
                    false => None,
                };
                Ok((client.ok_or(hashes.is_known), now))
            });
            let (client, now) = timeout(LOOKUP_TIMEOUT, found)
                .await
                .unwrap_or(Err(DbError::TimedOut(LOOKUP_TIMEOUT)))
                .map_err(NotFound::Failed)?;
            self.clock.observe(now);
            // An error is not cached: wrong credentials are looked up again.
            let client = client.map_err(|is_known| NotFound::Refused { is_known })?;
            self.known.insert(credentials.clone(), ()).await;
            self.last_use.note(&client);
            Ok(Arc::new(client))
        };
        match self.cache.try_get_with_by_ref(&credentials, lookup).await {
            Ok(client) => Ok(Authentication::Client(client)),
            Err(error) => match &*error {
                NotFound::Refused { is_known } => Ok(Authentication::Refused {
                    known_key: is_known.then_some(credentials.0),
                }),
                NotFound::Failed(DbError::Overloaded) => Err(Failure::overloaded()),
                NotFound::Failed(error) => {
                    tracing::error!(%error, "looking up a client failed");
                    Err(error.into())
                }
            },
        }
    }
}

/// Returns whether the digest is that of a secret. Compares in constant time.
fn is_secret(hashes: &SecretHashes, digest: &[u8]) -> bool {
    let equals = |hash: &[u8]| digest.ct_eq(hash);
    (equals(&hashes.current) | equals(&hashes.previous)).into()
}
