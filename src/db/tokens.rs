//! The records of issued tokens.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{Access, Combination, Country, Fingerprint, InvalidationReason, Token};

/// What a list of tokens is narrowed to; everything absent matches all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TokenFilter {
    /// This user's.
    pub user_id: Option<String>,
    /// For this country.
    pub country: Option<Country>,
    /// For this bank.
    pub bank: Option<String>,
    /// Valid now, or not.
    pub is_valid: Option<bool>,
    /// Issued at or after.
    pub from: Option<DateTime<Utc>>,
    /// Issued before.
    pub to: Option<DateTime<Utc>>,
}

/// A row of `tokens` as of a reading: `is_valid` already takes the time into account.
pub(super) struct TokenRow {
    pub id: Uuid,
    pub user_id: String,
    pub country: String,
    pub bank: String,
    pub access: i16,
    pub lifetime: i32,
    pub issued_at: DateTime<Utc>,
    pub expiration: DateTime<Utc>,
    pub ends_at: DateTime<Utc>,
    pub is_valid: bool,
    pub invalidated_at: Option<DateTime<Utc>>,
    pub invalidation_reason: Option<String>,
    pub fingerprint: String,
}

impl TryFrom<TokenRow> for Token {
    type Error = DbError;

    fn try_from(row: TokenRow) -> Result<Self, DbError> {
        let combination = read_combination(row.user_id, &row.country, row.bank, row.access)?;
        let invalidation_reason = match row.invalidation_reason {
            None => None,
            Some(name) => {
                Some(InvalidationReason::from_name(&name).ok_or_else(|| unreadable(&name))?)
            }
        };
        Ok(Token {
            id: row.id,
            combination,
            expiration: row.expiration,
            ends_at: row.ends_at,
            issued_at: row.issued_at,
            lifetime: row.lifetime,
            is_valid: row.is_valid,
            invalidated_at: row.invalidated_at,
            invalidation_reason,
            fingerprint: read_fingerprint(&row.fingerprint)?,
        })
    }
}

/// A combination from the columns that key it.
pub(super) fn read_combination(
    user_id: String,
    country: &str,
    bank: String,
    access: i16,
) -> Result<Combination, DbError> {
    let country = match country {
        "" => None,
        code => Some(code.parse().map_err(|_| unreadable(code))?),
    };
    Ok(Combination {
        user_id: user_id.into(),
        country,
        bank: (!bank.is_empty()).then(|| bank.into()),
        access: Access::from_bits(access),
    })
}

/// A fingerprint from its column.
pub(super) fn read_fingerprint(hex: &str) -> Result<Fingerprint, DbError> {
    hex.parse().map_err(|_| unreadable(hex))
}

fn unreadable(what: &str) -> DbError {
    DbError::Unreadable {
        table: "tokens",
        what: what.to_owned(),
    }
}

/// The record of that id.
pub async fn find_token(pool: &PgPool, id: Uuid) -> Result<Option<Token>, DbError> {
    let row = sqlx::query_as!(
        TokenRow,
        r#"SELECT id, user_id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                  is_valid AND ends_at > clock_timestamp() AS "is_valid!",
                  invalidated_at, invalidation_reason, fingerprint
           FROM tokens WHERE id = $1"#,
        id
    )
    .fetch_optional(pool)
    .await?;
    row.map(Token::try_from).transpose()
}

/// How a token was come by. A row of `mints`.
#[derive(Clone, Debug)]
pub struct Mint {
    /// The client that it was for.
    pub client: String,
    /// Its request.
    pub request_id: String,
    /// When the intent was recorded.
    pub started_at: DateTime<Utc>,
    /// When it was known what came of it.
    pub finished_at: Option<DateTime<Utc>>,
    /// `open`, `minted`, `failed` or `unknown`.
    pub outcome: String,
    /// The class of failure.
    pub failure: Option<String>,
    /// The status of the upstream's last answer.
    pub upstream_status: Option<i16>,
    /// Calls to the upstream.
    pub attempts: i16,
    /// Calls after which it may have minted without our knowing.
    pub unseen: i16,
    /// From the first call to the last answer, in milliseconds.
    pub latency_ms: Option<i32>,
}

