//! HTTP in: the only folder that names actix.

mod body;
mod cache_control;
mod cursor;
mod fault;
mod fields;
mod issue_token;
mod json;
mod problem;
mod problem_kind;
mod query;
