//! Reads and writes API clients.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgConnection;

use super::DbError;
use crate::model::{Client, EventKind, Scope};

/// Finds a client by its key, even if it is disabled. Also returns the database's clock at the time of the read.
///
/// A previous secret counts until its end by the database's clock, or by `lower_bound` if that is later.
pub async fn find_client(
    connection: &mut PgConnection,
    api_key: &str,
    lower_bound: Option<DateTime<Utc>>,
) -> Result<(Option<Client>, DateTime<Utc>), DbError> {
    find_one_client(connection, Some(api_key), None, lower_bound).await
}

/// Finds the enabled client of an OIDC subject.
pub async fn find_client_by_subject(
    connection: &mut PgConnection,
    subject: &str,
) -> Result<Option<Client>, DbError> {
    Ok(find_one_client(connection, None, Some(subject), None)
        .await?
        .0)
}

/// Finds a client by its key, or the enabled client of a subject.
async fn find_one_client(
    connection: &mut PgConnection,
    api_key: Option<&str>,
    oidc_subject: Option<&str>,
    lower_bound: Option<DateTime<Utc>>,
) -> Result<(Option<Client>, DateTime<Utc>), DbError> {
    let row = sqlx::query!(
        r#"SELECT clock_timestamp() AS "now!", c.api_key AS "api_key?", c.name AS "name?",
                  c.secret_sha256 AS "secret_sha256?", c.scopes AS "scopes?", c.is_enabled AS "is_enabled?",
                  c.oidc_subject,
                  CASE WHEN c.previous_until > greatest(clock_timestamp(), $2)
                       THEN c.previous_secret_sha256 END AS previous_secret_sha256
           FROM (VALUES (1)) one
                LEFT JOIN clients c ON c.api_key = $1 OR c.oidc_subject = $3 AND c.is_enabled"#,
        api_key,
        lower_bound,
        oidc_subject,
    )
    .fetch_one(connection)
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
                oidc_subject: row.oidc_subject,
            })
        }
        _ => None,
    };
    Ok((client, row.now))
}

/// Lists all clients, ordered by name.
pub async fn list_clients(connection: &mut PgConnection) -> Result<Vec<Client>, DbError> {
    let rows = sqlx::query!(
        "SELECT api_key, name, secret_sha256, scopes, is_enabled, oidc_subject,
                CASE WHEN previous_until > clock_timestamp() THEN previous_secret_sha256 END AS previous_secret_sha256
         FROM clients ORDER BY name, api_key"
    )
    .fetch_all(connection)
    .await?;
    let clients = rows.into_iter().map(|row| Client {
        api_key: row.api_key,
        name: row.name,
        secret_sha256: row.secret_sha256,
        previous_secret_sha256: row.previous_secret_sha256,
        scopes: known_scopes(&row.scopes),
        is_enabled: row.is_enabled,
        oidc_subject: row.oidc_subject,
    });
    Ok(clients.collect())
}

/// Runs a change of one client and inserts its event in the same statement. Returns whether it changed a client.
macro_rules! change_client {
    ($connection:expr, $kind:expr, $detail:expr, $change:literal, $($value:expr),+ $(,)?) => {
        sqlx::query!(
            "WITH client AS (" + $change + " RETURNING api_key)
             INSERT INTO audit_events (kind, client, detail)
             SELECT $1, api_key, $2 FROM client",
            $kind.name(),
            $detail,
            $($value),+
        )
        .execute(&mut *$connection)
        .await?
        .rows_affected() == 1
    };
}

/// Inserts a client and its `client.created` event. Returns false if the key or the subject is taken.
pub async fn insert_client(
    connection: &mut PgConnection,
    client: &Client,
    actor: &str,
) -> Result<bool, DbError> {
    let scopes: Vec<String> = client
        .scopes
        .iter()
        .map(|scope| scope.name().to_owned())
        .collect();
    let mut detail = json!({ "actor": actor, "name": client.name, "scopes": scopes });
    if let Some(subject) = &client.oidc_subject {
        detail["oidcSubject"] = subject.as_str().into();
    }
    Ok(change_client!(
        connection,
        EventKind::ClientCreated,
        detail,
        "INSERT INTO clients (api_key, name, secret_sha256, scopes, oidc_subject)
         VALUES ($3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        client.api_key,
        client.name,
        client.secret_sha256,
        &scopes,
        client.oidc_subject,
    ))
}

/// Disables a client and inserts its `client.disabled` event. Changes nothing if the client is disabled already.
/// Returns false if there is no client with this key.
pub async fn disable_client(
    connection: &mut PgConnection,
    api_key: &str,
    actor: &str,
) -> Result<bool, DbError> {
    let is_changed = change_client!(
        connection,
        EventKind::ClientDisabled,
        json!({ "actor": actor }),
        "UPDATE clients SET is_enabled = false, disabled_at = clock_timestamp()
         WHERE api_key = $3 AND is_enabled",
        api_key,
    );
    Ok(is_changed || find_client(connection, api_key, None).await?.0.is_some())
}

/// Gives a client a new secret and inserts its `client.rotated` event.
///
/// The previous secret stays valid for `grace`. Any older secret becomes invalid. Returns the client, or `None` if
/// there is no enabled client with this key.
pub async fn rotate_client(
    connection: &mut PgConnection,
    api_key: &str,
    secret_sha256: &[u8],
    grace: Duration,
    actor: &str,
) -> Result<Option<Client>, DbError> {
    // Without a grace period the previous secret is deleted, so that a database clock that steps back does not make it
    // valid again.
    let is_changed = change_client!(
        connection,
        EventKind::ClientRotated,
        json!({ "actor": actor, "graceSeconds": grace.as_secs() }),
        "UPDATE clients
         SET secret_sha256 = $4, previous_secret_sha256 = CASE WHEN $5::float8 > 0 THEN secret_sha256 END,
             previous_until = clock_timestamp() + make_interval(secs => $5)
         WHERE api_key = $3 AND is_enabled",
        api_key,
        secret_sha256,
        grace.as_secs_f64(),
    );
    if !is_changed {
        return Ok(None);
    }
    Ok(find_client(connection, api_key, None).await?.0)
}

/// Drops the scopes that this version does not know.
fn known_scopes(names: &[String]) -> BTreeSet<Scope> {
    names
        .iter()
        .filter_map(|name| Scope::from_name(name))
        .collect()
}
