//! Key rotation: re-encrypts every stored token string with the first key of `TOKEN_KEYS`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::crypto::KeyRing;
use crate::db::keys::{
    count_under_other_keys, insert_keys_rotated, list_tokens_under_key, replace_ciphertexts,
};
use crate::db::{DbError, PgConnection};

/// Tokens in one batch.
const BATCH_SIZE: i64 = 500;

/// Maximum number of passes over the tokens. A pass misses locked tokens and tokens that a replica
/// with an older first key mints meanwhile. The limit ends the rotation while such replicas run.
const MAX_PASSES: u32 = 5;
/// Time between two passes.
const PASS_PAUSE: Duration = Duration::from_millis(200);

/// The result of a rotation.
#[derive(Debug, Serialize)]
pub struct Rotation {
    /// Token strings re-encrypted by this rotation.
    pub rotated: u64,
    /// Token strings still encrypted with other keys, by key id.
    pub left: BTreeMap<String, i64>,
    /// Token strings that could not be decrypted.
    pub failed: u64,
}

/// Re-encrypts all token strings stored under other keys, in batches, until none is left or `stop` is
/// cancelled. Calls `progress` after each batch with the numbers of finished and of all tokens.
///
/// Records a `keys.rotated` event if it changed a token or failed on one. Any number of rotations may
/// run at once, beside requests. A killed rotation loses nothing; the next one continues.
pub async fn rotate_keys(
    connection: &mut PgConnection,
    keys: &KeyRing,
    actor: &str,
    stop: &CancellationToken,
    progress: impl FnMut(u64, u64),
) -> Result<Rotation, DbError> {
    let (mut rotated, mut failed) = (0, HashSet::new());
    let reencrypted =
        reencrypt_all(connection, keys, stop, progress, &mut rotated, &mut failed).await;
    let (key_id, failed) = (keys.primary_key_id(), failed.len() as u64);
    let recorded = match rotated + failed {
        0 => Ok(()),
        _ => insert_keys_rotated(connection, actor, key_id, rotated, failed).await,
    };
    reencrypted.and(recorded)?;
    let left = count_under_other_keys(connection, key_id).await?;
    Ok(Rotation {
        rotated,
        left,
        failed,
    })
}

/// Adds to `rotated` and `failed` as it goes, so that the caller can record them after an error.
async fn reencrypt_all(
    connection: &mut PgConnection,
    keys: &KeyRing,
    stop: &CancellationToken,
    mut progress: impl FnMut(u64, u64),
    rotated: &mut u64,
    failed: &mut HashSet<Uuid>,
) -> Result<(), DbError> {
    for pass in 0..MAX_PASSES {
        let left = count_under_other_keys(connection, keys.primary_key_id()).await?;
        let left_count = left.values().sum::<i64>().unsigned_abs();
        if left_count <= failed.len() as u64 || stop.is_cancelled() {
            break;
        }
        if pass > 0 {
            sleep(PASS_PAUSE).await;
        }
        let total = *rotated + left_count;
        for key_id in left.keys() {
            let mut after = Uuid::nil();
            while !stop.is_cancelled() {
                let batch = list_tokens_under_key(connection, key_id, after, BATCH_SIZE).await?;
                let Some(last) = batch.last() else { break };
                after = last.id;
                let mut reencrypted = Vec::with_capacity(batch.len());
                for token in batch {
                    match keys.decrypt(&token.ciphertext, token.id, &token.combination) {
                        Ok(token_string) => {
                            let encrypted =
                                keys.encrypt(&token_string, token.id, &token.combination);
                            reencrypted.push((token, encrypted));
                        }
                        Err(error) if failed.insert(token.id) => {
                            tracing::error!(token_id = %token.id, %error, "ALARM: a stored token cannot be decrypted");
                        }
                        Err(_) => {}
                    }
                }
                *rotated += replace_ciphertexts(connection, &reencrypted).await?;
                progress(*rotated, total);
            }
        }
    }
    Ok(())
}
