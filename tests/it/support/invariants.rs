//! Invariants that hold in the database after every test.

use sqlx::{Connection, PgConnection};

/// A description and a query for each violation. Each query selects the offending rows and must return none.
const VIOLATIONS: [(&str, &str); 7] = [
    (
        "I1: a token without the event of its mint",
        "SELECT t.id::text FROM tokens t WHERE NOT EXISTS (
             SELECT FROM audit_events e WHERE e.user_id = t.user_id AND e.token_id = t.id AND e.kind = 'token.minted')",
    ),
    (
        "I2: a token without an earlier mint record",
        "SELECT t.id::text FROM tokens t WHERE NOT EXISTS (
             SELECT FROM mints m WHERE m.user_id = t.user_id AND m.id = t.id AND m.started_at <= t.issued_at)",
    ),
    (
        "I2: a failed or unknown mint without an event",
        "SELECT m.id::text FROM mints m WHERE m.outcome IN ('failed', 'unknown') AND NOT EXISTS (
             SELECT FROM audit_events e WHERE e.user_id = m.user_id AND e.token_id = m.id
             AND e.kind IN ('token.mint_failed', 'token.mint_unknown'))",
    ),
    (
        "I2: a mint without a call has a token or an unknown outcome",
        "SELECT id::text FROM mints WHERE outcome IN ('minted', 'unknown') AND started_attempts = 0",
    ),
    (
        "more than one token of a combination can be handed out",
        "SELECT min(user_id) FROM tokens WHERE is_valid AND superseded_at IS NULL AND ends_at > clock_timestamp()
         GROUP BY user_id, country, bank, access HAVING count(*) > 1",
    ),
    (
        "a slot points to a token of another combination",
        "SELECT s.user_id FROM slots s JOIN tokens t ON t.id = s.token_id
         WHERE (s.user_id, s.country, s.bank, s.access) IS DISTINCT FROM (t.user_id, t.country, t.bank, t.access)",
    ),
    (
        "a slot and its token have different end times",
        "SELECT s.user_id FROM slots s JOIN tokens t ON t.user_id = s.user_id AND t.id = s.token_id
         WHERE s.usable_until <> '-infinity' AND s.usable_until <> t.ends_at",
    ),
];

/// Returns the violated invariants of a database, each with its first offending row.
pub async fn find_violations(url: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut violations = Vec::new();
    for (description, query) in VIOLATIONS {
        let row: Option<String> = sqlx::query_scalar(query)
            .fetch_optional(&mut connection)
            .await
            .unwrap();
        violations.extend(row.map(|row| format!("{description}: {row}")));
    }
    violations
}
