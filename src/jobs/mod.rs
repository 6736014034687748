//! Work outside requests: cleanup, key rotation, counts of denied requests, reads of tokens, reports of
//! replicas, the horizon and the sealing of the audit log.

pub mod cleanup;
pub mod denials;
pub mod horizon;
pub mod key_rotation;
pub mod replicas;
pub mod sealing;
pub mod token_reads;
pub mod verification;
