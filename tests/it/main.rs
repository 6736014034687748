//! The one integration test binary: the real service on a real Postgres, the sandbox as upstream.

mod layers;
#[allow(dead_code, unused_imports)]
mod support;
mod vend;
