//! Schemas of request and response bodies, with their examples.

use serde_json::{Map, Value, json};

use super::members::{meanings, member};
use super::reference;
use crate::api::handlers::clients::{ROTATION, SETTINGS};
use crate::api::handlers::invalidation::{LOOKUP, REASON};
use crate::api::handlers::maintenance::RUN;
use crate::api::handlers::tokens::{ACCESS, TOKEN_REQUEST};
use crate::api::problem::ProblemKind;
use crate::model::{Country, EventKind, InvalidationReason, Scope};

/// Extends a schema to accept null.
fn nullable(mut schema: Value) -> Value {
    match schema.get("type").cloned() {
        Some(kind) => schema["type"] = json!([kind, "null"]),
        None => schema = json!({"anyOf": [schema, {"type": "null"}]}),
    }
    schema
}

/// The schema of an object with the members `names`. Members in `optional` may be null.
fn object<'a>(
    description: &str,
    names: impl Iterator<Item = &'a str>,
    optional: &[&str],
    example: &Value,
) -> Value {
    let property = |name: &'a str| match optional.contains(&name) {
        true => (name.to_owned(), nullable(member(name))),
        false => (name.to_owned(), member(name)),
    };
    let properties: Map<_, _> = names.map(property).collect();
    json!({"type": "object", "description": description, "properties": properties, "examples": [example]})
}

/// The schema of a response object. It has exactly the members of the example, and all of them are required.
fn response_object(description: &str, optional: &[&str], example: Value) -> Value {
    let names = || example.as_object().into_iter().flat_map(Map::keys);
    let mut schema = object(description, names().map(String::as_str), optional, &example);
    for name in names() {
        let property = schema["properties"][name].as_object_mut();
        property.and_then(|property| property.remove("default"));
    }
    schema["required"] = names().cloned().collect();
    schema
}

/// The schema of a request object. Members other than `names` are rejected.
///
/// The descriptions have the defaults, because generators make a member with a `default` required or always send it.
fn request_object(
    description: &str,
    names: &[&str],
    required: &[&str],
    optional: &[&str],
    example: Value,
) -> Value {
    let mut schema = object(description, names.iter().copied(), optional, &example);
    for name in names {
        let property = &mut schema["properties"][name];
        let default = property.as_object_mut().and_then(|it| it.remove("default"));
        if let (Some(default), Some(text)) = (default, property["description"].as_str()) {
            property["description"] = format!("{text} Default: {default}.").into();
        }
    }
    schema["required"] = json!(required);
    schema["additionalProperties"] = json!(false);
    schema
}

