//! The route table.

use crate::api::console;
use crate::api::handlers::{
    audit, audit_log, clients, docs, health, invalidation, maintenance, metrics, tokens,
};
use crate::api::routes::Path;

/// Returns every path. Each works with and without its final slash, and each `GET` also as `HEAD`.
#[rustfmt::skip]
pub fn paths() -> Vec<Path> {
    vec![
        Path::new("/").page(console::show_landing),
        Path::new("/bank/tokens/").get(tokens::list_tokens).post(tokens::issue_token),
        Path::new("/bank/tokens/{id}").get(tokens::get_token),
        Path::new("/bank/tokens/{id}/invalidate").post(invalidation::invalidate_token),
        Path::new("/bank/tokens/invalidate").post(invalidation::invalidate_tokens),
        Path::new("/bank/tokens/lookup").post(invalidation::look_up_token),
        Path::new("/clients/").get(clients::list_clients).post(clients::create_client),
        Path::new("/clients/{key}").get(clients::get_client).patch(clients::update_client),
        Path::new("/clients/{key}/rotate").post(clients::rotate_client),
        Path::new("/clients/{key}/disable").post(clients::disable_client),
        Path::new("/maintenance/cleanup").get(maintenance::get_cleanup).post(maintenance::run_cleanup),
        Path::new("/audit/events").get(audit::list_events),
        Path::new("/audit/events/export").get(audit::export_events),
        Path::new("/audit/events/{id}/proof").get(audit_log::get_proof),
        Path::new("/audit/log/checkpoint").get(audit_log::get_checkpoint),
        Path::new("/audit/log/tile/{tile}").get(audit_log::get_tile),
        Path::new("/health/live").get(health::get_liveness),
        Path::new("/health/ready").get(health::get_readiness),
        Path::new("/metrics").get(metrics::get_metrics),
        Path::new("/openapi.json").get(docs::get_openapi),
        Path::new("/docs/").get(docs::get_docs),
        Path::new("/docs/{file}").page(docs::get_docs_file),
        Path::new("/console/").page(console::show_overview),
        Path::new("/console/search").page(console::show_search).form(console::look_up),
        Path::new("/console/users").page(console::show_user),
        Path::new("/console/tokens/{id}").page(console::show_token),
        Path::new("/console/audit").page(console::show_audit),
        Path::new("/console/events/{id}").page(console::show_event),
        Path::new("/console/invalidate").page(console::confirm_invalidation).form(console::invalidate),
        Path::new("/console/clients").page(console::show_clients).form(console::create_client),
        Path::new("/console/clients/{key}").page(console::show_client).form(console::change_client),
        Path::new("/console/assets/{file}").page(console::get_asset),
    ]
}
