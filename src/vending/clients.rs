//! Who calls: API keys, checked against a copy that is at most `MAX_AGE` old.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use super::STEP_PATIENCE;
use super::clock::DatabaseClock;
use crate::db::{Database, DbError, clients::find_client};
use crate::model::{Client, Failure};

/// A change of a client is seen by every replica within this time.
const MAX_AGE: Duration = Duration::from_secs(3);
/// Keys remembered, unknown ones included; more push out the oldest.
const MAX_KEYS: u64 = 10_000;

/// The clients as this replica knows them.
#[derive(Clone, Debug)]
pub struct Clients {
    known: Cache<String, Option<Arc<Client>>>,
    db: Database,
    clock: Arc<DatabaseClock>,
}

impl Clients {
    /// Knows none yet.
    pub fn new(db: Database, clock: Arc<DatabaseClock>) -> Self {
        let known = Cache::builder()
            .max_capacity(MAX_KEYS)
            .time_to_live(MAX_AGE)
            .build();
        Clients { known, db, clock }
    }

    /// The client of that key and secret, or of the secret before it while that is good; `None` for an unknown key, a wrong secret and a disabled
    /// client alike, after the same time.
    pub async fn authenticate(
        &self,
        api_key: &str,
        secret: &[u8],
    ) -> Result<Option<Arc<Client>>, Failure> {
        let client = match self.known.get(api_key).await {
            Some(client) => client,
            None if is_well_formed(api_key) => self.look_up(api_key).await?,
            None => None,
        };
        let digest = Sha256::digest(secret);
        // What stands in for a missing hash is no hash that anybody knows a secret of.
        let is_that =
            |expected: Option<&[u8]>| digest.as_slice().ct_eq(expected.unwrap_or(&[0; 32]));
        let client_ref = client.as_deref();
        let is_current = is_that(client_ref.map(|client| &*client.secret_sha256));
        let is_previous =
            is_that(client_ref.and_then(|client| client.previous_secret_sha256.as_deref()));
        let is_right: bool = (is_current | is_previous).into();
        Ok(client.filter(|client| is_right && client.is_enabled))
    }

    async fn look_up(&self, api_key: &str) -> Result<Option<Arc<Client>>, Failure> {
        let look = async {
            let key = api_key.to_owned();
            let found = self
                .db
                .run(|pool| async move { find_client(&pool, &key).await });
            let (client, now) = timeout(STEP_PATIENCE, found)
                .await
                .unwrap_or(Err(DbError::TimedOut(STEP_PATIENCE)))?;
            self.clock.observe(now);
            Ok::<_, DbError>(client.map(Arc::new))
        };
        let found = self.known.try_get_with_by_ref(api_key, look).await;
        found.map_err(|error| {
            tracing::error!(%error, "a client could not be looked up");
            Failure::database()
        })
    }
}

/// What cannot be a key is not asked of the database.
fn is_well_formed(api_key: &str) -> bool {
    (1..=128).contains(&api_key.len())
        && api_key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
