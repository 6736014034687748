//! Which key stored tokens are sealed under, and moving them to another.

use std::collections::BTreeMap;

use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use super::tokens::read_combination;
use crate::crypto::EncryptedToken;
use crate::model::{Combination, EventKind};

/// A secret as it is stored, with what it takes to open it.
#[derive(Debug)]
pub struct StoredCiphertext {
    /// The token.
    pub id: Uuid,
    /// What it is for.
    pub combination: Combination,
    /// The secret, sealed.
    pub ciphertext: Vec<u8>,
}

/// How many secrets are stored under each key but this one.
pub async fn count_under_other_keys(
    pool: &PgPool,
    key_id: &str,
) -> Result<BTreeMap<String, i64>, DbError> {
    // Two ranges of the index: `<>` would walk all of it.
    let rows = sqlx::query!(
        r#"SELECT key_id AS "key_id!", count(*) AS "count!" FROM tokens WHERE is_valid AND key_id < $1 GROUP BY 1
           UNION ALL
           SELECT key_id, count(*) FROM tokens WHERE is_valid AND key_id > $1 GROUP BY 1"#,
        key_id
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.key_id, row.count))
        .collect())
}

/// Secrets stored under a key, in order of their id, at most `limit` of those after `after`.
pub async fn list_tokens_under_key(
    pool: &PgPool,
    key_id: &str,
    after: Uuid,
    limit: i64,
) -> Result<Vec<StoredCiphertext>, DbError> {
    let rows = sqlx::query!(
        "SELECT id, user_id, country, bank, access, ciphertext FROM tokens
         WHERE is_valid AND key_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        key_id,
        after,
        limit
    )
    .fetch_all(pool)
    .await?;
    let secrets = rows.into_iter().map(|row| {
        Ok(StoredCiphertext {
            id: row.id,
            combination: read_combination(row.user_id, &row.country, row.bank, row.access)?,
            ciphertext: row.ciphertext,
        })
    });
    secrets.collect()
}

/// Puts the new in the place of the old, where the old still stands: a token that has ended stays
/// empty, another's change wins. Returns how many it replaced.
pub async fn replace_ciphertexts(
    pool: &PgPool,
    secrets: &[(StoredCiphertext, EncryptedToken)],
) -> Result<u64, DbError> {
    let column = |of: fn(&(StoredCiphertext, EncryptedToken)) -> &[u8]| -> Vec<Vec<u8>> {
        secrets.iter().map(|pair| of(pair).to_vec()).collect()
    };
    let users: Vec<String> = secrets
        .iter()
        .map(|(old, _)| String::from(&*old.combination.user_id))
        .collect();
    let ids: Vec<Uuid> = secrets.iter().map(|(old, _)| old.id).collect();
    let keys: Vec<String> = secrets.iter().map(|(_, new)| new.key_id.clone()).collect();
    // Who waits for no lock cannot deadlock with those who end the same tokens in another order.
    let done = sqlx::query!(
        "WITH new AS (
             SELECT * FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::bytea[], $5::text[])
                 AS new (user_id, id, old, ciphertext, key_id)
         ), locked AS (
             SELECT n.* FROM tokens t JOIN new n ON t.user_id = n.user_id AND t.id = n.id
             WHERE t.is_valid AND t.ciphertext = n.old
             FOR UPDATE OF t SKIP LOCKED
         )
         UPDATE tokens t SET ciphertext = l.ciphertext, key_id = l.key_id
         FROM locked l
         WHERE t.user_id = l.user_id AND t.id = l.id AND t.is_valid AND t.ciphertext = l.old",
        &users,
        &ids,
        &column(|(old, _)| &old.ciphertext),
        &column(|(_, new)| &new.bytes),
        &keys,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Writes the `keys.rotated` event.
pub async fn insert_keys_rotated(
    pool: &PgPool,
    actor: &str,
    key_id: &str,
    rotated: u64,
    failed: u64,
) -> Result<(), DbError> {
    let detail =
        serde_json::json!({ "actor": actor, "key": key_id, "rotated": rotated, "failed": failed });
    sqlx::query!(
        "INSERT INTO audit_events (id, occurred_at, kind, detail) VALUES ($1, clock_timestamp(), $2, $3)",
        Uuid::now_v7(),
        EventKind::KeysRotated.name(),
        detail,
    )
    .execute(pool)
    .await?;
    Ok(())
}
