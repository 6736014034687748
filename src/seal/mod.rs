//! The sealed audit log as a data structure: a Merkle tree in tiles, and its signed head.
//!
//! The formats are those of C2SP: tlog-tiles, tlog-checkpoint and signed-note, with the hashes of RFC 6962.

pub mod checkpoint;
pub mod tree;
