//! Operation Objects: the hand-written documentation of each operation, completed from its handler.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reference;
use crate::api::extract::event_query::{EXPORT, LIST};
use crate::api::handlers::clients;
use crate::api::handlers::tokens::FILTER;
use crate::api::problem::ProblemKind;
use crate::api::routes::Operation;
use crate::model::FailureKind as F;

/// Returns the hand-written part of an Operation Object.
///
/// `parameters` and `problems` contain names. [`describe`] replaces them with references.
#[rustfmt::skip]
fn operation_doc(id: &str) -> Value {
    match id {
        "issue_token" => json!({"tags": ["tokens"], "summary": "Returns a valid token, or mints one",
            "description": "Returns a token of the user, country, bank and access that is still valid and has enough life left. \
                By default, enough is 60 seconds, or half of `lifetime` if that is shorter. If there is no such token, the service \
                mints one at the provider. The request that started the mint gets 201. Requests that waited for the same mint get \
                200.\n\nThe service cannot detect that a token was used. After the end user has finished, call `invalidate_token` \
                with the reason `used`. Otherwise the next request returns a token that the provider rejects.",
            "requestBody": json_body("IssueToken"), "parameters": ["Cache-Control"],
            "responses": {
                "200": json_response("A token on record was reused. Its remaining life may be shorter or longer than `lifetime`. Use `min-fresh` to require \
                    a minimum.",
                    "Token", &["Cache-Status"]),
                "201": json_response("A token was minted for this request.", "Token", &["Cache-Status", "Location"]),
            },
            "problems": [F::UpstreamRejected, F::UpstreamRefused, F::UpstreamFailed, F::UpstreamUnavailable, F::UpstreamBudgetSpent,
                F::MintQuotaSpent, F::UpstreamTimeout, F::Overloaded, F::TokenUnreadable]}),
        "list_tokens" => json!({"tags": ["tokens"], "summary": "Lists token records",
            "description": "Returns token records without their token strings, newest first, in pages. The list may be read from a standby \
                and may lag behind.\n\n`country`, `bank` and `isValid` can only be used together with `userId`.",
            "parameters": FILTER, "responses": {"200": json_response("A page of token records.", "TokenRecordPage", &[])}}),
        "get_token" => json!({"tags": ["tokens"], "summary": "Returns a token record",
            "description": "Returns the current record of the token, without its token string.",
            "responses": {"200": json_response("The token record.", "TokenRecord", &[])}}),
        "look_up_token" => json!({"tags": ["tokens"], "summary": "Finds the record of a token string",
            "description": "Returns the record of the token with this token string. Use it to find the user of a token that was found outside \
                the service.",
            "requestBody": json_body("LookUpToken"), "responses": {"200": json_response("The token record.", "TokenRecord", &[])},
            "problems": [ProblemKind::NotFound.slug()]}),
        "invalidate_token" => json!({"tags": ["tokens"], "summary": "Invalidates a token",
            "description": "After the response, no replica hands out the token again. Repeated requests succeed and keep the first reason. A 503 \
                means that the token may still be valid.",
            "requestBody": json_body("InvalidateToken"), "responses": {"200": json_response("The token record after the change.", "TokenRecord", &[])}}),
        "invalidate_tokens" => json!({"tags": ["tokens"], "summary": "Invalidates the tokens of a user or a token string",
            "description": "Invalidates all valid tokens of the user, or every token with the token string. After the response, no replica hands \
                them out again. For a user, this includes tokens that are being minted during the request.\n\nMany tokens are invalidated \
                in batches, which may take up to 35 s. A 503 means that some tokens may still be valid. What was invalidated stays so, and a \
                repeated request continues. The number in the response counts this request only.",
            "requestBody": json_body("InvalidateTokens"), "responses": {"200": json_response("The number of tokens that were invalidated.", "Invalidated", &[])}}),
        "list_events" => json!({"tags": ["audit"], "summary": "Lists audit events",
            "description": "Returns the events that match all given filters, in pages. The list may be read from a standby and may lag \
                behind. It is complete up to `completeUntil`. The service records the request as an `audit.read` event. `HEAD` reads no events and is not recorded.",
            "parameters": LIST, "responses": {"200": json_response("A page of events.", "AuditEventPage", &[])}}),
        "export_events" => json!({"tags": ["audit"], "summary": "Exports audit events",
            "description": "Streams every event that matches all given filters, oldest first. If the export fails, the service closes the \
                connection before the final chunk. The export is complete up to the time in the header `Complete-Until`. A 503 may mean \
                that the standby that is read lags. The service records the request as an `audit.read` event. `HEAD` reads no events \
                and is not recorded.",
            "parameters": EXPORT,
            "responses": {"200": response("The matching events.", &["Complete-Until", "Content-Disposition"], json!({
                "application/x-ndjson": {"schema": {"type": "string", "description": "One `AuditEvent` per line, without `clientName`."}},
                "text/csv; charset=utf-8": {"schema": {"type": "string", "description": "CSV by RFC 4180 with a header row. The columns are \
                    the members of an `AuditEvent`, and `access` and `detail` are JSON. An apostrophe is put in front of a value that a \
                    spreadsheet would read as a formula."}},
            }))}}),
        "get_proof" => json!({"tags": ["audit"], "summary": "Returns the proof that the sealed log contains an event",
            "description": "Returns the entry of the event, its index in the sealed log, and the hashes that lead from the entry to the root \
                in the checkpoint (RFC 6962, section 2.1.1). An event is sealed within about 10 seconds. Until then, the response is 404. The service records \
                the request as an `audit.read` event.",
            "responses": {"200": json_response("The proof.", "EventProof", &[])}}),
        "get_checkpoint" => json!({"tags": ["audit"], "summary": "Returns the signed head of the sealed log",
            "description": "Returns the checkpoint (c2sp.org/tlog-checkpoint): the origin, the number of entries and the root of the Merkle \
                tree, signed if a signing key is set.",
            "responses": {"200": file_response("The checkpoint.", "text/plain; charset=utf-8", "string")},
            "problems": [ProblemKind::NotFound.slug()]}),
        "get_tile" => json!({"tags": ["audit"], "summary": "Returns a tile of the sealed log",
            "description": "Returns up to 256 hashes of the Merkle tree, or the entries of a tile of level 0 (c2sp.org/tlog-tiles). An entry is \
                the line of an NDJSON export without its line end. Entries that retention has deleted return 404. The service records \
                a request for entries as an `audit.read` event.",
            "responses": {"200": file_response("The hashes, 32 bytes each, or the entries, each after its length in two bytes.", "application/octet-stream", "string")}}),
        "list_clients" => json!({"tags": ["clients"], "summary": "Lists clients",
            "description": "Returns the clients without their secrets, in the order of their keys, in pages.",
            "parameters": clients::LIST, "responses": {"200": json_response("A page of clients.", "ClientPage", &[])}}),
        "create_client" => json!({"tags": ["clients"], "summary": "Creates a client",
            "description": "Creates a client with a new key and a new secret. Only this response contains the secret. The caller must hold every \
                scope in `scopes`; otherwise the response is 403. Another enabled client must not have the name.",
            "requestBody": json_body("CreateClient"), "responses": {"201": json_response("The new client with its secret.", "ClientWithSecret", &["Location"])}}),
        "get_client" => json!({"tags": ["clients"], "summary": "Returns a client",
            "description": "Returns the client without its secret.", "responses": {"200": json_response("The client.", "ClientRecord", &[])}}),
        "update_client" => json!({"tags": ["clients"], "summary": "Changes a client",
            "description": "Changes the members that the body has, all or none. Null removes a limit or the expiry. Every replica applies the \
                change within 5 seconds. The caller must hold every scope that the client has or gets; otherwise the response is 403. A \
                disabled client cannot be changed.",
            "requestBody": json_body("UpdateClient"), "responses": {"200": json_response("The client after the change.", "ClientRecord", &[])}}),
        "rotate_client" => json!({"tags": ["clients"], "summary": "Gives a client a new secret",
            "description": "Only this response contains the new secret. Every replica accepts it at once. The old secret stays valid for \
                `graceSeconds`. The expiry stays unless `expiresInSeconds` is given. The caller must hold every scope of the client; \
                otherwise the response is 403. A request without a body uses the defaults.",
            "requestBody": optional(json_body("RotateClient")), "responses": {"200": json_response("The client with its new secret.", "ClientWithSecret", &[])}}),
        "disable_client" => json!({"tags": ["clients"], "summary": "Disables a client",
            "description": "Every replica rejects the client within 5 seconds. This cannot be undone. Repeated requests succeed. A caller can \
                disable every client, including itself. A body is ignored.",
            "responses": {"200": json_response("The client after the change.", "ClientRecord", &[])}}),
        "get_cleanup" => json!({"tags": ["maintenance"], "summary": "Returns the state of the cleanup",
            "description": "Returns the backlog, the last pass and the time of the next pass.", "responses": {"200": json_response("The state of the cleanup.", "CleanupState", &[])}}),
        "run_cleanup" => json!({"tags": ["maintenance"], "summary": "Runs a cleanup pass",
            "description": "Marks expired tokens, deletes records past retention and maintains the partitions of the audit log. Any number of \
                passes can safely run at the same time. A request without a body uses the defaults.",
            "requestBody": optional(json_body("RunCleanup")), "responses": {"200": json_response("The changes that the pass made, or would make.", "CleanupSummary", &[])}}),
        "get_liveness" => json!({"tags": ["service"], "summary": "Reports whether the process responds",
            "description": "For liveness probes. It does not check the database.",
            "responses": {"200": json_response("The process responds.", "Liveness", &[])}}),
        "get_readiness" => json!({"tags": ["service"], "summary": "Reports whether the service can serve requests",
            "description": "For readiness probes.",
            "responses": {"200": json_response("The service can serve requests.", "Readiness", &[]),
                "503": json_response("The service cannot serve requests. `checks` names the failing checks.", "Readiness", &["Retry-After"])}}),
        "get_metrics" => json!({"tags": ["service"], "summary": "Returns the metrics of the replica",
            "description": "For Prometheus. No label contains a user, a bank or a token.",
            "responses": {"200": file_response("The Prometheus text format.", "text/plain; version=0.0.4; charset=utf-8", "string")}}),
        "get_openapi" => json!({"tags": ["service"], "summary": "Returns this document",
            "description": "The command `token-vendor openapi` prints the same document.",
            "responses": {"200": file_response("The OpenAPI 3.1 document.", "application/json", "object")}}),
        "get_docs" => json!({"tags": ["service"], "summary": "Shows this document as a page",
            "description": "A Swagger UI page. It loads nothing from other addresses.",
            "responses": {"200": file_response("The page.", "text/html; charset=utf-8", "string")}}),
        _ => panic!("the operation {id} has no documentation"),
    }
}

