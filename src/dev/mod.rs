//! Development tools that production never runs: the sandbox provider and a private Postgres.

pub mod postgres;
pub mod sandbox;
