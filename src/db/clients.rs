//! API keys.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{Client, EventKind, Scope, ScopeSet};

/// The client of that key, disabled ones too, and the database's clock at the reading.
pub async fn find_client(
    pool: &PgPool,
    api_key: &str,
) -> Result<(Option<Client>, DateTime<Utc>), DbError> {
    let row = sqlx::query!(
        r#"SELECT clock_timestamp() AS "now!", c.api_key AS "api_key?", c.name AS "name?",
                  c.secret_sha256 AS "secret_sha256?", c.scopes AS "scopes?", c.is_enabled AS "is_enabled?",
                  CASE WHEN c.previous_until > clock_timestamp() THEN c.previous_secret_sha256 END AS previous_secret_sha256
           FROM (VALUES (1)) one LEFT JOIN clients c ON c.api_key = $1"#,
        api_key
    )
    .fetch_one(pool)
    .await?;
    let client = match (
        row.api_key,
        row.name,
        row.secret_sha256,
        row.scopes,
        row.is_enabled,
    ) {
        (Some(api_key), Some(name), Some(secret_sha256), Some(scopes), Some(is_enabled)) => {
            Some(Client {
                api_key,
                name,
                secret_sha256,
                previous_secret_sha256: row.previous_secret_sha256,
                scopes: known_scopes(&scopes),
                is_enabled,
            })
        }
        _ => None,
    };
    Ok((client, row.now))
}

/// Every client, by name.
pub async fn list_clients(pool: &PgPool) -> Result<Vec<Client>, DbError> {
    let rows = sqlx::query!(
        "SELECT api_key, name, secret_sha256, scopes, is_enabled,
                CASE WHEN previous_until > clock_timestamp() THEN previous_secret_sha256 END AS previous_secret_sha256
         FROM clients ORDER BY name, api_key"
    )
    .fetch_all(pool)
    .await?;
    let clients = rows.into_iter().map(|row| Client {
        api_key: row.api_key,
        name: row.name,
        secret_sha256: row.secret_sha256,
        previous_secret_sha256: row.previous_secret_sha256,
        scopes: known_scopes(&row.scopes),
        is_enabled: row.is_enabled,
    });
    Ok(clients.collect())
}

/// Creates a client and its `client.created` event; false if the key is taken.
pub async fn insert_client(pool: &PgPool, client: &Client, actor: &str) -> Result<bool, DbError> {
    let scopes: Vec<String> = client
        .scopes
        .iter()
        .map(|scope| scope.name().to_owned())
        .collect();
    let detail = serde_json::json!({ "actor": actor, "name": client.name, "scopes": scopes });
    let done = sqlx::query!(
        "WITH client AS (
             INSERT INTO clients (api_key, name, secret_sha256, scopes)
             VALUES ($1, $2, $3, $4) ON CONFLICT (api_key) DO NOTHING RETURNING api_key
         )
         INSERT INTO audit_events (id, occurred_at, kind, client, detail)
         SELECT $5, clock_timestamp(), $6, api_key, $7 FROM client",
        client.api_key,
        client.name,
        client.secret_sha256,
        &scopes,
        Uuid::now_v7(),
        EventKind::ClientCreated.name(),
        detail,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Disables a client, with a `client.disabled` event. Saying it twice is fine and changes nothing;
/// `None` if there is no such key, else whether this call did it.
pub async fn disable_client(
    pool: &PgPool,
    api_key: &str,
    actor: &str,
) -> Result<Option<bool>, DbError> {
    let done = sqlx::query!(
        "WITH client AS (
             UPDATE clients SET is_enabled = false, disabled_at = clock_timestamp()
             WHERE api_key = $1 AND is_enabled RETURNING api_key
         )
         INSERT INTO audit_events (id, occurred_at, kind, client, detail)
         SELECT $2, clock_timestamp(), $3, api_key, $4 FROM client",
        api_key,
        Uuid::now_v7(),
        EventKind::ClientDisabled.name(),
        serde_json::json!({ "actor": actor }),
    )
    .execute(pool)
    .await?;
    if done.rows_affected() == 1 {
        return Ok(Some(true));
    }
    let (client, _) = find_client(pool, api_key).await?;
    Ok(client.map(|_| false))
}

/// Gives a client a new secret, with a `client.rotated` event; the one that it had stays good for
/// `grace`, any older one does not. Returns the client, `None` if there is none that is enabled.
pub async fn rotate_client(
    pool: &PgPool,
    api_key: &str,
    secret_sha256: &[u8],
    grace: Duration,
    actor: &str,
) -> Result<Option<Client>, DbError> {
    // Without a grace the old one is gone: a clock that steps back does not revive it.
    let done = sqlx::query!(
        "WITH client AS (
             UPDATE clients
             SET secret_sha256 = $2, previous_secret_sha256 = CASE WHEN $3::float8 > 0 THEN secret_sha256 END,
                 previous_until = clock_timestamp() + make_interval(secs => $3)
             WHERE api_key = $1 AND is_enabled RETURNING api_key
         )
         INSERT INTO audit_events (id, occurred_at, kind, client, detail)
         SELECT $4, clock_timestamp(), $5, api_key, $6 FROM client",
        api_key,
        secret_sha256,
        grace.as_secs_f64(),
        Uuid::now_v7(),
        EventKind::ClientRotated.name(),
        serde_json::json!({ "actor": actor, "graceSeconds": grace.as_secs() }),
    )
    .execute(pool)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    Ok(find_client(pool, api_key).await?.0)
}

/// Scopes of a later version are none of this one's.
fn known_scopes(names: &[String]) -> ScopeSet {
    names
        .iter()
        .filter_map(|name| Scope::from_name(name))
        .collect()
}
