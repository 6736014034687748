//! Work beside requests: cleanup, key rotation, denial counts.

pub mod cleanup;
pub mod denials;
pub mod key_rotation;
