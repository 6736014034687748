//! Everything that production never runs: the sandbox and a private Postgres.

pub mod postgres;
pub mod sandbox;