/// The mint of that user and id, which is its token's.
pub async fn find_mint(pool: &PgPool, user_id: &str, id: Uuid) -> Result<Option<Mint>, DbError> {
    let mint = sqlx::query_as!(
        Mint,
        "SELECT client, request_id, started_at, finished_at, outcome, failure, upstream_status, attempts,
                unseen, latency_ms
         FROM mints WHERE user_id = $1 AND id = $2",
        user_id,
        id
    )
    .fetch_optional(pool)
    .await?;
    Ok(mint)
}

/// The newest record of that fingerprint.
pub async fn find_token_by_fingerprint(
    pool: &PgPool,
    fingerprint: Fingerprint,
) -> Result<Option<Token>, DbError> {
    let row = sqlx::query_as!(
        TokenRow,
        r#"SELECT id, user_id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                  is_valid AND ends_at > clock_timestamp() AS "is_valid!",
                  invalidated_at, invalidation_reason, fingerprint
           FROM tokens WHERE fingerprint = $1 ORDER BY issued_at DESC LIMIT 1"#,
        fingerprint.to_string()
    )
    .fetch_optional(pool)
    .await?;
    row.map(Token::try_from).transpose()
}

/// The ids of all records of that fingerprint.
pub async fn list_token_ids(pool: &PgPool, fingerprint: Fingerprint) -> Result<Vec<Uuid>, DbError> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM tokens WHERE fingerprint = $1",
        fingerprint.to_string()
    );
    Ok(ids.fetch_all(pool).await?)
}

/// Records newest first, at most `limit` of them, those that come after the given (issued at, id)
/// of the page before.
pub async fn list_tokens(
    pool: &PgPool,
    filter: &TokenFilter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Token>, DbError> {
    // Two statements, so that each walks the index made for it, whatever plan is cached.
    let (after_time, after_id) = after.unzip();
    let country = filter.country.map(Country::code);
    let rows = match &filter.user_id {
        Some(user_id) => {
            sqlx::query_as!(
                TokenRow,
                r#"SELECT id, user_id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                          is_valid AND ends_at > clock_timestamp() AS "is_valid!",
                          invalidated_at, invalidation_reason, fingerprint
                   FROM tokens
                   WHERE user_id = $1
                     AND issued_at >= coalesce($2::timestamptz, '-infinity') AND issued_at < coalesce($3::timestamptz, 'infinity')
                     AND (issued_at, id) < (coalesce($4::timestamptz, 'infinity'), coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
                     AND ($6::text IS NULL OR country = $6)
                     AND ($7::text IS NULL OR bank = $7)
                     AND ($8::bool IS NULL OR (is_valid AND ends_at > clock_timestamp()) = $8)
                   ORDER BY issued_at DESC, id DESC LIMIT $9"#,
                user_id, filter.from, filter.to, after_time, after_id,
                country, filter.bank.as_deref(), filter.is_valid, limit
            )
            .fetch_all(pool)
            .await?
        }
        None => {
            sqlx::query_as!(
                TokenRow,
                r#"SELECT id, user_id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                          is_valid AND ends_at > clock_timestamp() AS "is_valid!",
                          invalidated_at, invalidation_reason, fingerprint
                   FROM tokens
                   WHERE issued_at >= coalesce($1::timestamptz, '-infinity') AND issued_at < coalesce($2::timestamptz, 'infinity')
                     AND (issued_at, id) < (coalesce($3::timestamptz, 'infinity'), coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
                     AND ($5::text IS NULL OR country = $5)
                     AND ($6::text IS NULL OR bank = $6)
                     AND ($7::bool IS NULL OR (is_valid AND ends_at > clock_timestamp()) = $7)
                   ORDER BY issued_at DESC, id DESC LIMIT $8"#,
                filter.from, filter.to, after_time, after_id,
                country, filter.bank.as_deref(), filter.is_valid, limit
            )
            .fetch_all(pool)
            .await?
        }
    };
    rows.into_iter().map(Token::try_from).collect()
}

/// The keys that tokens still to be handed out are sealed under.
pub async fn list_key_ids(pool: &PgPool) -> Result<Vec<String>, DbError> {
    let ids = sqlx::query_scalar!(
        "SELECT DISTINCT key_id FROM tokens WHERE is_valid AND ends_at > clock_timestamp()"
    )
    .fetch_all(pool)
    .await?;
    Ok(ids)
}
