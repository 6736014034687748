//! Finds which records an id belongs to.

use sqlx::PgConnection;
use uuid::Uuid;

use super::DbError;
use crate::model::Fingerprint;

/// The ids to search for. An absent id matches nothing. Has no `Debug`, because an unknown text may be a secret.
#[derive(Clone, Default)]
pub struct SearchIds {
    /// The id of a user.
    pub user_id: Option<String>,
    /// The id of a token.
    pub token_id: Option<Uuid>,
    /// The id of a request.
    pub request_id: Option<String>,
    /// The fingerprint of a token string.
    pub fingerprint: Option<Fingerprint>,
    /// The API key of a client.
    pub api_key: Option<String>,
}

/// The ids that are on record.
#[derive(Debug, Default)]
pub struct RecordedIds {
    /// The user has a token, a mint or an event other than the view of a list.
    pub has_user: bool,
    /// The token has a record or an event.
    pub has_token: bool,
    /// The request has an event.
    pub has_request: bool,
    /// The fingerprint has a token record or an event.
    pub has_fingerprint: bool,
    /// The newest token record with the fingerprint.
    pub token_of_fingerprint: Option<Uuid>,
    /// A client has the API key.
    pub has_client: bool,
}

/// Finds which of the ids are on record.
///
/// Each part of the statement reads the first entries of one index. Many rows can have the same user or request. With
/// `= $1`, the planner could scan the table for them. Only one index returns the rows in the order of the part.
pub async fn find_recorded_ids(
    connection: &mut PgConnection,
    ids: &SearchIds,
) -> Result<RecordedIds, DbError> {
    let fingerprint = ids.fingerprint.map(|fingerprint| fingerprint.to_string());
    // A view of a list is an event of the user it asks for, who may be unknown. A monitor can cause many of them, so only
    // the first 1,000 events of the user are read.
    let rows = sqlx::query!(
        r#"(SELECT 'user' AS "what!", NULL::uuid AS token_id FROM tokens
            WHERE user_id = ANY(ARRAY[$1::text]) ORDER BY user_id, issued_at, id LIMIT 1)
           UNION ALL
           (SELECT 'user', NULL FROM mints WHERE user_id = ANY(ARRAY[$1]) ORDER BY user_id, id LIMIT 1)
           UNION ALL
           (SELECT 'user', NULL
            FROM (SELECT kind FROM audit_events
                  WHERE user_id = ANY(ARRAY[$1]) ORDER BY user_id, occurred_at, id LIMIT 1000) e
            WHERE kind <> 'token.read' LIMIT 1)
           UNION ALL
           (SELECT 'token', NULL FROM tokens WHERE id = $2 LIMIT 1)
           UNION ALL
           (SELECT 'token', NULL FROM audit_events WHERE kind <> 'token.reused' AND token_id = $2 LIMIT 1)
           UNION ALL
           (SELECT 'request', NULL FROM audit_events
            WHERE request_id = ANY(ARRAY[$3::text]) ORDER BY request_id, occurred_at, id LIMIT 1)
           UNION ALL
           (SELECT 'fingerprint', id FROM tokens WHERE fingerprint = $4 ORDER BY issued_at DESC LIMIT 1)
           UNION ALL
           (SELECT 'fingerprint', NULL FROM audit_events
            WHERE kind <> 'token.reused' AND fingerprint = $4 LIMIT 1)
           UNION ALL
           (SELECT 'client', NULL FROM clients WHERE api_key = $5)"#,
        ids.user_id,
        ids.token_id,
        ids.request_id,
        fingerprint,
        ids.api_key,
    );
    let mut found = RecordedIds::default();
    for row in rows.fetch_all(connection).await? {
        match row.what.as_str() {
            "user" => found.has_user = true,
            "token" => found.has_token = true,
            "request" => found.has_request = true,
            "fingerprint" => {
                found.has_fingerprint = true;
                found.token_of_fingerprint = found.token_of_fingerprint.or(row.token_id);
            }
            _ => found.has_client = true,
        }
    }
    Ok(found)
}