/// The schemas, by name.
#[rustfmt::skip]
pub fn schemas() -> Value {
    let nullable = ["country", "bank"];
    let mut record = token();
    let members = record.as_object_mut().expect("an object");
    for name in ["tokenString", "verificationUrl", "expiresIn", "outcome"] {
        members.remove(name);
    }
    members.insert("isValid".into(), json!(false));
    members.insert("invalidatedAt".into(), json!("2026-11-22T09:51:40.775120Z"));
    members.insert("invalidationReason".into(), json!("used"));
    let summary = json!({"expired": 12, "abandonedMints": 0, "purgedTokens": 3, "purgedMints": 3, "purgedCombinations": 1,
        "partitionsCreated": 0, "partitionsDropped": 0, "dryRun": false, "complete": true, "clocksAgree": true, "elapsedMs": 48});
    let reason = json!({"reason": "used"});
    let settings = json!({"name": "Web shop", "scopes": ["tokens:issue", "tokens:read"], "mintsPerHour": 500, "requestsPerSecond": null,
        "allowFrom": ["10.0.0.0/8"], "expiresInSeconds": 7_776_000});
    let mut create_client = request_object("The settings of a new client.", &SETTINGS, &["name", "scopes"], &LIMITS, settings);
    let mut update_client = request_object("The settings to change.", &SETTINGS, &[], &LIMITS, json!({"mintsPerHour": 100, "expiresInSeconds": null}));
    for schema in [&mut create_client, &mut update_client] {
        schema["properties"]["scopes"]["minItems"] = json!(1);
    }
    let mut with_secret = client();
    with_secret["apiSecret"] = json!("nTqdbvD0kHcpyGbQLcAqfAjPzTHHVDSO0bv9QUxIjbQ");
    let mut with_secret = response_object("A client with its new secret. A client with an `oidcSubject` has none.", &CLIENT_NULLABLE, with_secret);
    let required = with_secret["required"].as_array_mut().expect("the required members");
    required.retain(|member| member != "apiSecret");

    let mut issue = request_object("A token request: the provider's own request with `userId` added.", &TOKEN_REQUEST, &["userId"], &nullable,
        json!({"userId": "u-1", "country": "LT", "bank": "Swedbank", "access": {"accounts": true}, "lifetime": 3600}));
    issue["properties"]["access"] = reference("schemas", "AccessRequest");
    let flags = request_object("The data that the token gives access to. An absent member means false.", &ACCESS, &[], &[], json!({"accounts": true}));
    json!({
        "IssueToken": issue,
        "AccessRequest": flags,
        "LookUpToken": request_object("The token string to look up.", &LOOKUP, &LOOKUP, &[], json!({"tokenString": token()["tokenString"]})),
        "InvalidateToken": request_object("The reason of the invalidation.", &REASON, &REASON, &[], reason.clone()),
        "InvalidateTokens": {"oneOf": [reference("schemas", "InvalidateUser"), reference("schemas", "InvalidateTokenString")],
            "description": "A reason, and exactly one of `userId` and `tokenString`."},
        "InvalidateUser": request_object("Invalidates all valid tokens of a user.", &["reason", "userId"], &["reason", "userId"], &[],
            json!({"reason": "requested", "userId": "u-1"})),
        "InvalidateTokenString": request_object("Invalidates every token with this token string.", &["reason", "tokenString"], &["reason", "tokenString"], &[],
            json!({"reason": "compromised", "tokenString": token()["tokenString"]})),
        "RunCleanup": request_object("The options of a cleanup pass.", &RUN, &[], &[], json!({"dryRun": true, "batchSize": 1000, "maxRuntimeSeconds": 30})),
        "Token": response_object("An issued token with its token string.", &nullable, token()),
        "TokenRecord": response_object("The record of a token, without its token string.",
            &["country", "bank", "invalidatedAt", "invalidationReason"], record.clone()),
        "TokenRecordPage": page("TokenRecord", &record),
        "Access": response_object("The data that the token gives access to.", &[], token()["access"].clone()),
        "Country": {"type": "string", "enum": Country::all().collect::<Vec<_>>(), "description": "A country whose banks the provider supports."},
        "InvalidationReason": {"type": "string", "enum": InvalidationReason::ALL, "description": meanings(InvalidationReason::ALL, InvalidationReason::meaning)},
        "Invalidated": response_object("The result of an invalidation.", &[], json!({"invalidated": 2})),
        "AuditEvent": response_object("An event of the audit log.", &["client", "requestId", "sourceIp", "userId", "country", "bank", "access",
            "tokenId", "fingerprint", "detail", "clientName"], item()),
        "AuditEventPage": event_page(),
        "EventProof": response_object("The proof that the sealed log contains an event.", &[], json!({"leafIndex": 0,
            "entry": event().to_string(), "proof": [], "checkpoint": "token-vendor\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n"})),
        "EventKind": {"type": "string", "enum": EventKind::ALL, "description": meanings(EventKind::ALL, EventKind::meaning)},
        "Scope": {"type": "string", "enum": Scope::ALL, "description": meanings(Scope::ALL, Scope::meaning)},
        "CreateClient": create_client,
        "UpdateClient": update_client,
        "RotateClient": request_object("The options of a rotation.", &ROTATION, &[], &[], json!({"graceSeconds": 3600})),
        "ClientRecord": response_object("A client without its secret.", &CLIENT_NULLABLE, client()),
        "ClientWithSecret": with_secret,
        "ClientPage": page("ClientRecord", &client()),
        "CleanupSummary": response_object("The changes that a cleanup pass made, or would make if `dryRun` is true.", &[], summary.clone()),
        "CleanupState": response_object("The state of the cleanup: its backlog, the last pass and the next one.", &["oldestOverdue", "lastRunAt", "lastSuccessAt", "lastRun", "nextDue"],
            json!({"overdueTokens": 0, "oldestOverdue": null, "lastRunAt": "2026-11-22T09:39:00Z", "lastSuccessAt": "2026-11-22T09:39:00Z",
                "lastRun": summary, "nextDue": "2026-11-22T09:40:00Z"})),
        "Liveness": response_object("The response of a running process.", &[], json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")})),
        "Readiness": readiness(),
        "Problem": problem(),
    })
}

/// The members of a new client and of a change that may be null.
const LIMITS: [&str; 5] = [
    "mintsPerHour",
    "requestsPerSecond",
    "allowFrom",
    "expiresInSeconds",
    "oidcSubject",
];

/// The members of a client that may be null.
const CLIENT_NULLABLE: [&str; 7] = [
    "mintsPerHour",
    "requestsPerSecond",
    "allowFrom",
    "expiresAt",
    "oidcSubject",
    "rotatedAt",
    "lastUsedOn",
];

/// The schema of a page of a list.
fn page(schema: &str, example: &Value) -> Value {
    json!({
        "type": "object",
        "description": "A page of a list.",
        "properties": {"items": {"type": "array", "items": reference("schemas", schema)}, "nextCursor": nullable(member("nextCursor"))},
        "required": ["items", "nextCursor"],
        "examples": [{"items": [example], "nextCursor": null}],
    })
}

/// The schema of a page of events.
fn event_page() -> Value {
    let mut page = page("AuditEvent", &item());
    page["properties"]["completeUntil"] = member("completeUntil");
    page["required"] = json!(["items", "nextCursor", "completeUntil"]);
    page["examples"][0]["completeUntil"] = json!("2026-11-22T09:39:00.123456Z");
    page
}

#[rustfmt::skip]
fn readiness() -> Value {
    let check = |bad: &[&str]| json!({"type": "string", "enum": ([&["ok"], bad].concat())});
    json!({
        "type": "object",
        "description": "The readiness of the service, with the result of each check.",
        "properties": {
            "status": {"type": "string", "enum": ["ok", "unavailable"], "description": "`unavailable` if any check is not `ok`."},
            "checks": {
                "type": "object",
                "properties": {
                    "database": check(&["unavailable"]),
                    "schema": check(&["outdated", "unknown"]),
                    "partitions": check(&["missing", "unknown"]),
                    "writer": check(&["stopped"]),
                    "shutdown": check(&["stopping"]),
                },
                "required": ["database", "schema", "partitions", "writer", "shutdown"],
            },
            "warnings": {"type": "array", "items": {"type": "string"}, "description": "Conditions that will cause failures unless the operator corrects them."},
            "partitionsAheadMonths": {"type": "integer", "description": "The number of months after the current one for which the audit log has a partition. Absent while the database is unavailable."},
            "synchronousStandby": {"type": "boolean", "description": "True if a synchronous standby confirms every commit, so that acknowledged data survives the loss of the primary. Absent while the database is unavailable."},
            "distributed": {"type": "boolean", "description": "True if Citus distributes the tables. `completeUntil` of the audit log then stays, and new events are not sealed. Absent while the database is unavailable."},
        },
        "required": ["status", "checks", "warnings"],
        "examples": [{"status": "ok", "checks": {"database": "ok", "schema": "ok", "partitions": "ok", "writer": "ok", "shutdown": "ok"},
            "warnings": [], "partitionsAheadMonths": 3, "synchronousStandby": false, "distributed": false}],
    })
}

#[rustfmt::skip]
fn problem() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "An error response (RFC 9457).",
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": ProblemKind::all().map(ProblemKind::type_uri).collect::<Vec<_>>(),
                "description": "The kind of problem. Programs should branch on this member."},
            "title": text("The kind of problem, as a short text."),
            "status": {"type": "integer", "description": "The HTTP status of the response."},
            "detail": text("A description of this occurrence."),
            "requestId": text("The `X-Request-Id` of the response."),
            "traceId": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "The trace id of the request. Absent if the request is not traced."},
            "errors": {
                "type": "array",
                "description": "The invalid fields of the request, at most 20. If there are more, `detail` says how many. Each entry names its field in `pointer`, `parameter` or `header`.",
                "items": {
                    "type": "object",
                    "properties": {
                        "detail": text("A description of the error."),
                        "pointer": text("A JSON pointer into the body, as a URI fragment (RFC 6901)."),
                        "parameter": text("The name of a query parameter."),
                        "header": text("The name of a header field."),
                    },
                    "required": ["detail"],
                    "minProperties": 2,
                    "maxProperties": 2,
                },
            },
            "upstream": {
                "type": "object",
                "description": "The provider's error response.",
                "properties": {
                    "status": {"type": "integer", "description": "The HTTP status of the provider's response."},
                    "identifier": text("The provider's error identifier. Absent if it may contain a secret."),
                    "message": text("The provider's error message. Absent if it may contain a secret."),
                },
                "required": ["status"],
            },
        },
        "required": ["type", "title", "status", "detail", "requestId"],
    })
}

