//! Reads and writes for the rotation of token encryption keys.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::DbError;
use super::distribution::change_unlocked;
use super::standalone_event::insert_event;
use super::tokens::read_combination;
use crate::crypto::EncryptedToken;
use crate::model::{Combination, EventKind};

/// An encrypted token string, with the row data that decryption needs.
#[derive(Debug)]
pub struct StoredCiphertext {
    /// The id of the token.
    pub id: Uuid,
    /// The combination of the token.
    pub combination: Combination,
    /// The encrypted token string.
    pub ciphertext: Vec<u8>,
}

/// Returns the check value of `FINGERPRINT_KEY`.
pub async fn find_check_value(connection: &mut PgConnection) -> Result<Option<String>, DbError> {
    let value = sqlx::query_scalar!("SELECT fingerprint FROM key_check");
    Ok(value.fetch_optional(connection).await?)
}

/// Stores the check value of `FINGERPRINT_KEY`, unless there is one.
pub async fn insert_check_value(connection: &mut PgConnection, value: &str) -> Result<(), DbError> {
    let insert = sqlx::query!(
        "INSERT INTO key_check (fingerprint) VALUES ($1) ON CONFLICT DO NOTHING",
        value
    );
    insert.execute(connection).await?;
    Ok(())
}

/// Counts the valid tokens per encryption key, except those under `key_id`.
pub async fn count_under_other_keys(
    connection: &mut PgConnection,
    key_id: &str,
) -> Result<BTreeMap<String, i64>, DbError> {
    // Two ranges of the index. `<>` would scan the whole index.
    let rows = sqlx::query!(
        r#"SELECT key_id AS "key_id!", count(*) AS "count!" FROM tokens WHERE is_valid AND key_id < $1 GROUP BY 1
           UNION ALL
           SELECT key_id, count(*) FROM tokens WHERE is_valid AND key_id > $1 GROUP BY 1"#,
        key_id
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.key_id, row.count))
        .collect())
}

/// Lists at most `limit` tokens encrypted under a key, in order of id, after the id `after`.
pub async fn list_tokens_under_key(
    connection: &mut PgConnection,
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
    .fetch_all(connection)
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

/// Replaces ciphertexts that are unchanged since they were read, and returns how many it replaced.
///
/// A token invalidated or expired meanwhile stays empty. A ciphertext that another run replaced stays as it is.
pub async fn replace_ciphertexts(
    connection: &mut PgConnection,
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
    // Skips locked rows instead of waiting for them. It therefore cannot deadlock with an invalidation that locks the
    // same tokens in another order.
    let done = change_unlocked!(
        connection,
        query,
        execute,
        "WITH new AS (
             SELECT * FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::bytea[], $5::text[])
                 AS new (user_id, id, old, ciphertext, key_id)
         ), locked AS (
             SELECT n.* FROM tokens t JOIN new n ON t.user_id = n.user_id AND t.id = n.id
             WHERE t.is_valid AND t.ciphertext = n.old",
        ")
         UPDATE tokens t SET ciphertext = l.ciphertext, key_id = l.key_id
         FROM locked l
         WHERE t.user_id = l.user_id AND t.id = l.id AND t.is_valid AND t.ciphertext = l.old",
        &users,
        &ids,
        &column(|(old, _)| &old.ciphertext),
        &column(|(_, new)| &new.bytes),
        &keys,
    );
    Ok(done.rows_affected())
}

/// Inserts the `keys.rotated` event.
pub async fn insert_keys_rotated(
    connection: &mut PgConnection,
    actor: &str,
    key_id: &str,
    rotated: u64,
    failed: u64,
) -> Result<(), DbError> {
    let detail = json!({ "actor": actor, "key": key_id, "rotated": rotated, "failed": failed });
    insert_event(connection, EventKind::KeysRotated, None, detail).await
}
