//! Ending tokens, and finding one that turned up. What was ended when the answer left is handed
//! out nowhere: the handouts of every replica look at the same row.

use uuid::Uuid;

use super::issue::Vendor;
use crate::db::invalidation::{invalidate_token, invalidate_user_tokens};
use crate::db::tokens::{find_token, find_token_by_fingerprint, list_token_ids};
use crate::model::{Caller, Failure, InvalidationReason, Token};

impl Vendor {
    /// Ends the token of that id and returns its record as it is after, `None` if there is no such
    /// token. Saying it twice is fine: the first reason stays.
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

    /// Ends the valid tokens with that token string: one, unless the upstream gave the same twice.
    /// Returns how many it ended.
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
            });
        let mut ended = 0;
        for id in ids.await? {
            ended += u64::from(self.invalidate_by_id(id, reason, caller.clone()).await?);
        }
        Ok(ended)
    }

    /// Ends every valid token of the user, those of mints under way included; returns how many it
    /// ended.
    pub async fn invalidate_user(
        &self,
        user_id: String,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<u64, Failure> {
        let ended = self.context.db.run(move |pool| async move {
            invalidate_user_tokens(&pool, &user_id, reason, &caller).await
        });
        ended.await.map_err(|error| {
            tracing::error!(%error, "the tokens of a user could not be ended");
            Failure::database()
        })
    }

    /// The record of the token with that token string.
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
            .run_query("end a token", move |pool| async move {
                invalidate_token(&pool, id, reason, &caller).await
            })
            .await
    }
}
