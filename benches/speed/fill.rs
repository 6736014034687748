//! Fills a database with any number of tokens and events, with the same contents that the service would write.

use std::fmt::Write;

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use token_vendor::crypto::KeyRing;
use token_vendor::model::{Access, Combination, TokenString};
use uuid::Uuid;

use crate::world::{FINGERPRINT_KEY, TOKEN_KEY};

/// The number of users that the load requests tokens for. They are spread evenly over all tokens.
pub const HOT_USERS: u64 = 10_000;
/// The bank of the hot users' tokens.
const HOT_BANK: &str = "Swedbank";
const COLD_BANK: &str = "Luminor";
/// A token string as long as the provider's.
const TOKEN_STRING: &str = "22URPv4x0DDV8twlQB7C22URPv4x0DDV8twlQB7C";

/// Returns the user id of token `n`. The multiplication keeps the order of user ids unlike that of the tokens.
fn user_id(n: u64) -> String {
    format!("u-{:08x}", (n as u32).wrapping_mul(2_654_435_761))
}

fn is_hot(n: u64, tokens: u64) -> bool {
    n.is_multiple_of((tokens / HOT_USERS).max(1))
}

fn bank(n: u64, tokens: u64) -> &'static str {
    if is_hot(n, tokens) {
        HOT_BANK
    } else {
        COLD_BANK
    }
}

/// Returns one request per line for the tokens of the hot users.
pub fn hot_requests(tokens: u64) -> String {
    let hot = (0..tokens)
        .filter(|n| is_hot(*n, tokens))
        .take(HOT_USERS as usize);
    let mut hot: Vec<_> = hot.collect();
    // The order of neither the table nor an index.
    fastrand::Rng::with_seed(1).shuffle(&mut hot);
    requests(hot.into_iter(), tokens)
}

/// Returns one request per line for every token.
pub fn all_requests(tokens: u64) -> String {
    requests(0..tokens, tokens)
}

fn requests(numbers: impl Iterator<Item = u64>, tokens: u64) -> String {
    numbers.fold(String::new(), |mut lines, n| {
        let (user_id, bank) = (user_id(n), bank(n, tokens));
        let access = r#"{"accounts":true}"#;
        let _ = writeln!(
            lines,
            r#"{{"userId":"{user_id}","country":"LT","bank":"{bank}","access":{access}}}"#
        );
        lines
    })
}

