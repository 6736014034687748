//! Integration tests: the real service on a real Postgres, with the sandbox as the provider.

#![allow(
    clippy::disallowed_methods,
    reason = "tests read clocks and the environment"
)]

mod access;
mod amplification;
mod answers;
mod attacks;
mod audit;
mod audit_export;
mod audit_filters;
mod audit_plans;
mod budget;
mod chaos;
mod check;
mod claims;
mod cleanup;
mod client_command;
mod combinations;
mod command_line;
mod completions;
mod connection_limit;
mod console;
mod console_forms;
mod console_overview;
mod credentials;
mod database_clock;
mod database_faults;
mod denials;
mod dev;
mod erasure;
mod handouts;
mod hang_up;
mod health;
mod herd;
mod horizon;
mod invalidation;
mod issue_request;
mod large_invalidations;
mod layers;
mod lists;
mod local_postgres;
mod lost_connections;
mod metrics;
mod migrations;
mod network_faults;
mod openapi;
mod openapi_provider;
mod openapi_rules;
mod overload;
mod pgbouncer;
mod progress;
mod read_fallback;
mod records;
mod request_form;
mod reuse;
mod rotation;
mod sandbox;
mod sealing;
mod secrets;
mod shutdown;
mod source_ip;
mod startup;
mod support;
mod takeover;
mod tls;
mod token_plans;
mod traces;
mod upstream_answers;
mod upstream_clock;
mod upstream_faults;
mod upstream_proxy;
mod user_ids;
mod vend;
mod verification;
