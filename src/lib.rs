//! A service that issues bank verification tokens. It reuses a valid token of the same user, country,
//! bank and access, and otherwise mints one at the provider.
//!
//! The cache only suggests a token. One batched SQL statement checks it and records the handout before
//! the response is sent. Therefore every handout is in the audit log, and an invalidated or expired
//! token is handed out by no replica, however old its cache is. A lease in Postgres limits a
//! combination to one mint in flight over all replicas.
//!
//! `docs/architecture.md` describes the design in full: sequence diagrams, tables, lock order, clocks
//! and invariants. `docs/glossary.md` explains the terms.
//!
//! # Map
//!
//! | Folder | Content |
//! | --- | --- |
//! | [`cli`] | the commands, one function each |
//! | [`app`] | builds the shared components once, starts and stops them |
//! | [`config`], [`telemetry`] | settings; logs and traces |
//! | [`api`] | incoming HTTP: routes, handlers, the console, the OpenAPI document |
//! | [`vending`] | the decisions about tokens: reuse or mint, record, invalidate |
//! | [`jobs`] | cleanup, key rotation, counts of denied requests; horizon, sealing and verification of the audit log |
//! | [`auth`] | API keys, secrets and bearer tokens of clients |
//! | [`db`] | all SQL |
//! | [`upstream`] | calls to the provider |
//! | [`crypto`] | encrypts and decrypts token strings, computes fingerprints |
//! | [`seal`] | the Merkle tree and the signed checkpoints of the sealed audit log |
//! | [`metrics`] | all metrics, in one table |
//! | [`model`] | the shared types |
//! | [`dev`] | a sandbox provider and a private Postgres server, for `dev` and the tests |
//!
//! An arrow means "may import". `tests/it/layers.rs` enforces the arrows.
//!
//! ```text
//! main      → cli
//! cli       → app, config, telemetry, dev, jobs, db, upstream, auth, crypto, seal, metrics, model
//! app       → every folder except cli and dev
//! api       → vending, jobs, auth, db (pure reads and their audit.read event), seal, metrics, model
//! vending   → db, upstream, crypto, metrics, model
//! jobs      → db, crypto, seal, metrics, model
//! auth      → db, model
//! db        → crypto, model
//! upstream  → model
//! crypto    → model
//! config    → seal, model
//! telemetry → config
//! dev       → model
//! metrics   → nothing
//! seal      → nothing
//! model     → nothing
//!
//! In api, each part may import the parts to its right:
//! openapi → router → console → handlers → routes → extract → middleware → state → problem
//! ```
//!
//! The same test keeps each library in its folders: actix in `api` and `dev`, sqlx in `db`, reqwest in
//! `upstream` and `auth/oidc`, jsonwebtoken and ring in `auth/oidc`, prometheus in `metrics`, the cipher in `crypto`,
//! tlog_tiles and signed_note in `seal`, clap in `cli` and `config`.
//!
//! # Life of a request
//!
//! `POST /bank/tokens/`, in the order of the files:
//!
//! 1. `api/middleware/` assigns the request id, the source address and the trace. `api/routes.rs` finds
//!    the handler.
//! 2. `api/extract/authorization.rs` checks the API key or the bearer token (with [`auth`]), the scope and the rate limit.
//! 3. `api/handlers/tokens.rs` parses the body into a [`vending::TokenRequest`] and calls
//!    [`Vendor::issue`](vending::Vendor::issue) in `vending/issue.rs`.
//! 4. [`vending::cache`] suggests a token. `vending/request.rs` decides whether it satisfies the request.
//! 5. Hit: [`vending::handout_writer`] collects handouts while the previous flush runs. The statement in
//!    [`db::handouts`] checks every token and inserts the events of the valid ones. After its commit the
//!    caller gets the token.
//!
//! A miss, or a handout that the statement refuses, continues:
//!
//! 6. [`vending::flight`]: the request joins the flight of its combination, or starts it.
//! 7. [`vending::resolve`]: the flight reads the slot ([`db::slots`]). It uses a stored token, waits for
//!    the mint of another flight, or mints.
//! 8. `vending/mint.rs` mints: claim ([`db::mints`], which commits the lease and the mint record), take
//!    an attempt from the budget and record its start ([`db::budget`]), call the provider
//!    ([`upstream`]), finish or fail ([`db::mints`]).
//! 9. The request that started the mint gets the token with status 201. All others take step 5.
//!
//! Every statement except those of the handout writer passes the gate: [`db::Database::run`] in
//! `db/gate.rs`. It runs the work of a [`db::Lane`] on a connection of `db/connector.rs`.
//!
//! # Where to look
//!
//! - **Validity of a token:** the `WHERE` of the statement in [`db::handouts`]. After a miss,
//!   [`db::slots::find_slot`], [`db::slots::point_slot`] for another stored token, and
//!   [`db::mints::finish_mint`] for a new one.
//! - **Limits of database work:** `db/lane.rs`; `vending/flight.rs` and `vending/context.rs` refuse flights
//!   and mints. Faults of connections: `db/connector.rs`, [`db::fitness`], `db/overdue.rs`.
//! - **Fencing of a mint:** [`db::mints::finish_mint`] compares mint id and epoch,
//!   [`db::mints::fail_mint`] the mint id. [`db::mints::claim_mint`] takes the lease.
//! - **Invalidation:** `api/handlers/invalidation.rs`, `vending/invalidation.rs`, [`db::invalidation`].
//! - **Audit queries:** `api/handlers/audit.rs`, [`db::audit_events`]. [`db::event_page`] builds the
//!   statement of a page.
//! - **A new audit filter:** the parameter in `api/extract/event_query.rs`, the condition and index in
//!   [`db::event_page`] and `migrations/`, the flag in `cli/audit.rs`, the schema in
//!   `api/openapi/members.rs` and `components.rs` (then `make openapi`), the form field in
//!   `templates/console/audit.html`, the cases in `tests/it/audit_filters.rs` and
//!   `tests/it/audit_plans.rs`.
//! - **Completeness of the audit log:** [`db::horizon`], moved by [`jobs::horizon`]. Pages and exports return it.
//! - **Sealing:** [`jobs::sealing`] reads the complete events and appends them to the tree in [`seal::tree`];
//!   [`db::audit_log`] stores it. `api/handlers/audit_log.rs` serves it, [`jobs::verification`] verifies it.
//! - **Erasing a person:** `cli/audit_erase.rs`, [`db::erasure`].
//! - **Privileges of the service in Postgres:** [`db::service_role`].
//! - **Console:** `api/console/` and `templates/console/`. Its counts per minute are in [`db::overview`].
//! - **Cleanup:** [`jobs::cleanup`], for the command, the schedule and the endpoint; [`db::cleanup`],
//!   [`db::partitions`].
//! - **Key rotation:** [`jobs::key_rotation`], [`db::keys`].
//! - **Counts of denied requests:** [`jobs::denials`].
//! - **OpenAPI document:** `api/openapi/`, generated from the routes in `api/router.rs`.
//! - **Lower bound of the database clock:** [`db::clock`].
//! - **Error responses:** `api/problem/mod.rs`. The failures of an issue request are in [`model`].
//!
//! # Rules
//!
//! - A token is handed out only after its record and the event of this handout are committed.
//! - A committed mint record precedes every call to the provider.
//! - A combination has at most one mint in flight over all replicas. The lease is a row, not a lock.
//! - A token is valid while `is_valid and ends_at > now`. *Now* is the later of the database clock and
//!   its lower bound. Every reuse checks it.
//! - Rows are locked in one order: slots, then tokens, then mints.
//! - Events are sealed in the order of time, and no event may appear before one that is sealed.
//! - Secrets have types whose `Debug` is redacted. The audit log names a token by its fingerprint.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests read clocks and settings")
)]

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod db;
pub mod dev;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod seal;
pub mod telemetry;
pub mod upstream;
pub mod vending;