/// Fills an empty database. Drops the indexes first and creates them at the end, which is faster.
pub async fn fill(db: &mut PgConnection, tokens: u64, events: u64) -> Result<()> {
    run(
        db,
        "SET work_mem = '1GB'; SET max_parallel_workers_per_gather = 0",
    )
    .await?;
    let indexes = drop_indexes(db).await?;
    copy_tokens(db, tokens).await?;
    run(db, "INSERT INTO slots (user_id, country, bank, access, token_id, usable_until, minted_seq, lease_epoch, claimed_at)
             SELECT user_id, country, bank, access, id, ends_at, 1, 1, issued_at FROM tokens").await?;
    run(db, "SELECT create_audit_partition(now() - make_interval(months => ago)) FROM generate_series(1, 3) ago").await?;
    // Few users have many events, most users have few. Events of minting and invalidation refer to tokens that are
    // purged by now, each only once. Rows are in the order of time, like those of a real audit log.
    run(db, &format!(
        "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access, token_id, fingerprint)
         SELECT gen_random_uuid(), now() - interval '90 days' * (1 - g.n::float8 / {events}) - interval '1 minute',
                CASE WHEN g.n % 50 = 0 THEN 'token.minted' WHEN g.n % 100 = 1 THEN 'token.invalidated' ELSE 'token.reused' END,
                t.user_id, 'client-' || g.n % 5, gen_random_uuid()::text, '10.0.0.' || g.n % 250,
                t.country, t.bank, t.access, CASE WHEN is_handout THEN t.id ELSE gen_random_uuid() END,
                CASE WHEN is_handout THEN t.fingerprint ELSE md5(g.n::text) || md5(t.fingerprint) END
         FROM (SELECT n, n % 50 <> 0 AND n % 100 <> 1 AS is_handout, floor({tokens} * power(random(), 3))::bigint AS t FROM generate_series(1, {events}) n) g
         JOIN (SELECT row_number() OVER () - 1 AS n, * FROM tokens) t ON t.n = g.t
         ORDER BY g.n")).await?;
    for index in indexes {
        run(db, &index).await?;
    }
    add_handouts(db, events).await?;
    run(db, "RESET work_mem").await?;
    run(db, "VACUUM ANALYZE").await?;
    run(db, "CHECKPOINT").await
}

/// Adds handouts of the hot tokens, a different number per token and at most a tenth of all events.
///
/// New indexes have equally full pages, which would all split in the same second of the load.
async fn add_handouts(db: &mut PgConnection, events: u64) -> Result<()> {
    let max_per_token = (events / 10 / HOT_USERS * 2).min(64);
    run(db, &format!(
        "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access, token_id, fingerprint)
         SELECT gen_random_uuid(), now() - interval '1 minute' * random() AS at, 'token.reused', t.user_id, 'client-' || n % 5,
                gen_random_uuid()::text, '10.0.0.' || n % 250, t.country, t.bank, t.access, t.id, t.fingerprint
         FROM tokens t, generate_series(1, abs(hashtext(t.user_id)::bigint) % ({max_per_token} + 1)) AS n
         WHERE t.bank = '{HOT_BANK}' ORDER BY at")).await
}

pub async fn run(db: &mut PgConnection, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
    Ok(())
}

/// Drops the indexes of the two large tables. Returns the statements that create them again.
async fn drop_indexes(db: &mut PgConnection) -> Result<Vec<String>> {
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "SELECT CASE WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
                     ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, c.conname) END,
                CASE WHEN c.oid IS NULL THEN replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ')
                     ELSE format('ALTER TABLE %s ADD %s', i.indrelid::regclass, pg_get_constraintdef(c.oid)) END
         FROM pg_index i LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid
         WHERE i.indrelid IN ('tokens'::regclass, 'audit_events'::regclass)",
    )
    .fetch_all(&mut *db)
    .await?;
    for (drop, _) in &indexes {
        run(db, drop).await?;
    }
    Ok(indexes.into_iter().map(|(_, create)| create).collect())
}

async fn copy_tokens(db: &mut PgConnection, tokens: u64) -> Result<()> {
    let keys = KeyRing::new([("bench", &TOKEN_KEY)], &FINGERPRINT_KEY);
    let now = Utc::now();
    let mut copy = db.copy_in_raw("COPY tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at, is_valid, ciphertext, key_id, fingerprint) FROM STDIN").await?;
    let mut lines = String::new();
    for n in 0..tokens {
        let bank = bank(n, tokens);
        let combination = Combination {
            user_id: user_id(n).into(),
            country: "LT".parse().ok(),
            bank: Some(bank.into()),
            access: Access::from_bits(1),
        };
        let id = Uuid::now_v7();
        let token = TokenString::new(&format!("{TOKEN_STRING}{n}"));
        let encrypted = keys.encrypt(&token, id, &combination);
        // Every token has another time.
        let issued_at = now - TimeDelta::hours(1) + TimeDelta::microseconds(n as i64);
        let ends_at = issued_at + TimeDelta::days(20);
        let _ = write!(
            lines,
            "{}\t{id}\tLT\t{bank}\t1\t1728000\t{issued_at}\t{ends_at}\t{ends_at}\tt\t\\\\x",
            user_id(n)
        );
        for byte in &encrypted.bytes {
            let _ = write!(lines, "{byte:02x}");
        }
        let _ = writeln!(lines, "\tbench\t{}", keys.fingerprint(token.expose()));
        if lines.len() > 1 << 20 {
            copy.send(std::mem::take(&mut lines).into_bytes()).await?;
        }
    }
    copy.send(lines.into_bytes()).await?;
    copy.finish().await?;
    Ok(())
}
