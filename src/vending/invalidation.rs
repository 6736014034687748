//! Ending tokens, and finding one that turned up. What was ended when the answer left is handed
//! out nowhere: the handouts of every replica look at the same row.

use uuid::Uuid;

use super::issue::Vendor;
use crate::db::invalidation::{end_token, end_tokens_of_user};
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
        self.end(id, reason, caller).await?;
        self.parts
            .ask("read a token", move |pool| async move {
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
        let fingerprint = self.parts.keys.fingerprint(token_string);
        let ids = self.parts.ask("look up tokens", move |pool| async move {
            list_token_ids(&pool, fingerprint).await
        });
        let mut ended = 0;
        for id in ids.await? {
            ended += u64::from(self.end(id, reason, caller.clone()).await?);
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
        let ended = self.parts.db.run(move |pool| async move {
            end_tokens_of_user(&pool, &user_id, reason, &caller).await
        });
        ended.await.map_err(|error| {
            tracing::error!(%error, "the tokens of a user could not be ended");
            Failure::database()
        })
    }

    /// The record of the token with that token string.
    pub async fn look_up(&self, token_string: &str) -> Result<Option<Token>, Failure> {
        let fingerprint = self.parts.keys.fingerprint(token_string);
        self.parts
            .ask("look up a token", move |pool| async move {
                find_token_by_fingerprint(&pool, fingerprint).await
            })
            .await
    }

    async fn end(
        &self,
        id: Uuid,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<bool, Failure> {
        self.parts
            .ask("end a token", move |pool| async move {
                end_token(&pool, id, reason, &caller).await
            })
            .await
    }
}
