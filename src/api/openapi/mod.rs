//! The OpenAPI 3.1 document, made from the route table.
//!
//! Paths, names, scopes and most problems come from the handlers (`routes`), members and parameters
//! from the arrays that they are read by, limits and enumerations from where they are enforced. What
//! only words can say is here: `operations` has them for each, `members` for each member.
//! `docs/openapi.json` is the outcome; tests hold it to the code and to real answers.

mod members;
mod operations;
mod parts;
mod schemas;

use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::api::router;

/// The document as JSON.
pub static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| Bytes::from(document().to_string().into_bytes()));

/// The document.
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
        "servers": [{"url": "/", "description": "The service that this document came from."}],
        "tags": [
            {"name": "tokens", "description": "Get tokens, read their records, end them."},
            {"name": "audit", "description": "Who got which token, when, and what became of it."},
            {"name": "maintenance", "description": "Whether the cleanup keeps up."},
            {"name": "service", "description": "For probes, scrapers and readers; open to anyone."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::schemas(),
            "parameters": parts::parameters(),
            "headers": parts::headers(),
            "responses": responses,
            "examples": parts::problems(),
            "securitySchemes": {"client": {
                "type": "http",
                "scheme": "basic",
                "description": "The API key as username, the API secret as password.",
            }},
        },
    })
}

/// The schema with that description.
fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = description.into();
    schema
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}
