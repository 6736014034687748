//! The records of issued tokens.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::DbError;
use crate::model::{Country, Token};

/// What a list of tokens is narrowed to; everything absent matches all.
#[derive(Clone, Debug, Default)]
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

/// The record of that id.
pub async fn find_token(pool: &PgPool, id: Uuid) -> Result<Option<Token>, DbError> {
    let _ = (pool, id);
    todo!()
}

/// Records newest first, at most `limit` of them, those after the given (issued at, id) of the page before.
pub async fn list_tokens(
    pool: &PgPool,
    filter: &TokenFilter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Token>, DbError> {
    let _ = (pool, filter, after, limit);
    todo!()
}
