//! The handlers of the API, one file per group of paths.

pub mod audit;
pub mod audit_log;
pub mod clients;
pub mod docs;
pub mod health;
pub mod invalidation;
pub mod maintenance;
pub mod metrics;
pub mod token_view;
pub mod tokens;
