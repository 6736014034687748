//! Reads credentials, headers, query strings and bodies of requests.

pub mod authorization;
pub mod body;
pub mod cache_control;
pub mod client_key;
pub mod cursor;
pub mod event_query;
pub mod fields;
pub mod json;
pub mod query;
