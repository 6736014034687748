//! The OpenAPI 3.1 document, generated from the route table.
//!
//! - The handlers supply paths, operation ids, scopes and most problems (`routes`).
//! - The arrays that parse members and parameters supply their names.
//! - The code that enforces limits and enumerations supplies their values.
//! - `operations` and `members` supply the descriptions.
//!
//! `make openapi` writes the document to `docs/openapi.json`. Tests compare that file with the code and with real
//! responses.

mod components;
mod members;
mod operations;
mod schemas;

use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::api::router;

/// The document, serialized once per process.
pub static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| Bytes::from(document().to_string().into_bytes()));

/// Generates the document from the route table.
pub fn document() -> Value {
    let (mut paths, mut responses) = (Map::new(), Map::new());
    for path in router::paths() {
        let operations: Map<_, _> = path
            .operations()
            .map(|(method, operation)| {
                (
                    method.to_owned(),
                    operations::describe(operation, &mut responses),
                )
            })
            .collect();
        if !operations.is_empty() {
            paths.insert(path.name.to_owned(), operations.into());
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "token-vendor",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": env!("CARGO_PKG_DESCRIPTION"),
            "description": include_str!("about.md"),
            "contact": {"name": "Whoever operates this deployment"},
            "license": {"name": "MIT or Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The service that serves this document."}],
        "tags": [
            {"name": "tokens", "description": "Issues tokens, reads their records and invalidates them."},
            {"name": "audit", "description": "Lists and exports the events of the audit log."},
            {"name": "clients", "description": "Manages the clients of the service."},
            {"name": "maintenance", "description": "Shows and runs the cleanup."},
            {"name": "service", "description": "Health, metrics and documentation. These operations need no authentication."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::schemas(),
            "parameters": components::parameters(),
            "headers": components::headers(),
            "responses": responses,
            "examples": components::problem_examples(),
            "securitySchemes": {
                "client": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The API key is the username, and the API secret is the password.",
                },
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A JWT of the configured OIDC issuer. Its `sub` names a client. Scopes come only from that client.",
                },
            },
        },
    })
}

/// Sets the description of a schema.
fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = description.into();
    schema
}

/// A Reference Object to a component, for example kind `schemas` and name `Token`.
fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}