fn json_body(schema: &str) -> Value {
    json!({"required": true, "content": {"application/json": {"schema": reference("schemas", schema)}}})
}

fn optional(mut body: Value) -> Value {
    body["required"] = json!(false);
    body
}

fn json_response(description: &str, schema: &str, headers: &[&str]) -> Value {
    let content = json!({"application/json": {"schema": reference("schemas", schema)}});
    response(description, headers, content)
}

fn file_response(description: &str, media_type: &str, kind: &str) -> Value {
    response(
        description,
        &[],
        json!({media_type: {"schema": {"type": kind}}}),
    )
}

fn response(description: &str, headers: &[&str], content: Value) -> Value {
    let headers = ["X-Request-Id", "Cache-Control", "X-Content-Type-Options"]
        .iter()
        .chain(headers);
    let headers: Map<_, _> = headers
        .map(|name| (name.to_string(), reference("headers", name)))
        .collect();
    json!({"description": description, "headers": headers, "content": content})
}

/// Returns the complete Operation Object.
///
/// Adds its error responses to `responses`, because operations share them.
pub fn describe(operation: &Operation, responses: &mut Map<String, Value>) -> Value {
    let mut object = operation_doc(operation.id);
    object["operationId"] = json!(operation.id);
    let named = object["parameters"].as_array().into_iter().flatten();
    let names = ["X-Request-Id", "traceparent"]
        .into_iter()
        .chain(operation.path_parameter)
        .chain(named.filter_map(Value::as_str));
    let parameters = names.map(|name| reference("parameters", name)).collect();
    object["parameters"] = parameters;
    object["security"] = match operation.scope {
        None => json!([]),
        Some(scope) => json!([{"client": [scope]}, {"bearer": [scope]}]),
    };
    if let Some(scope) = operation.scope {
        let description = object["description"].as_str().unwrap_or_default();
        let description = format!("{description}\n\nScope `{scope}`: {}", scope.meaning());
        object["description"] = description.into();
    }

    let members = object.as_object_mut().expect("an object");
    let documented = members.remove("problems").unwrap_or_default();
    let documented = documented.as_array().into_iter().flatten();
    let documented: Vec<_> = documented.filter_map(Value::as_str).collect();
    let mut by_status = BTreeMap::<_, Vec<_>>::new();
    for kind in ProblemKind::all() {
        if operation.problems.contains(&kind) || documented.contains(&kind.slug()) {
            by_status.entry(kind.status()).or_default().push(kind);
        }
    }
    for (status, kinds) in by_status {
        let slugs: Vec<_> = kinds.iter().map(|kind| kind.slug()).collect();
        let name = slugs.join(".");
        object["responses"][status.as_str()] = reference("responses", &name);
        responses.insert(name, problem_response(&kinds));
    }
    object
}

/// The response for all problems of one status.
fn problem_response(kinds: &[ProblemKind]) -> Value {
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
