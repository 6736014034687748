//! What there is to say of each operation that its handler does not say itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reference;
use crate::api::extract::event_query::{EXPORT, LIST};
use crate::api::handlers::tokens::FILTER;
use crate::api::problem::ProblemKind;
use crate::api::routes::Operation;
use crate::model::FailureKind as F;

/// An Operation Object in part: its parameters and problems are names.
#[rustfmt::skip]
fn operation_doc(id: &str) -> Value {
    match id {
        "issue_token" => json!({"tags": ["tokens"], "summary": "Get a token",
            "description": "Gives back a token of this user, country, bank and access that is still valid and has enough life left: \
                60 seconds, or half of `lifetime` if that is shorter, unless configured otherwise. Else it has one minted. The \
                request that started a mint is answered with 201, those that waited for it with 200.\n\nThe service cannot see \
                that a token was used up: say so by `invalidate_token` with the reason `used`, or the next caller gets a dead token.",
            "requestBody": body("IssueToken"), "parameters": ["Cache-Control"],
            "responses": {
                "200": answer("A token on record, handed out again. It may have less life than `lifetime` asks (say `min-fresh`), or more.",
                    "Token", &["Cache-Status"]),
                "201": answer("A token minted for this very request.", "Token", &["Cache-Status", "Location"]),
            },
            "problems": [F::UpstreamRejected, F::UpstreamRefused, F::UpstreamFailed, F::UpstreamUnavailable, F::UpstreamBudgetSpent,
                F::UpstreamTimeout, F::Overloaded, F::TokenUnreadable]}),
        "list_tokens" => json!({"tags": ["tokens"], "summary": "List records of tokens",
            "description": "Newest first, by page. It may be read from a standby and lag behind.",
            "parameters": FILTER, "responses": {"200": answer("A page of records.", "TokenRecordPage", &[])}}),
        "get_token" => json!({"tags": ["tokens"], "summary": "Read the record of a token", "description": "As it is now.",
            "responses": {"200": answer("The record.", "TokenRecord", &[])}}),
        "look_up_token" => json!({"tags": ["tokens"], "summary": "Find the record of a token string",
            "description": "Whose is this token that turned up?",
            "requestBody": body("LookUpToken"), "responses": {"200": answer("The record.", "TokenRecord", &[])},
            "problems": [ProblemKind::NotFound.slug()]}),
        "invalidate_token" => json!({"tags": ["tokens"], "summary": "End a token",
            "description": "From the answer on nobody is handed this token, on any replica. Saying it twice is fine: the first reason stays.",
            "requestBody": body("InvalidateToken"), "responses": {"200": answer("The record as it is now.", "TokenRecord", &[])}}),
        "invalidate_tokens" => json!({"tags": ["tokens"], "summary": "End all tokens of a user, or the one of a token string",
            "description": "From the answer on nobody is handed any of them, on any replica; a mint under way ends as invalidated too.",
            "requestBody": body("InvalidateTokens"), "responses": {"200": answer("How many it ended.", "Invalidated", &[])}}),
        "list_events" => json!({"tags": ["audit"], "summary": "List audit events",
            "description": "Any filters together, by page. It may be read from a standby and lag behind. The reading is an event itself \
                (`audit.read`).",
            "parameters": LIST, "responses": {"200": answer("A page of events.", "AuditEventPage", &[])}}),
        "export_events" => json!({"tags": ["audit"], "summary": "Export audit events",
            "description": "Every event that matches, oldest first, as a stream of any length. A failure on the way cuts the connection \
                before the final chunk. The reading is an event itself (`audit.read`).",
            "parameters": EXPORT,
            "responses": {"200": response("The events.", &["Content-Disposition"], json!({
                "application/x-ndjson": {"schema": {"type": "string", "description": "An `AuditEvent` a line."}},
                "text/csv; charset=utf-8": {"schema": {"type": "string", "description": "RFC 4180, with a header row: the members of an \
                    `AuditEvent`, `access` and `detail` as JSON. A cell that a spreadsheet would take for a formula begins with an \
                    apostrophe."}},
            }))}}),
        "get_cleanup" => json!({"tags": ["maintenance"], "summary": "See whether the cleanup keeps up",
            "description": "The backlog, the last run, the next one.", "responses": {"200": answer("How it stands.", "CleanupState", &[])}}),
        "run_cleanup" => json!({"tags": ["maintenance"], "summary": "Clear away what has ended",
            "description": "Safe beside any number of others.",
            "requestBody": body("RunCleanup"), "responses": {"200": answer("What the run did, or would do.", "CleanupSummary", &[])}}),
        "get_liveness" => json!({"tags": ["service"], "summary": "Whether the process answers", "description": "For liveness probes.",
            "responses": {"200": answer("It does.", "Liveness", &[])}}),
        "get_readiness" => json!({"tags": ["service"], "summary": "Whether requests will be served", "description": "For readiness probes.",
            "responses": {"200": answer("They will.", "Readiness", &[]),
                "503": answer("They will not: `checks` says why.", "Readiness", &["Retry-After"])}}),
        "get_metrics" => json!({"tags": ["service"], "summary": "Metrics of this replica",
            "description": "For Prometheus. No user, bank or token is in a label.",
            "responses": {"200": file("Its text format.", "text/plain; version=0.0.4; charset=utf-8", "string")}}),
        "get_openapi" => json!({"tags": ["service"], "summary": "This document", "description": "What `token-vendor openapi` prints.",
            "responses": {"200": file("OpenAPI 3.1.", "application/json", "object")}}),
        "get_docs" => json!({"tags": ["service"], "summary": "This document, for reading",
            "description": "Swagger UI, which loads nothing from elsewhere.",
            "responses": {"200": file("A page.", "text/html; charset=utf-8", "string")}}),
        _ => panic!("there are no words for {id}"),
    }
}

