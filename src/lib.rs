//! Vends bank verification tokens: **the cache proposes, Postgres disposes.**
//!
//! Memory makes a handout cheap; one batched statement in Postgres decides whether it happens, and
//! records it, before the caller gets the token.
//!
//! # The map
//!
//! ```text
//! main → cli → app            wiring: sees everything below
//!          api                 HTTP in: the only folder that names actix
//!           ↓
//!        vending               the decisions: no actix, no SQL, no reqwest
//!      ↓    ↓     ↓
//!     db upstream crypto       leaves that do not know each other
//!      ↓    ↓     ↓
//!         model                the vocabulary: imports nothing of ours
//! ```
//!
//! Beside it: [`metrics`], which `vending` and `api` count in; [`config`] and [`telemetry`], known to
//! [`cli`] and [`app`] alone; [`sandbox`], the
//! stand-in upstream, and [`local_postgres`], a private server, for `dev` and the tests.
//! `tests/it/layers.rs` holds these rules.
//!
//! # A request's path
//!
//! `POST /bank/tokens/` for a token that is in memory passes these files:
//!
//! 1. [`api::auth`]: who calls, with which scope. Outside the cache, always.
//! 2. `api::tokens`: reads the order, answers.
//! 3. [`vending`]: [`Vendor::issue`](vending::Vendor::issue) proposes what the cache holds, where it
//!    does for the order (`vending::order`), to [`vending::handout`], which gathers handouts while the
//!    last flush runs.
//! 4. [`db::audit`]: one statement writes the events of those that may go.
//!
//! A miss joins the flight of its combination ([`vending::flight`]); the flight reads the slot
//! ([`vending::resolve`], [`db::slots`]), and, where nothing on record does, claims, calls and
//! finishes a mint (`vending::mint`, [`db::mints`], [`upstream`]).
//!
//! # Beside the main job
//!
//! Ending tokens: `api::invalidation` → [`vending::invalidation`] → [`db::invalidation`]. Reading the
//! trail: `api::audit` → [`db::events`], whose statement ([`db::event_page`]) puts the reading on record
//! too. The same for people's eyes: `api::console`, whose figures over time the cleanup counts into
//! [`db::overview`]. Refused calls: [`jobs::denials`]. Clearing away: [`jobs::cleanup`], for the schedule, the call and the
//! command. New keys: [`jobs::key_rotation`]. The OpenAPI document, made from the route table: `api::openapi`.
//!
//! # The rules
//!
//! - No token leaves before its record and the event of this handout are committed.
//! - A committed intent precedes every call to the upstream.
//! - One mint in flight per combination, over all replicas; the lease is a row, not a lock.
//! - Validity is `is_valid and ends_at > now`, by the database's clock, at every handout.
//! - Rows are locked in one order: slots, then tokens, then mints.
//! - Secrets live in types whose `Debug` is redacted; the audit names a token by its fingerprint.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod db;
pub mod dev;
#[doc(hidden)]
pub mod fuzzing;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod telemetry;
pub mod upstream;
pub mod vending;
