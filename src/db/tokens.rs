//! Reads the records of issued tokens and of mints.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::DbError;
use crate::model::{Access, Combination, Country, Fingerprint, InvalidationReason, Token};

/// The filter of a token list. An absent member matches every token.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenFilter {
    /// The user.
    pub user_id: Option<String>,
    /// The country of the combination.
    pub country: Option<Country>,
    /// The bank of the combination.
    pub bank: Option<String>,
    /// The validity at the time of the read.
    pub is_valid: Option<bool>,
    /// The earliest issue time.
    pub from: Option<DateTime<Utc>>,
    /// The end of the issue times, exclusive.
    pub to: Option<DateTime<Utc>>,
}

/// A row of `tokens`. `is_valid` is false for an expired token too.
struct TokenRow {
    id: Uuid,
    user_id: String,
    country: String,
    bank: String,
    access: i16,
    lifetime: i32,
    issued_at: DateTime<Utc>,
    expiration: DateTime<Utc>,
    ends_at: DateTime<Utc>,
    is_valid: bool,
    invalidated_at: Option<DateTime<Utc>>,
    invalidation_reason: Option<String>,
    fingerprint: String,
}

/// A query for [`TokenRow`]s. The literals are the clauses after `FROM tokens`.
macro_rules! select_tokens {
    ($($clause:literal)+, $($value:expr),+ $(,)?) => {
        sqlx::query_as!(
            TokenRow,
            r#"SELECT id, user_id, country, bank, access, lifetime, issued_at, expiration, ends_at,
                      is_valid AND ends_at > clock_timestamp() AS "is_valid!",
                      invalidated_at, invalidation_reason, fingerprint
               FROM tokens "# $(+ $clause)+,
            $($value),+
        )
    };
}

impl TryFrom<TokenRow> for Token {
    type Error = DbError;

    fn try_from(row: TokenRow) -> Result<Self, DbError> {
        let combination = read_combination(row.user_id, &row.country, row.bank, row.access)?;
        let read_reason =
            |name: String| InvalidationReason::from_name(&name).ok_or_else(|| unreadable(&name));
        let invalidation_reason = row.invalidation_reason.map(read_reason).transpose()?;
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

/// Reads a combination from its four columns.
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

/// Reads a fingerprint from its column.
pub(super) fn read_fingerprint(hex: &str) -> Result<Fingerprint, DbError> {
    hex.parse().map_err(|_| unreadable(hex))
}

fn unreadable(what: &str) -> DbError {
    DbError::Unreadable {
        table: "tokens",
        what: what.to_owned(),
    }
}

/// Finds a token record by id.
pub async fn find_token(connection: &mut PgConnection, id: Uuid) -> Result<Option<Token>, DbError> {
    let query = select_tokens!("WHERE id = $1", id);
    let row = query.fetch_optional(connection).await?;
    row.map(Token::try_from).transpose()
}

/// The record of a mint. A row of `mints`.
#[derive(Clone, Debug)]
pub struct Mint {
    /// The client whose request started the mint.
    pub client: String,
    /// The id of that request.
    pub request_id: String,
    /// The time at which the mint was recorded, before the first call to the provider.
    pub started_at: DateTime<Utc>,
    /// The time at which the outcome was recorded.
    pub finished_at: Option<DateTime<Utc>>,
    /// `open`, `minted`, `failed` or `unknown`.
    pub outcome: String,
    /// The name of the [`FailureKind`](crate::model::FailureKind).
    pub failure: Option<String>,
    /// The HTTP status of the provider's last answer.
    pub upstream_status: Option<i16>,
    /// The number of calls to the provider.
    pub attempts: i16,
    /// The number of calls that may have minted a token that the service did not receive.
    pub unseen: i16,
    /// The time from the first call to the last answer, in milliseconds.
    pub latency_ms: Option<i32>,
}

/// Finds the mint of a token. Both have the same id.
pub async fn find_mint(
    connection: &mut PgConnection,
    user_id: &str,
    id: Uuid,
) -> Result<Option<Mint>, DbError> {
    let mint = sqlx::query_as!(
        Mint,
        "SELECT client, request_id, started_at, finished_at, outcome, failure, upstream_status, attempts,
                unseen, latency_ms
         FROM mints WHERE user_id = $1 AND id = $2",
        user_id,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(mint)
}

/// Finds the newest token record with a fingerprint.
pub async fn find_token_by_fingerprint(
    connection: &mut PgConnection,
    fingerprint: Fingerprint,
) -> Result<Option<Token>, DbError> {
    let query = select_tokens!(
        "WHERE fingerprint = $1 ORDER BY issued_at DESC LIMIT 1",
        fingerprint.to_string()
    );
    let row = query.fetch_optional(connection).await?;
    row.map(Token::try_from).transpose()
}

/// Lists at most `limit` token records, newest first, after the (issued at, id) of the last record of the previous
/// page.
///
/// Indexes serve the user and the times. Without a user, the other filters may read the whole table.
pub async fn list_tokens(
    connection: &mut PgConnection,
    filter: &TokenFilter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Token>, DbError> {
    let (after_time, after_id) = after.unzip();
    macro_rules! select_page {
        ($by_user:literal $(, $user_id:expr)?) => {
            select_tokens!(
                $by_user
                " issued_at >= coalesce($1::timestamptz, '-infinity')
                    AND issued_at < coalesce($2::timestamptz, 'infinity')
                    AND (issued_at, id) < (coalesce($3::timestamptz, 'infinity'),
                                           coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
                    AND ($5::text IS NULL OR country = $5)
                    AND ($6::text IS NULL OR bank = $6)
                    AND ($7::bool IS NULL OR (is_valid AND ends_at > clock_timestamp()) = $7)
                  ORDER BY issued_at DESC, id DESC LIMIT $8",
                filter.from,
                filter.to,
                after_time,
                after_id,
                filter.country.map(Country::code),
                filter.bank.as_deref(),
                filter.is_valid,
                limit
                $(, $user_id)?
            )
            .fetch_all(connection)
            .await?
        };
    }
    // Two statements, because one with an optional user would have one cached plan for two indexes.
    let rows = match &filter.user_id {
        Some(user_id) => select_page!("WHERE user_id = $9 AND", user_id),
        None => select_page!("WHERE"),
    };
    rows.into_iter().map(Token::try_from).collect()
}

/// Lists the ids of the keys that encrypt the valid tokens.
pub async fn list_key_ids(connection: &mut PgConnection) -> Result<Vec<String>, DbError> {
    let ids = sqlx::query_scalar!(
        "SELECT DISTINCT key_id FROM tokens WHERE is_valid AND ends_at > clock_timestamp()"
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}
