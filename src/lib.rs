//! `token-vendor` (the map is written at the end of the skeleton).
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod db;
pub mod local_postgres;
pub mod model;
pub mod sandbox;
pub mod telemetry;
pub mod upstream;
pub mod vending;
