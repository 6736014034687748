//! Compares `FINGERPRINT_KEY` and `TOKEN_KEYS` with what is stored.

use anyhow::bail;
use uuid::Uuid;

use crate::crypto::{DecryptError, KeyRing};
use crate::db::{DbError, PgConnection, keys, tokens};
use crate::model::{Fingerprint, TokenString};

/// The text whose fingerprint is the check value of the key.
const CHECKED: &str = "the check value of FINGERPRINT_KEY";

/// A stored token string, and its recorded fingerprint.
type Sample = (Result<TokenString, DecryptError>, Fingerprint);

/// Decrypts one stored token of each key.
async fn read_samples(
    ring: &KeyRing,
    connection: &mut PgConnection,
) -> Result<Vec<Sample>, DbError> {
    let mut samples = Vec::new();
    for id in &tokens::list_key_ids(connection).await? {
        for secret in keys::list_tokens_under_key(connection, id, Uuid::nil(), 1).await? {
            let token = ring.decrypt(&secret.ciphertext, secret.id, &secret.combination);
            if let Some(record) = tokens::find_token(connection, secret.id).await? {
                samples.push((token, record.fingerprint));
            }
        }
    }
    Ok(samples)
}

/// Checks that both settings fit the stored tokens, one token per key. Returns the number of keys.
///
/// # Errors
/// Fails if a token cannot be decrypted, or if `FINGERPRINT_KEY` is another one.
pub(crate) async fn check_keys(
    ring: &KeyRing,
    connection: &mut PgConnection,
) -> anyhow::Result<usize> {
    let samples = read_samples(ring, connection).await?;
    let stored = keys::find_check_value(connection).await?;
    if stored.is_some_and(|stored| stored != ring.fingerprint(CHECKED).to_string()) {
        bail!(CHANGED);
    }
    let count = samples.len();
    for (token, fingerprint) in samples {
        if ring.fingerprint(token?.expose()) != fingerprint {
            bail!(CHANGED);
        }
    }
    Ok(count)
}

const CHANGED: &str = "FINGERPRINT_KEY is not the key of the stored tokens: set the key of the other replicas, or restore it from the backup of the secrets";

/// Checks `FINGERPRINT_KEY` against the stored check value, and stores that value if there is none.
///
/// A replica with another key finds no token by its string, and invalidates none.
///
/// # Errors
/// Fails if the key is another one.
pub(super) async fn check_fingerprint_key(
    ring: &KeyRing,
    connection: &mut PgConnection,
) -> anyhow::Result<()> {
    let value = ring.fingerprint(CHECKED).to_string();
    if keys::find_check_value(connection).await?.is_none() {
        // A database of an earlier version. A token that cannot be decrypted says nothing about this key.
        let samples = read_samples(ring, connection).await?;
        let is_right = |(token, fingerprint): &Sample| {
            let computed = token.as_ref().map(|token| ring.fingerprint(token.expose()));
            computed.map_or(true, |computed| computed == *fingerprint)
        };
        if !samples.iter().all(is_right) {
            bail!(CHANGED);
        }
        keys::insert_check_value(connection, &value).await?;
    }
    match keys::find_check_value(connection).await? {
        Some(stored) if stored != value => bail!(CHANGED),
        _ => Ok(()),
    }
}
