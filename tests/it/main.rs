//! The one integration test binary: the real service on a real Postgres, the sandbox as upstream.

mod chaos;
mod combinations;
mod handouts;
mod herd;
mod layers;
#[allow(dead_code, unused_imports)]
mod support;
mod takeover;
mod upstream_clock;
mod upstream_faults;
mod vend;
