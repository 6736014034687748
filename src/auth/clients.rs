//! Creates, changes, rotates and disables clients. The command line, the API and the console use these functions.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::db::clients;
pub use crate::db::clients::{Changed, disable_client, update_client};
use crate::db::{DbError, PgConnection};
use crate::model::{ClientChange, ClientRecord, ClientRefusal, Operator};

/// A client with its new secret, or the reason why there is none. A client with an OIDC subject has no secret.
pub type WithSecret = Result<(ClientRecord, Option<SecretString>), ClientRefusal>;

/// Creates a client with a new key and a new secret. The change must have a name and scopes.
pub async fn create_client(
    connection: &mut PgConnection,
    change: ClientChange,
    operator: &Operator,
) -> Result<WithSecret, DbError> {
    let api_key = format!("tv-{}", random_text::<12>());
    let (secret, hash) = generate_secret();
    let created = clients::insert_client(connection, &api_key, &hash, change, operator).await?;
    Ok(created.map(|record| {
        let secret = record.settings.oidc_subject.is_none().then_some(secret);
        (record, secret)
    }))
}

/// Gives a client a new secret. The previous one stays valid for `grace`. `expires_in` also sets the expiry.
pub async fn rotate_client(
    connection: &mut PgConnection,
    api_key: &str,
    grace: Duration,
    expires_in: Option<Duration>,
    operator: &Operator,
) -> Result<WithSecret, DbError> {
    let (secret, hash) = generate_secret();
    let rotated = clients::rotate_client(connection, api_key, &hash, grace, expires_in, operator);
    Ok(rotated.await?.map(|record| (record, Some(secret))))
}

/// Returns a new secret of 256 random bits and its SHA-256.
fn generate_secret() -> (SecretString, [u8; 32]) {
    let secret = SecretString::from(random_text::<32>());
    let hash = Sha256::digest(secret.expose_secret()).into();
    (secret, hash)
}

fn random_text<const N: usize>() -> String {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system returns random bytes");
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
