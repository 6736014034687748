//! The objects that go in and out.

use serde_json::{Map, Value, json};

use super::members::{meanings, member};
use super::reference;
use crate::api::handlers::invalidation::{LOOKUP, REASON};
use crate::api::handlers::maintenance::RUN;
use crate::api::handlers::tokens::{ACCESS, TOKEN_REQUEST};
use crate::api::problem::ProblemKind;
use crate::model::{Country, EventKind, InvalidationReason};

fn nullable(mut schema: Value) -> Value {
    match schema.get("type").cloned() {
        Some(kind) => schema["type"] = json!([kind, "null"]),
        None => schema = json!({"anyOf": [schema, {"type": "null"}]}),
    }
    schema
}

/// An object of these members, those in `optional` perhaps null.
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

/// An object that always has exactly the members of the example.
fn answer(description: &str, optional: &[&str], example: Value) -> Value {
    let names = || example.as_object().into_iter().flat_map(Map::keys);
    let mut schema = object(description, names().map(String::as_str), optional, &example);
    for name in names() {
        let property = schema["properties"][name].as_object_mut();
        property.and_then(|property| property.remove("default"));
    }
    schema["required"] = names().cloned().collect();
    schema
}

/// An object that is read by these names.
fn request(
    description: &str,
    names: &[&str],
    required: &[&str],
    optional: &[&str],
    example: Value,
) -> Value {
    let mut schema = object(description, names.iter().copied(), optional, &example);
    schema["required"] = json!(required);
    schema["additionalProperties"] = json!(false);
    schema
}

