//! The one integration test binary: the real service on a real Postgres, the sandbox as upstream.

mod budget;
mod chaos;
mod client_command;
mod combinations;
mod command_line;
mod dev;
mod handouts;
mod herd;
mod layers;
mod migrations;
mod secrets;
mod startup;
#[allow(dead_code, unused_imports)]
mod support;
mod takeover;
mod upstream_answers;
mod upstream_clock;
mod upstream_faults;
mod vend;
