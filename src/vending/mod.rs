//! The decisions: who is who, reuse or mint, record before answer. No actix, no SQL, no reqwest.
//!
//! A request's way: [`Vendor::issue`] proposes what the cache holds → [`handout`] lets Postgres
//! dispose. On a miss it joins the [`flight`] of its combination, which [`resolve`]s it: finds what
//! another replica has minted, or mints.

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
