//! What must hold in any database that the service has worked on, whatever a test did to it.

use sqlx::{Connection, PgConnection};

/// Each query names what breaks a promise; all must come back empty.
const BREACHES: [(&str, &str); 6] = [
    (
        "I1: a token without the event of its mint",
        "SELECT t.id::text FROM tokens t WHERE NOT EXISTS (
             SELECT FROM audit_events e WHERE e.user_id = t.user_id AND e.token_id = t.id AND e.kind = 'token.minted')",
    ),
    (
        "I2: a token without the intent before it",
        "SELECT t.id::text FROM tokens t WHERE NOT EXISTS (
             SELECT FROM mints m WHERE m.user_id = t.user_id AND m.id = t.id AND m.started_at <= t.issued_at)",
    ),
    (
        "I2: a mint that gave no token and left no event",
        "SELECT m.id::text FROM mints m WHERE m.outcome IN ('failed', 'unknown') AND NOT EXISTS (
             SELECT FROM audit_events e WHERE e.user_id = m.user_id AND e.token_id = m.id
             AND e.kind IN ('token.mint_failed', 'token.mint_unknown'))",
    ),
    (
        "two tokens of one combination may be handed out",
        "SELECT min(user_id) FROM tokens WHERE is_valid AND superseded_at IS NULL AND ends_at > clock_timestamp()
         GROUP BY user_id, country, bank, access HAVING count(*) > 1",
    ),
    (
        "a slot points to a token of another combination",
        "SELECT s.user_id FROM slots s JOIN tokens t ON t.id = s.token_id
         WHERE (s.user_id, s.country, s.bank, s.access) IS DISTINCT FROM (t.user_id, t.country, t.bank, t.access)",
    ),
    (
        "a slot's pointer says another end than its token",
        "SELECT s.user_id FROM slots s JOIN tokens t ON t.user_id = s.user_id AND t.id = s.token_id
         WHERE s.usable_until <> '-infinity' AND s.usable_until <> t.ends_at",
    ),
];

/// The promises broken in that database, with the first row that breaks each.
pub async fn breaches(url: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut found = Vec::new();
    for (promise, query) in BREACHES {
        let row: Option<String> = sqlx::query_scalar(query)
            .fetch_optional(&mut connection)
            .await
            .unwrap();
        found.extend(row.map(|row| format!("{promise}: {row}")));
    }
    found
}