/// The example of an issued token.
#[rustfmt::skip]
pub fn token() -> Value {
    json!({"id": "01a204ea-985b-7711-8188-6bde09e642c2", "userId": "u-1", "tokenString": "22URPv4x0DDV8twlQB7C0DDV8twlQB7CqM5n0aZk",
        "expiration": "2026-11-22T10:39:08.092153Z", "expiresIn": 3599, "isValid": true, "country": "LT", "bank": "Swedbank",
        "access": {"accounts": true, "balances": false, "transactions": false}, "issuedAt": "2026-11-22T09:39:08.101874Z", "lifetime": 3600,
        "fingerprint": "28fa2f4f8dccb0f8d4a1b1f4f5d3c8a7e6b5948372615049382716a5b4c3d2e1", "outcome": "minted",
        "verificationUrl": "https://bank-verification.ui.idenfy.com/?token=22URPv4x0DDV8twlQB7C0DDV8twlQB7CqM5n0aZk"})
}

/// The example of an audit event in a page.
fn item() -> Value {
    let mut item = event();
    item["clientName"] = json!("Checkout");
    item
}

/// The example of a client.
#[rustfmt::skip]
pub fn client() -> Value {
    json!({"apiKey": "tv-2yQjXbmX3rCUdAhL", "name": "Checkout", "scopes": ["tokens:issue", "tokens:read"], "mintsPerHour": 500,
        "requestsPerSecond": null, "allowFrom": ["10.0.0.0/8"], "expiresAt": "2027-02-20T09:39:08.177301Z", "oidcSubject": null, "isEnabled": true,
        "createdAt": "2026-11-22T09:39:08.177301Z", "rotatedAt": null, "lastUsedOn": "2026-11-22"})
}

/// The example of an audit event: a handout of [`token`].
pub fn event() -> Value {
    let token = token();
    json!({"id": "01a204ea-98b4-7d02-8f2e-3a9b1c64d57e", "occurredAt": "2026-11-22T09:39:08.177301Z", "kind": "token.reused", "client": "checkout",
        "requestId": "order-4711", "sourceIp": "10.0.4.17", "userId": token["userId"], "country": token["country"], "bank": token["bank"],
        "access": token["access"], "tokenId": token["id"], "fingerprint": token["fingerprint"], "detail": null})
}