/// The components, by name.
#[rustfmt::skip]
pub fn schemas() -> Value {
    let any = ["country", "bank"];
    let mut record = token();
    let members = record.as_object_mut().expect("an object");
    for secret in ["tokenString", "verificationUrl", "expiresIn", "outcome"] {
        members.remove(secret);
    }
    members.insert("isValid".into(), json!(false));
    members.insert("invalidatedAt".into(), json!("2026-11-22T09:51:40.775120Z"));
    members.insert("invalidationReason".into(), json!("used"));
    let summary = json!({"expired": 12, "abandonedMints": 0, "purgedTokens": 3, "purgedMints": 3, "purgedCombinations": 1,
        "partitionsCreated": 0, "partitionsDropped": 0, "dryRun": false, "complete": true, "elapsedMs": 48});
    let reason = json!({"reason": "used"});

    let mut order = request("What a token is asked for: the upstream's own request, and `userId`.", &TOKEN_REQUEST, &["userId"], &any,
        json!({"userId": "u-1", "country": "LT", "bank": "Swedbank", "access": {"accounts": true}, "lifetime": 3600}));
    order["properties"]["access"] = reference("schemas", "AccessRequest");
    let mut flags = request("What may be read; absent is false.", &ACCESS, &[], &[], json!({"accounts": true}));
    for name in ACCESS {
        flags["properties"][name]["default"] = json!(false);
    }
    json!({
        "IssueToken": order,
        "AccessRequest": flags,
        "LookUpToken": request("A token string that turned up.", &LOOKUP, &LOOKUP, &[], json!({"tokenString": token()["tokenString"]})),
        "InvalidateToken": request("Why it ends.", &REASON, &REASON, &[], reason.clone()),
        "InvalidateTokens": {"oneOf": [reference("schemas", "InvalidateUser"), reference("schemas", "InvalidateTokenString")],
            "description": "A reason, and exactly one of `userId` and `tokenString`."},
        "InvalidateUser": request("All tokens of a user.", &["reason", "userId"], &["reason", "userId"], &[],
            json!({"reason": "requested", "userId": "u-1"})),
        "InvalidateTokenString": request("The one token of this string.", &["reason", "tokenString"], &["reason", "tokenString"], &[],
            json!({"reason": "compromised", "tokenString": token()["tokenString"]})),
        "RunCleanup": request("How the run is to go.", &RUN, &[], &[], json!({"dryRun": true, "batchSize": 1000, "maxRuntimeSeconds": 30})),
        "Token": answer("A token that is handed out, with its secret.", &any, token()),
        "TokenRecord": answer("What is on record of a token, without its secret.",
            &["country", "bank", "invalidatedAt", "invalidationReason"], record.clone()),
        "TokenRecordPage": page("TokenRecord", &record),
        "Access": answer("What may be read with the token.", &[], token()["access"].clone()),
        "Country": {"type": "string", "enum": Country::all().collect::<Vec<_>>(), "description": "One of the countries that the upstream verifies banks in."},
        "InvalidationReason": {"type": "string", "enum": InvalidationReason::ALL, "description": meanings(InvalidationReason::ALL, InvalidationReason::meaning)},
        "Invalidated": answer("How many it ended.", &[], json!({"invalidated": 2})),
        "AuditEvent": answer("Something that happened.", &["client", "requestId", "sourceIp", "userId", "country", "bank", "access",
            "tokenId", "fingerprint", "detail"], event()),
        "AuditEventPage": page("AuditEvent", &event()),
        "EventKind": {"type": "string", "enum": EventKind::ALL, "description": meanings(EventKind::ALL, EventKind::meaning)},
        "CleanupSummary": answer("What a run did, or would do.", &[], summary.clone()),
        "CleanupState": answer("Whether the cleanup keeps up.", &["oldestOverdue", "lastRunAt", "lastSuccessAt", "lastRun", "nextDue"],
            json!({"overdueTokens": 0, "oldestOverdue": null, "lastRunAt": "2026-11-22T09:39:00Z", "lastSuccessAt": "2026-11-22T09:39:00Z",
                "lastRun": summary, "nextDue": "2026-11-22T09:40:00Z"})),
        "Liveness": answer("The process answers.", &[], json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")})),
        "Readiness": readiness(),
        "Problem": problem(),
    })
}

fn page(schema: &str, example: &Value) -> Value {
    json!({
        "type": "object",
        "description": "A page of a list.",
        "properties": {"items": {"type": "array", "items": reference("schemas", schema)}, "nextCursor": nullable(member("nextCursor"))},
        "required": ["items", "nextCursor"],
        "examples": [{"items": [example], "nextCursor": null}],
    })
}

#[rustfmt::skip]
fn readiness() -> Value {
    let check = |bad: &[&str]| json!({"type": "string", "enum": ([&["ok"], bad].concat())});
    json!({
        "type": "object",
        "description": "Whether requests will be served.",
        "properties": {
            "status": {"type": "string", "enum": ["ok", "unavailable"], "description": "`unavailable` where a check is not `ok`."},
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
            "warnings": {"type": "array", "items": {"type": "string"}, "description": "What will be in the way unless somebody sees to it."},
            "partitionsAheadMonths": {"type": "integer", "description": "Months after this one that the audit has room for; absent while the database is down."},
            "synchronousStandby": {"type": "boolean", "description": "Whether what was acknowledged outlives the primary; absent while the database is down."},
        },
        "required": ["status", "checks", "warnings"],
        "examples": [{"status": "ok", "checks": {"database": "ok", "schema": "ok", "partitions": "ok", "writer": "ok", "shutdown": "ok"},
            "warnings": [], "partitionsAheadMonths": 3, "synchronousStandby": false}],
    })
}

#[rustfmt::skip]
fn problem() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "Why an answer is not the thing asked for (RFC 9457).",
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": ProblemKind::all().map(ProblemKind::type_uri).collect::<Vec<_>>(),
                "description": "What it is, for programs."},
            "title": text("What it is, for people."),
            "status": {"type": "integer", "description": "The status of the answer."},
            "detail": text("What it is this time."),
            "requestId": text("The answer's `X-Request-Id`."),
            "traceId": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "The trace that it belongs to, where there is one."},
            "errors": {
                "type": "array",
                "description": "What is wrong with the request, each with its place.",
                "items": {
                    "type": "object",
                    "properties": {
                        "detail": text("What is wrong."),
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
                "description": "What the upstream said.",
                "properties": {
                    "status": {"type": "integer", "description": "Its HTTP status."},
                    "identifier": text("Its error identifier."),
                    "message": text("Its message."),
                },
                "required": ["status"],
            },
        },
        "required": ["type", "title", "status", "detail", "requestId"],
    })
}

/// A token that is handed out.
#[rustfmt::skip]
pub fn token() -> Value {
    json!({"id": "01a204ea-985b-7711-8188-6bde09e642c2", "userId": "u-1", "tokenString": "22URPv4x0DDV8twlQB7C0DDV8twlQB7CqM5n0aZk",
        "expiration": "2026-11-22T10:39:08.092153Z", "expiresIn": 3599, "isValid": true, "country": "LT", "bank": "Swedbank",
        "access": {"accounts": true, "balances": false, "transactions": false}, "issuedAt": "2026-11-22T09:39:08.101874Z", "lifetime": 3600,
        "fingerprint": "28fa2f4f8dccb0f8d4a1b1f4f5d3c8a7e6b5948372615049382716a5b4c3d2e1", "outcome": "minted",
        "verificationUrl": "https://bank-verification.ui.idenfy.com/?token=22URPv4x0DDV8twlQB7C0DDV8twlQB7CqM5n0aZk"})
}

/// The event of a handout.
pub fn event() -> Value {
    let token = token();
    json!({"id": "01a204ea-98b4-7d02-8f2e-3a9b1c64d57e", "occurredAt": "2026-11-22T09:39:08.177301Z", "kind": "token.reused", "client": "checkout",
        "requestId": "order-4711", "sourceIp": "10.0.4.17", "userId": token["userId"], "country": token["country"], "bank": token["bank"],
        "access": token["access"], "tokenId": token["id"], "fingerprint": token["fingerprint"], "detail": null})
}
