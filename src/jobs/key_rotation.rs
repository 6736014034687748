//! Rotation of keys: every stored secret sealed anew under the first key of the ring.

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
use crate::db::{DbError, PgPool};

const BATCH: i64 = 500;

/// A walk misses what was locked, and what was minted behind it under an older key. Where others
/// are still at work there is no end to that, so it is not walked again for ever.
const PASSES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What a rotation came to.
#[derive(Debug, Serialize)]
pub struct Rotation {
    /// Secrets that it sealed anew.
    pub rotated: u64,
    /// Secrets still stored under other keys, by the id of the key.
    pub left: BTreeMap<String, i64>,
    /// Secrets that could not be opened.
    pub failed: u64,
}

/// Seals anew, under the first key, every stored secret that is under another, batch by batch,
/// until none is left or it is told to stop. Leaves a `keys.rotated` event if it did something.
///
/// Safe beside any number of others and beside vending; killed at any time it loses nothing, and
/// the next one goes on from there. `progress` is told how many are done, of how many.
pub async fn rotate_keys(
    pool: &PgPool,
    keys: &KeyRing,
    actor: &str,
    stop: &CancellationToken,
    progress: impl FnMut(u64, u64),
) -> Result<Rotation, DbError> {
    let (mut rotated, mut failed) = (0, HashSet::new());
    let walked = walk(pool, keys, stop, progress, &mut rotated, &mut failed).await;
    let (key_id, failed) = (keys.primary_key_id(), failed.len() as u64);
    let recorded = match rotated + failed {
        0 => Ok(()),
        _ => insert_keys_rotated(pool, actor, key_id, rotated, failed).await,
    };
    walked.and(recorded)?;
    let left = count_under_other_keys(pool, key_id).await?;
    Ok(Rotation {
        rotated,
        left,
        failed,
    })
}

async fn walk(
    pool: &PgPool,
    keys: &KeyRing,
    stop: &CancellationToken,
    mut progress: impl FnMut(u64, u64),
    rotated: &mut u64,
    failed: &mut HashSet<Uuid>,
) -> Result<(), DbError> {
    for pass in 0..PASSES {
        let left = count_under_other_keys(pool, keys.primary_key_id()).await?;
        let waiting = left.values().sum::<i64>().unsigned_abs();
        if waiting <= failed.len() as u64 || stop.is_cancelled() {
            break;
        }
        if pass > 0 {
            sleep(PAUSE).await;
        }
        let total = *rotated + waiting;
        for key_id in left.keys() {
            let mut after = Uuid::nil();
            while !stop.is_cancelled() {
                let batch = list_tokens_under_key(pool, key_id, after, BATCH).await?;
                let Some(last) = batch.last() else { break };
                after = last.id;
                let mut reencrypted = Vec::with_capacity(batch.len());
                for secret in batch {
                    match keys.decrypt(&secret.ciphertext, secret.id, &secret.combination) {
                        Ok(token) => {
                            let encrypted = keys.encrypt(&token, secret.id, &secret.combination);
                            reencrypted.push((secret, encrypted));
                        }
                        Err(error) if failed.insert(secret.id) => {
                            tracing::error!(token_id = %secret.id, %error, "ALARM: a stored token cannot be opened");
                        }
                        Err(_) => {}
                    }
                }
                *rotated += replace_ciphertexts(pool, &reencrypted).await?;
                progress(*rotated, total);
            }
        }
    }
    Ok(())
}
