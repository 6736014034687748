//! The decisions about tokens: reuse or mint, record, invalidate. No actix, no SQL, no reqwest.
//!
//! The steps of an issue request:
//!
//! 1. [`Vendor::issue`] looks up the combination in the [`cache`].
//! 2. Hit: the [`handout_writer`] records the handout, if Postgres finds the token still valid.
//! 3. Miss, or a refused handout: the request joins the [`flight`] of its combination, or starts it.
//! 4. The flight [`resolve`]s a token: it reads the slot, then uses a stored token, waits for the mint
//!    of another flight, or mints (`mint`: claim, call, finish).
//! 5. The request that started the mint answers 201. All others hand out the token as in step 2.
//!
//! `request` decides whether a token satisfies a request. `invalidation` ends tokens.

pub mod cache;
mod context;
pub mod flight;
pub mod handout_writer;
mod invalidation;
mod issue;
mod mint;
mod request;
pub mod resolve;

pub use self::context::VendingSettings;
pub use self::issue::Vendor;
pub use self::request::{CacheStatus, ForwardReason, IssuedToken, TokenRequest};
