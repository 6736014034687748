//! The vocabulary: what a token, a combination, a caller and an event are.
//!
//! Imports nothing of ours, does no I/O, and knows neither HTTP nor SQL.

pub mod client;
pub mod combination;
pub mod event;
pub mod event_format;
pub mod failure;
pub(crate) mod named_enum;
pub mod time;
pub mod token;

pub use client::{Caller, Client, Origin, Scope};
pub use combination::{Access, Combination, Country};
pub use event::{AuditEvent, EventKind, EventRef};
pub use failure::{Failure, FailureKind, UpstreamAnswer};
pub use token::{Fingerprint, InvalidationReason, Token, TokenString, TokenWithSecret};
