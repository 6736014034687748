//! The one integration test binary: the real service on a real Postgres, the sandbox as upstream.

mod access;
mod answers;
mod chaos;
mod combinations;
mod handouts;
mod health;
mod herd;
mod invalidation;
mod issue_request;
mod layers;
mod lists;
mod records;
mod request_form;
mod reuse;
mod shutdown;
mod source_ip;
#[allow(dead_code, unused_imports)]
mod support;
mod takeover;
mod vend;
