//! Code that runs around every handler.

pub mod header;
pub mod request_context;
pub mod source_address;
pub mod trace;
