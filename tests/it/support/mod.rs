//! What the tests stand on: a real Postgres, the real sandbox, the real router on a real port.

mod answer;
pub mod cluster;
mod invariants;
mod process;
mod world;

pub use answer::Answer;
pub use process::{Ended, Process, program, run};
pub use world::{ADMIN, Api, Replica, World, http_client};
