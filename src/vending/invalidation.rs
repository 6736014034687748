//! Invalidation and lookup of tokens.
//!
//! After an invalidation has been answered, no replica hands the token out: every handout checks the
//! same row.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::issue::Vendor;
use crate::db::invalidation::{
    SlotKey, TokenKey, invalidate_tokens, list_token, list_tokens_of_string, list_tokens_of_user,
    void_slots,
};
use crate::db::tokens::{find_token, find_token_by_fingerprint};
use crate::db::{Checkout, DbError, Lane};
use crate::model::{
    Caller, Failure, FailureKind, Fingerprint, InvalidationReason, Token, TokenString,
};

/// Time after which an invalidation starts no further batch. A repeated call continues it.
const INVALIDATION_TIMEOUT: Duration = Duration::from_secs(30);

impl Vendor {
    /// Invalidates the token and returns its record afterwards, or `None` if there is no such token.
    /// A token that is recorded as invalid keeps its state and its first reason.
    ///
    /// # Errors
    /// Returns `database-unavailable` if the token may still be valid.
    pub async fn invalidate(
        &self,
        id: Uuid,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<Option<Token>, Failure> {
        Invalidation::start(self, reason, caller)
            .invalidate_listed(async move |mut connection| list_token(&mut connection, id).await)
            .await?;
        self.context
            .run_query(Lane::Reads, "read a token", async move |mut connection| {
                find_token(&mut connection, id).await
            })
            .await
    }

    /// Invalidates the tokens with this token string and returns how many were recorded as valid. There
    /// is at most one, unless the provider returned the same string twice.
    ///
    /// # Errors
    /// Returns `database-unavailable` if some of them may still be valid.
    pub async fn invalidate_token_string(
        &self,
        token_string: &TokenString,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<u64, Failure> {
        let fingerprint = self.context.keys.fingerprint(token_string.expose());
        let list = async move |mut connection: Checkout| {
            list_tokens_of_string(&mut connection, fingerprint).await
        };
        Invalidation::start(self, reason, caller)
            .invalidate_listed(list)
            .await
    }

    /// Invalidates the tokens of the user and returns how many were recorded as valid. Mints in progress
    /// end as invalidated too.
    ///
    /// First voids the slots, which ends the tokens that can be handed out. The superseded tokens follow.
    ///
    /// # Errors
    /// Returns `database-unavailable` if some of them may still be valid. Changes so far stay, and a
    /// repeated call continues.
    pub async fn invalidate_user(
        &self,
        user_id: String,
        reason: InvalidationReason,
        caller: Caller,
    ) -> Result<u64, Failure> {
        let started = self.context.clock.lower_bound();
        let mut invalidation = Invalidation::start(self, reason, caller);
        let mut after = Some(SlotKey::default());
        while let Some(key) = after {
            let (user_id, caller) = (user_id.clone(), invalidation.caller.clone());
            let batch = invalidation.run(async move |mut connection| {
                void_slots(&mut connection, &user_id, &key, reason, &caller).await
            });
            let (invalidated, last) = batch.await?;
            invalidation.invalidated += invalidated;
            after = last;
        }
        let list = async move |mut connection: Checkout| {
            list_tokens_of_user(&mut connection, &user_id, started).await
        };
        invalidation.invalidate_listed(list).await
    }

    /// Returns the record of the token with this token string, and its fingerprint.
    pub async fn look_up(
        &self,
        token_string: &TokenString,
    ) -> Result<(Fingerprint, Option<Token>), Failure> {
        let fingerprint = self.context.keys.fingerprint(token_string.expose());
        let find = async move |mut connection: Checkout| {
            find_token_by_fingerprint(&mut connection, fingerprint).await
        };
        let found = self.context.run_query(Lane::Reads, "look up a token", find);
        Ok((fingerprint, found.await?))
    }
}

/// An invalidation of any number of tokens, in batches.
struct Invalidation<'a> {
    vendor: &'a Vendor,
    reason: InvalidationReason,
    caller: Caller,
    deadline: Instant,
    /// The number of tokens that were invalidated so far.
    invalidated: u64,
}

impl<'a> Invalidation<'a> {
    fn start(vendor: &'a Vendor, reason: InvalidationReason, caller: Caller) -> Self {
        Invalidation {
            vendor,
            reason,
            caller,
            deadline: Instant::now() + INVALIDATION_TIMEOUT,
            invalidated: 0,
        }
    }

    /// Invalidates the listed tokens until the list is empty, and returns the number of all invalidated tokens.
    ///
    /// Each list is a new read after the last change. A token that was invalidated and is listed again shows that the
    /// change is not visible, and ends the invalidation with an error.
    async fn invalidate_listed<F, Fut>(mut self, list: F) -> Result<u64, Failure>
    where
        F: FnOnce(Checkout) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<Vec<TokenKey>, DbError>> + Send + 'static,
    {
        let mut changed = Vec::new();
        loop {
            let listed = self.run(list.clone()).await?;
            if listed.is_empty() {
                return Ok(self.invalidated);
            }
            if listed.iter().any(|token| changed.contains(token)) {
                tracing::error!("an invalidated token is still valid in a new read");
                return Err(incomplete());
            }
            for tokens in listed.chunk_by(|one, next| one.user_id == next.user_id) {
                let user_id = tokens[0].user_id.clone();
                let ids: Vec<Uuid> = tokens.iter().map(|token| token.id).collect();
                let (reason, caller) = (self.reason, self.caller.clone());
                self.invalidated += self
                    .run(async move |mut connection| {
                        invalidate_tokens(&mut connection, &user_id, &ids, reason, &caller).await
                    })
                    .await?;
            }
            changed = listed;
        }
    }

    /// Runs one database step, unless the time is over.
    async fn run<T, F, Fut>(&self, step: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(Checkout) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        if Instant::now() >= self.deadline {
            tracing::warn!(
                invalidated = self.invalidated,
                "an invalidation ran out of time"
            );
            return Err(incomplete());
        }
        let run = self.vendor.context.db.run(Lane::Upkeep, step);
        run.await.map_err(|error| {
            tracing::error!(%error, invalidated = self.invalidated, "an invalidation failed");
            incomplete()
        })
    }
}

fn incomplete() -> Failure {
    let detail = "some tokens may still be valid; what was invalidated stays so, and a repeated request continues";
    Failure::new(FailureKind::DatabaseUnavailable, detail)
}
