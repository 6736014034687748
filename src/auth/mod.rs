//! Who calls: API keys, checked against a copy that is at most `MAX_AGE` old.

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

/// A change of a client is seen by every replica within this time.
const MAX_AGE: Duration = Duration::from_secs(3);
/// A lookup that takes longer counts as a database that is down.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Clients remembered; more push out the oldest.
const MAX_KEYS: u64 = 10_000;

/// The clients as this replica knows them.
#[derive(Clone, Debug)]
pub struct Authenticator {
    known: Cache<String, Arc<Client>>,
    db: Database,
    clock: Arc<DatabaseClock>,
}

impl Authenticator {
    /// Knows none yet.
    pub fn new(db: Database, clock: Arc<DatabaseClock>) -> Self {
        let known = Cache::builder()
            .max_capacity(MAX_KEYS)
            .time_to_live(MAX_AGE)
            .build();
        Authenticator { known, db, clock }
    }

    /// The client of that key and secret, or of the secret before it while that is good; `None` for
    /// an unknown key, a wrong secret and a disabled client alike. The database is asked before any
    /// of them is refused: they take the same time, and a secret is good as soon as it is made.
    pub async fn authenticate(
        &self,
        api_key: &str,
        secret: &[u8],
    ) -> Result<Option<Arc<Client>>, Failure> {
        let digest = Sha256::digest(secret);
        if let Some(client) = self.known.get(api_key).await {
            if secret_matches(Some(&client), &digest) {
                return Ok(Some(client));
            }
            self.known.invalidate(api_key).await;
        }
        let client = match is_well_formed(api_key) {
            true => self.look_up(api_key).await?,
            false => None,
        };
        let secret_matches = secret_matches(client.as_deref(), &digest);
        Ok(client.filter(|_| secret_matches))
    }

    /// Many who ask for one key at once share one look.
    async fn look_up(&self, api_key: &str) -> Result<Option<Arc<Client>>, Failure> {
        let look = async {
            let key = api_key.to_owned();
            let found = self
                .db
                .run(|pool| async move { find_client(&pool, &key).await });
            let (client, now) = timeout(LOOKUP_TIMEOUT, found)
                .await
                .unwrap_or(Err(DbError::TimedOut(LOOKUP_TIMEOUT)))
                .map_err(Some)?;
            self.clock.observe(now);
            // An unknown key is not remembered.
            client.map(Arc::new).ok_or(None::<DbError>)
        };
        match self.known.try_get_with_by_ref(api_key, look).await {
            Ok(client) => Ok(Some(client)),
            Err(error) => match &*error {
                None => Ok(None),
                Some(error) => {
                    tracing::error!(%error, "a client could not be looked up");
                    Err(Failure::database())
                }
            },
        }
    }
}

/// In the same time for every outcome.
fn secret_matches(client: Option<&Client>, digest: &[u8]) -> bool {
    // What stands in for a missing hash is no hash that anybody knows a secret of.
    let is_that = |expected: Option<&[u8]>| digest.ct_eq(expected.unwrap_or(&[0; 32]));
    let is_current = is_that(client.map(|client| &*client.secret_sha256));
    let previous = client.and_then(|client| client.previous_secret_sha256.as_deref());
    let secret_matches: bool = (is_current | is_that(previous)).into();
    secret_matches && client.is_some_and(|client| client.is_enabled)
}

/// What cannot be a key is not asked of the database.
fn is_well_formed(api_key: &str) -> bool {
    (1..=128).contains(&api_key.len())
        && api_key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
