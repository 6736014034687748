//! The decisions: who is who, reuse or mint, record before answer. No actix, no SQL, no reqwest.

use crate::model::{Caller, Client, Combination, Failure, Issued};

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The key of reuse.
    pub combination: Combination,
    /// Seconds to ask of the upstream if a token is minted, 0…2592000.
    pub lifetime: i32,
    /// `min-fresh`: the seconds of life that the caller insists on, at most `lifetime`.
    pub min_fresh: Option<i32>,
    /// `no-cache`, from a caller that may: a token newer than this request.
    pub renew: bool,
}

/// A token on its way out; its event is committed.
#[derive(Clone, Debug)]
pub struct Vended {
    /// The token.
    pub issued: Issued,
    /// Whole seconds of life left by our clock.
    pub expires_in: i64,
    /// Whether it was minted for this very request.
    pub minted: bool,
    /// How it was come by.
    pub source: Source,
}

/// How a token was come by, in the terms of RFC 9211.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// It was on record, and fresh enough.
    Hit,
    /// A mint was needed.
    Forwarded {
        /// Why.
        reason: ForwardReason,
        /// It can be handed out again.
        stored: bool,
        /// Another request's mint was shared.
        collapsed: bool,
    },
}

/// Why what was on record did not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForwardReason {
    /// There was nothing.
    UriMiss,
    /// There was a token with too little life left.
    Stale,
    /// There was a fresh token, and the request passed it over.
    Request,
}

/// The service without its HTTP. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vendor {}

impl Vendor {
    /// Hands out a token of the combination: one on record if it does, else a new one.
    pub async fn issue(&self, order: Order, caller: Caller) -> Result<Vended, Failure> {
        let _ = (order, caller);
        todo!()
    }

    /// The client of that key and secret; `None` for an unknown key, a wrong secret and a disabled
    /// client alike, after the same time.
    pub async fn authenticate(
        &self,
        api_key: &str,
        secret: &[u8],
    ) -> Result<Option<Client>, Failure> {
        let _ = (api_key, secret);
        todo!()
    }

    /// Whether handouts can be recorded: the writer of the audit runs.
    pub fn is_recording(&self) -> bool {
        todo!()
    }
}
