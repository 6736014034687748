//! The test harness: a real Postgres, the real sandbox, and the real service on a TCP port.

mod answer;
mod clock;
pub mod cluster;
pub mod database_proxy;
pub mod document;
pub mod faketime;
pub mod haproxy;
mod invariants;
pub mod issuer;
pub mod page;
pub mod patroni;
mod poll;
mod process;
pub mod proxy;
mod recovery;
pub mod server;
pub mod standby;
pub mod tmpfs;
mod wire;
mod world;

pub use answer::{Answer, send};
pub use invariants::find_violations;
pub use poll::eventually;
pub use process::{Ended, Process, program, run, send_signal};
pub use recovery::{issue_to_new_users, wait_until_all_succeed};
pub use wire::{KeepAlive, send_raw, token_request};
pub use world::{ADMIN, Api, Replica, World, http_client, issue_at_once};