fn body(schema: &str) -> Value {
    json!({"required": true, "content": {"application/json": {"schema": reference("schemas", schema)}}})
}

fn answer(description: &str, schema: &str, headers: &[&str]) -> Value {
    let content = json!({"application/json": {"schema": reference("schemas", schema)}});
    response(description, headers, content)
}

fn file(description: &str, media_type: &str, kind: &str) -> Value {
    response(
        description,
        &[],
        json!({media_type: {"schema": {"type": kind}}}),
    )
}

fn response(description: &str, headers: &[&str], content: Value) -> Value {
    let headers = ["X-Request-Id", "Cache-Control"].iter().chain(headers);
    let headers: Map<_, _> = headers
        .map(|name| (name.to_string(), reference("headers", name)))
        .collect();
    json!({"description": description, "headers": headers, "content": content})
}

/// The Operation Object. The answers to problems, which operations share, go into `responses`.
pub fn describe(operation: &Operation, responses: &mut Map<String, Value>) -> Value {
    let mut object = operation_doc(operation.id);
    object["operationId"] = json!(operation.id);
    let mut common = vec!["X-Request-Id", "traceparent"];
    common.extend(operation.has_id.then_some("id"));
    let named = object["parameters"].as_array().into_iter().flatten();
    let named = common.into_iter().chain(named.filter_map(Value::as_str));
    object["parameters"] = named.map(|name| reference("parameters", name)).collect();
    object["security"] = match operation.scope {
        None => json!([]),
        Some(scope) => json!([{"client": [scope]}]),
    };
    if let Some(scope) = operation.scope {
        let operation_doc = object["description"].as_str().unwrap_or_default();
        let operation_doc = format!("{operation_doc}\n\nScope `{scope}`: {}", scope.meaning());
        object["description"] = operation_doc.into();
    }

    let further = object
        .as_object_mut()
        .and_then(|object| object.remove("problems"));
    let further = further.unwrap_or(json!([]));
    let mut by_status = BTreeMap::<_, Vec<_>>::new();
    for kind in ProblemKind::all() {
        if operation.problems.contains(&kind)
            || further
                .as_array()
                .is_some_and(|slugs| slugs.contains(&json!(kind.slug())))
        {
            by_status.entry(kind.status()).or_default().push(kind);
        }
    }
    for (status, kinds) in by_status {
        let slugs: Vec<_> = kinds.iter().map(|kind| kind.slug()).collect();
        let name = slugs.join(".");
        object["responses"][status.as_str()] = reference("responses", &name);
        responses.insert(name, problem(&kinds));
    }
    object
}

/// The answer to the problems of one status.
fn problem(kinds: &[ProblemKind]) -> Value {
    let headers = match kinds[0].status().as_u16() {
        401 => &["WWW-Authenticate"][..],
        405 => &["Allow"],
        429 | 502.. => &["Retry-After"],
        _ => &[],
    };
    let example = |kind: &ProblemKind| (kind.slug().into(), reference("examples", kind.slug()));
    let content = json!({"application/problem+json": {
        "schema": reference("schemas", "Problem"),
        "examples": kinds.iter().map(example).collect::<Map<_, _>>(),
    }});
    let meaning = |kind: &ProblemKind| format!("`{}`: {}", kind.slug(), kind.meaning());
    let meanings: Vec<_> = kinds.iter().map(meaning).collect();
    response(&meanings.join("\n\n"), headers, content)
}
