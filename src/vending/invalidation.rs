//! Invalidation and lookup of tokens.
//!
//! After an invalidation has been answered, no replica hands the token out: every handout checks the
//! same row.

use uuid::Uuid;

use super::issue::Vendor;
use crate::db::invalidation::{invalidate_token, invalidate_user_tokens};
use crate::db::tokens::{find_token, find_token_by_fingerprint, list_token_ids};
use crate::model::{Caller, Failure, InvalidationReason, Token};

impl Vendor {
    /// Invalidates the token and returns its record afterwards, or `None` if there is no such token.
    /// A token that has already ended keeps its state and its first reason.
    pub async fn invalidate(
        &self,
        id: Uuid,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<Option<Token>, Failure> {
        self.invalidate_by_id(id, reason, caller).await?;
        self.context
            .run_query("read a token", move |pool| async move {
                find_token(&pool, id).await
            })
            .await
    }

    /// Invalidates the valid tokens with this token string and returns their number. It is at most 1,
    /// unless the provider returned the same string twice.
    pub async fn invalidate_token_string(
        &self,
        token_string: &str,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<u64, Failure> {
        let fingerprint = self.context.keys.fingerprint(token_string);
        let ids = self
            .context
            .run_query("look up tokens", move |pool| async move {
                list_token_ids(&pool, fingerprint).await
            })
            .await?;
        let mut invalidated = 0;
        for id in ids {
            invalidated += u64::from(self.invalidate_by_id(id, reason, caller.clone()).await?);
        }
        Ok(invalidated)
    }

    /// Invalidates every valid token of the user and returns their number. Mints in progress end as
    /// invalidated too.
    ///
    /// The work has the 5 s of [`Database::run`](crate::db::Database::run), because a user may have
    /// many tokens.
    pub async fn invalidate_user(
        &self,
        user_id: String,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<u64, Failure> {
        let invalidated = self.context.db.run(move |pool| async move {
            invalidate_user_tokens(&pool, &user_id, reason, &caller).await
        });
        invalidated.await.map_err(|error| {
            tracing::error!(%error, "invalidating the tokens of a user failed");
            Failure::database()
        })
    }

    /// Returns the record of the token with this token string.
    pub async fn look_up(&self, token_string: &str) -> Result<Option<Token>, Failure> {
        let fingerprint = self.context.keys.fingerprint(token_string);
        self.context
            .run_query("look up a token", move |pool| async move {
                find_token_by_fingerprint(&pool, fingerprint).await
            })
            .await
    }

    async fn invalidate_by_id(
        &self,
        id: Uuid,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<bool, Failure> {
        self.context
            .run_query("invalidate a token", move |pool| async move {
                invalidate_token(&pool, id, reason, &caller).await
            })
            .await
    }
}
