//! The types that all other folders share: tokens, combinations, clients, events and failures.
//!
//! Imports no other folder, does no I/O, and contains neither HTTP nor SQL.

pub mod client;
pub mod combination;
pub mod event;
pub mod event_format;
pub mod failure;
pub(crate) mod named_enum;
pub mod rules;
pub mod time;
pub mod token;

pub use client::{
    Caller, Client, ClientChange, ClientLimits, ClientRecord, ClientRefusal, ClientSettings,
    Operator, Origin, Scope,
};
pub use combination::{Access, Combination, Country};
pub use event::{AuditEvent, EventKind, EventRef};
pub use failure::{Failure, FailureKind, UpstreamAnswer};
pub use token::{Fingerprint, InvalidationReason, Token, TokenString, TokenWithSecret};
