//! Work outside requests: cleanup, key rotation, counts of denied requests.

pub mod cleanup;
pub mod denials;
pub mod key_rotation;
