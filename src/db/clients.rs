//! Reads and writes API clients.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use ipnet::IpNet;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::DbError;
use crate::model::{
    Client, ClientChange, ClientLimits, ClientRecord, ClientRefusal, ClientSettings, EventKind,
    Operator, Origin, Scope,
};

/// The hashes of the secrets of a key. A hash of zeros, which no known secret has, stands in for a missing one.
#[derive(Debug)]
pub struct SecretHashes {
    /// True if a client has the key.
    pub is_known: bool,
    /// The hash of the current secret.
    pub current: Vec<u8>,
    /// The hash of the previous secret while it is accepted.
    pub previous: Vec<u8>,
}

/// Reads the hashes of the secrets of a key. Also returns the database's clock at the time of the read.
///
/// The row has the same size for every key, so that an unknown key takes as long as a wrong secret. A previous secret is
/// accepted until its end by the database's clock, or by `lower_bound` if that is later.
pub async fn find_secret_hashes(
    connection: &mut PgConnection,
    api_key: &str,
    lower_bound: DateTime<Utc>,
) -> Result<(SecretHashes, DateTime<Utc>), DbError> {
    let row = sqlx::query!(
        r#"SELECT t.now AS "now!", c.api_key IS NOT NULL AS "is_known!",
                  coalesce(c.secret_sha256, decode(repeat('00', 32), 'hex')) AS "current!",
                  coalesce(CASE WHEN c.previous_until > greatest(t.now, $2) THEN c.previous_secret_sha256 END,
                           decode(repeat('00', 32), 'hex')) AS "previous!"
           FROM (SELECT clock_timestamp() AS now OFFSET 0) t LEFT JOIN clients c ON c.api_key = $1"#,
        api_key,
        lower_bound,
    )
    .fetch_one(connection)
    .await?;
    let hashes = SecretHashes {
        is_known: row.is_known,
        current: row.current,
        previous: row.previous,
    };
    Ok((hashes, row.now))
}

/// Finds the one client that a condition selects, unless it is disabled or has expired. `$1` is the lower bound of the
/// clock by which it expires.
macro_rules! find_enabled_client {
    ($connection:expr, $condition:literal, $lower_bound:expr, $value:expr) => {{
        let row = sqlx::query!(
            r#"SELECT api_key, name, secret_sha256, scopes, mints_per_hour, requests_per_second, allow_from,
                      coalesce(last_used_on >= (t.now AT TIME ZONE 'UTC')::date, false) AS "is_use_recorded!"
               FROM clients, (SELECT clock_timestamp() AS now OFFSET 0) t
               WHERE is_enabled AND coalesce(expires_at > greatest(t.now, $1), true) AND "# + $condition,
            $lower_bound,
            $value,
        );
        let row = row.fetch_optional($connection).await?;
        Ok(row.map(|row| Client {
            api_key: row.api_key,
            name: row.name,
            secret_sha256: row.secret_sha256,
            scopes: known_scopes(&row.scopes),
            limits: ClientLimits {
                mints_per_hour: row.mints_per_hour,
                requests_per_second: row.requests_per_second,
                allow_from: row.allow_from.as_deref().map(networks),
            },
            is_use_recorded: row.is_use_recorded,
        }))
    }};
}

/// Finds the enabled client with a key.
pub async fn find_client(
    connection: &mut PgConnection,
    api_key: &str,
    lower_bound: DateTime<Utc>,
) -> Result<Option<Client>, DbError> {
    find_enabled_client!(connection, "api_key = $2", lower_bound, api_key)
}

/// Finds the enabled client of an OIDC subject.
pub async fn find_client_by_subject(
    connection: &mut PgConnection,
    subject: &str,
    lower_bound: DateTime<Utc>,
) -> Result<Option<Client>, DbError> {
    find_enabled_client!(connection, "oidc_subject = $2", lower_bound, subject)
}

/// A row of `clients` without the secrets.
struct Row {
    api_key: String,
    name: String,
    scopes: Vec<String>,
    mints_per_hour: Option<i32>,
    requests_per_second: Option<i32>,
    allow_from: Option<Vec<String>>,
    expires_at: Option<DateTime<Utc>>,
    oidc_subject: Option<String>,
    is_enabled: bool,
    created_at: DateTime<Utc>,
    rotated_at: Option<DateTime<Utc>>,
    last_used_on: Option<NaiveDate>,
}

impl From<Row> for ClientRecord {
    fn from(row: Row) -> Self {
        ClientRecord {
            api_key: row.api_key,
            settings: ClientSettings {
                name: row.name,
                scopes: known_scopes(&row.scopes),
                limits: ClientLimits {
                    mints_per_hour: row.mints_per_hour,
                    requests_per_second: row.requests_per_second,
                    allow_from: row.allow_from.as_deref().map(networks),
                },
                expires_at: row.expires_at,
                oidc_subject: row.oidc_subject,
            },
            is_enabled: row.is_enabled,
            created_at: row.created_at,
            rotated_at: row.rotated_at,
            last_used_on: row.last_used_on,
        }
    }
}

macro_rules! select_clients {
    ($rest:literal $(, $value:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT api_key, name, scopes, mints_per_hour, requests_per_second, allow_from, expires_at, oidc_subject,
                      is_enabled, created_at, rotated_at, last_used_on
               FROM clients "# + $rest
            $(, $value)*
        )
    };
}

/// Lists up to `limit` clients in the order of their keys, from the one after the key `after` on.
pub async fn list_clients(
    connection: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<ClientRecord>, DbError> {
    let rows = select_clients!(
        "WHERE $1::text IS NULL OR api_key > $1 ORDER BY api_key LIMIT $2",
        after,
        limit
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().map(ClientRecord::from).collect())
}

/// Finds a client by its key, without its secrets.
pub async fn find_client_record(
    connection: &mut PgConnection,
    api_key: &str,
) -> Result<Option<ClientRecord>, DbError> {
    let row = select_clients!("WHERE api_key = $1", api_key);
    Ok(row.fetch_optional(connection).await?.map(Into::into))
}

/// The record of a client after a change, or the reason why nothing changed.
pub type Changed = Result<ClientRecord, ClientRefusal>;

/// Returns from a function with a [`ClientRefusal`]. The transaction is rolled back.
macro_rules! accept {
    ($checked:expr) => {
        match $checked {
            Ok(accepted) => accepted,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

/// Inserts a client and its `client.created` event. The change must have a name and scopes.
pub async fn insert_client(
    connection: &mut PgConnection,
    api_key: &str,
    secret_sha256: &[u8],
    change: ClientChange,
    operator: &Operator,
) -> Result<Changed, DbError> {
    let mut tx = connection.begin().await?;
    accept!(lock_names(&mut tx, &change, api_key).await?);
    let mut settings = ClientSettings::default();
    change.apply(&mut settings, find_now(&mut tx).await?);
    let scopes = scope_names(&settings.scopes);
    accept!(check_scopes(operator, &scopes));
    let networks = network_names(&settings.limits);
    let inserted = sqlx::query!(
        "INSERT INTO clients (api_key, name, secret_sha256, scopes, mints_per_hour, requests_per_second, allow_from,
                              expires_at, oidc_subject)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (api_key) DO NOTHING",
        api_key,
        settings.name,
        secret_sha256,
        &scopes,
        settings.limits.mints_per_hour,
        settings.limits.requests_per_second,
        networks.as_deref(),
        settings.expires_at,
        settings.oidc_subject,
    );
    if inserted.execute(&mut *tx).await?.rows_affected() == 0 {
        return Ok(Err(ClientRefusal::KeyTaken(api_key.to_owned())));
    }
    let detail = json!({ "after": settings });
    record_change(&mut tx, EventKind::ClientCreated, api_key, operator, detail).await?;
    finish(tx, api_key).await
}

/// Changes the settings of a client and inserts its `client.updated` event. Inserts none if no value changes.
pub async fn update_client(
    connection: &mut PgConnection,
    api_key: &str,
    change: ClientChange,
    operator: &Operator,
) -> Result<Changed, DbError> {
    let mut tx = connection.begin().await?;
    accept!(lock_names(&mut tx, &change, api_key).await?);
    let row = accept!(lock_client(&mut tx, api_key, operator).await?);
    // Scopes that only a later version knows stay, unless the change sets the scopes.
    let scopes = match &change.scopes {
        Some(scopes) => scope_names(scopes),
        None => row.scopes.clone(),
    };
    accept!(check_scopes(operator, &scopes));
    let before = ClientRecord::from(row).settings;
    let mut after = before.clone();
    change.apply(&mut after, find_now(&mut tx).await?);
    let networks = network_names(&after.limits);
    let ends_secret = after.oidc_subject.is_some() && before.oidc_subject.is_none();
    let unknown_secret = ends_secret.then(random_hash);
    sqlx::query!(
        "UPDATE clients SET name = $2, scopes = $3, mints_per_hour = $4, requests_per_second = $5, allow_from = $6,
                            expires_at = $7, oidc_subject = $8, secret_sha256 = coalesce($9, secret_sha256),
                            previous_secret_sha256 = CASE WHEN $9 IS NULL THEN previous_secret_sha256 END
         WHERE api_key = $1",
        api_key,
        after.name,
        &scopes,
        after.limits.mints_per_hour,
        after.limits.requests_per_second,
        networks.as_deref(),
        after.expires_at,
        after.oidc_subject,
        unknown_secret.as_ref().map(|hash| &hash[..]),
    )
    .execute(&mut *tx)
    .await?;
    if before != after {
        let detail = json!({ "before": before, "after": after });
        record_change(&mut tx, EventKind::ClientUpdated, api_key, operator, detail).await?;
    }
    finish(tx, api_key).await
}

/// Gives a client a new secret and inserts its `client.rotated` event.
///
/// The previous secret stays valid for `grace`. Any older secret becomes invalid. `expires_in` also sets the expiry.
pub async fn rotate_client(
    connection: &mut PgConnection,
    api_key: &str,
    secret_sha256: &[u8],
    grace: Duration,
    expires_in: Option<Duration>,
    operator: &Operator,
) -> Result<Changed, DbError> {
    let mut tx = connection.begin().await?;
    let row = accept!(lock_client(&mut tx, api_key, operator).await?);
    let before = ClientRecord::from(row);
    if before.settings.oidc_subject.is_some() {
        return Ok(Err(ClientRefusal::NoSecret(api_key.to_owned())));
    }
    let now = find_now(&mut tx).await?;
    let mut after = before.settings.clone();
    let change = ClientChange {
        expires_in: expires_in.map(Some),
        ..ClientChange::default()
    };
    change.apply(&mut after, now);
    // Without a grace period the previous secret is deleted, so that a database clock that steps back does not make it
    // valid again.
    sqlx::query!(
        "UPDATE clients
         SET secret_sha256 = $2, previous_secret_sha256 = CASE WHEN $3::float8 > 0 THEN secret_sha256 END,
             previous_until = $4::timestamptz + make_interval(secs => $3), rotated_at = $4, expires_at = $5
         WHERE api_key = $1",
        api_key,
        secret_sha256,
        grace.as_secs_f64(),
        now,
        after.expires_at,
    )
    .execute(&mut *tx)
    .await?;
    let times = |rotated_at, expires_at| json!({"rotatedAt": rotated_at, "expiresAt": expires_at});
    let detail = json!({
        "graceSeconds": grace.as_secs(),
        "before": times(before.rotated_at, before.settings.expires_at),
        "after": times(Some(now), after.expires_at),
    });
    record_change(&mut tx, EventKind::ClientRotated, api_key, operator, detail).await?;
    finish(tx, api_key).await
}

/// Disables a client and inserts its `client.disabled` event. Changes nothing if the client is disabled already.
pub async fn disable_client(
    connection: &mut PgConnection,
    api_key: &str,
    operator: &Operator,
) -> Result<Changed, DbError> {
    let mut tx = connection.begin().await?;
    let disabled = sqlx::query!(
        "UPDATE clients SET is_enabled = false, disabled_at = statement_timestamp() WHERE api_key = $1 AND is_enabled",
        api_key
    );
    if disabled.execute(&mut *tx).await?.rows_affected() == 1 {
        let detail = json!({"before": {"isEnabled": true}, "after": {"isEnabled": false}});
        record_change(
            &mut tx,
            EventKind::ClientDisabled,
            api_key,
            operator,
            detail,
        )
        .await?;
    }
    finish(tx, api_key).await
}

/// Records that these clients are used today, in UTC.
pub async fn record_use(connection: &mut PgConnection, api_keys: &[String]) -> Result<(), DbError> {
    // One statement per client: two replicas that record several clients cannot wait for each other.
    for api_key in api_keys {
        let record = sqlx::query!(
            "UPDATE clients SET last_used_on = (statement_timestamp() AT TIME ZONE 'UTC')::date
             WHERE api_key = $1 AND last_used_on IS DISTINCT FROM (statement_timestamp() AT TIME ZONE 'UTC')::date",
            api_key
        );
        record.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Returns the hash of a secret that nobody knows.
fn random_hash() -> [u8; 32] {
    let mut hash = [0; 32];
    getrandom::fill(&mut hash).expect("the operating system returns random bytes");
    hash
}

/// Returns the seconds until the first enabled client expires, or `None` if none ever does. Negative if one has expired.
pub async fn find_earliest_expiry(connection: &mut PgConnection) -> Result<Option<f64>, DbError> {
    let seconds = sqlx::query_scalar!(
        r#"SELECT extract(epoch FROM min(expires_at) - clock_timestamp())::float8 FROM clients WHERE is_enabled"#
    );
    Ok(seconds.fetch_one(connection).await?)
}

/// Locks the names and subjects of all clients until the transaction ends, and returns a refusal if another client has
/// the new one. Does nothing for a change of other settings.
///
/// Names have no unique index, because earlier versions created duplicates. A disabled client keeps neither.
async fn lock_names(
    tx: &mut PgConnection,
    change: &ClientChange,
    api_key: &str,
) -> Result<Result<(), ClientRefusal>, DbError> {
    let subject = change.oidc_subject.as_ref().and_then(Option::as_ref);
    if change.name.is_none() && subject.is_none() {
        return Ok(Ok(()));
    }
    // The lock is a statement of its own: the next one sees what the last holder of the lock committed.
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtext('token-vendor: names of clients'))")
        .execute(&mut *tx)
        .await?;
    let other = sqlx::query!(
        r#"SELECT api_key, name = $1 AS "has_name: bool" FROM clients
           WHERE (name = $1 OR oidc_subject = $3) AND api_key <> $2 AND is_enabled ORDER BY 2 DESC, 1 LIMIT 1"#,
        change.name,
        api_key,
        subject,
    );
    let other = other.fetch_optional(&mut *tx).await?;
    Ok(other.map_or(Ok(()), |other| match other.has_name {
        Some(true) => Err(ClientRefusal::NameTaken(other.api_key)),
        _ => Err(ClientRefusal::SubjectTaken(other.api_key)),
    }))
}

/// Locks the row of an enabled client whose scopes the operator holds.
async fn lock_client(
    tx: &mut PgConnection,
    api_key: &str,
    operator: &Operator,
) -> Result<Result<Row, ClientRefusal>, DbError> {
    let row = select_clients!("WHERE api_key = $1 FOR UPDATE", api_key);
    let Some(row) = row.fetch_optional(&mut *tx).await? else {
        return Ok(Err(ClientRefusal::Unknown(api_key.to_owned())));
    };
    if !row.is_enabled {
        return Ok(Err(ClientRefusal::Disabled(api_key.to_owned())));
    }
    accept!(check_scopes(operator, &row.scopes));
    Ok(Ok(row))
}

/// Returns the time of a change, which is that of an event: a step back of the clock does not move it.
async fn find_now(tx: &mut PgConnection) -> Result<DateTime<Utc>, DbError> {
    let now = sqlx::query_scalar!(r#"SELECT event_time() AS "now!""#);
    Ok(now.fetch_one(tx).await?)
}

/// Returns a refusal if the operator lacks one of the scopes. It would otherwise gain the scope with the secret.
fn check_scopes(operator: &Operator, scopes: &[String]) -> Result<(), ClientRefusal> {
    let Some(held) = &operator.scopes else {
        return Ok(());
    };
    let is_held = |name: &String| Scope::from_name(name).is_some_and(|scope| held.contains(&scope));
    match scopes.iter().find(|name| !is_held(name)) {
        None => Ok(()),
        Some(missing) => Err(ClientRefusal::ScopeNotHeld(missing.clone())),
    }
}

/// Inserts the event of a change of a client.
async fn record_change(
    tx: &mut PgConnection,
    kind: EventKind,
    api_key: &str,
    operator: &Operator,
    mut detail: Value,
) -> Result<(), DbError> {
    detail["apiKey"] = api_key.into();
    let caller = match &operator.origin {
        Origin::Request(caller) => Some(caller),
        Origin::Actor(actor) => {
            detail["actor"] = actor.as_str().into();
            None
        }
    };
    sqlx::query!(
        "INSERT INTO audit_events (kind, client, request_id, source_ip, detail) VALUES ($1, $2, $3, $4, $5)",
        kind.name(),
        caller.map_or(api_key, |caller| &caller.client),
        caller.map(|caller| &*caller.request_id),
        caller.and_then(|caller| caller.source_ip.as_deref()),
        detail,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Commits a change and returns the client as it is then.
async fn finish(
    mut tx: sqlx::Transaction<'_, sqlx::Postgres>,
    api_key: &str,
) -> Result<Changed, DbError> {
    let record = find_client_record(&mut tx, api_key).await?;
    tx.commit().await?;
    Ok(record.ok_or_else(|| ClientRefusal::Unknown(api_key.to_owned())))
}

/// Drops the scopes that this version does not know.
fn known_scopes(names: &[String]) -> BTreeSet<Scope> {
    names
        .iter()
        .filter_map(|name| Scope::from_name(name))
        .collect()
}

fn scope_names(scopes: &BTreeSet<Scope>) -> Vec<String> {
    scopes.iter().map(|scope| scope.name().to_owned()).collect()
}

/// Drops texts that are no network. A client with only such texts can call from nowhere.
fn networks(texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn network_names(limits: &ClientLimits) -> Option<Vec<String>> {
    let networks = limits.allow_from.as_ref()?;
    Some(networks.iter().map(ToString::to_string).collect())
}
