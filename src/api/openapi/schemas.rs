//! The schemas: a member means the same wherever it is, and an object is its members.

use serde_json::{Map, Value, json};

use super::reference;
use crate::api::event_query::MAX_NAME;
use crate::api::event_rows::EventFormat;
use crate::api::fields::{MAX_BANK, MAX_TOKEN_STRING, MAX_USER_ID};
use crate::api::invalidation::{LOOKUP, REASON};
use crate::api::maintenance::{BATCH_SIZES, RUN, RUNTIMES};
use crate::api::problem::ProblemKind;
use crate::api::query::{DEFAULT_LIMIT, MAX_LIMIT};
use crate::api::tokens::{ACCESS, DEFAULT_LIFETIME, LIFETIMES, ORDER};
use crate::model::{Country, EventKind, InvalidationReason};
use crate::vending::cleanup::Run;

/// The schema of the member or query parameter of that name. One that is missing fails the test of
/// the document.
#[rustfmt::skip]
pub fn member(name: &str) -> Value {
    match name {
        "id" => json!({"type": "string", "format": "uuid", "description": "A UUIDv7."}),
        "tokenId" => json!({"type": "string", "format": "uuid", "description": "The token, or the mint that made none."}),
        "userId" => json!({"type": "string", "minLength": 1, "maxLength": MAX_USER_ID, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
            "not": {"pattern": ".@[^@]+\\.[A-Za-z]{2,}$"},
            "description": "The company's own opaque id of its user; no e-mail address."}),
        "tokenString" => json!({"type": "string", "minLength": 1, "maxLength": MAX_TOKEN_STRING,
            "description": "The bearer secret that the upstream minted."}),
        "expiration" => moment("When it ends, by the upstream's word."),
        "expiresIn" => json!({"type": "integer", "minimum": 0, "description": "Whole seconds of life left, by the service's clock."}),
        "isValid" => json!({"type": "boolean", "description": "Not ended, and its time not over: as of the reading."}),
        "country" => reference("schemas", "Country"),
        "bank" => json!({"type": "string", "minLength": 1, "maxLength": MAX_BANK,
            "pattern": "^[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$",
            "description": "The bank as the upstream names it, without control characters and without white space at either end; none is any."}),
        "access" => reference("schemas", "Access"),
        "accounts" | "balances" | "transactions" => json!({"type": "boolean", "description": format!("Whether the {name} may be read.")}),
        "issuedAt" => moment("When it was recorded."),
        "lifetime" => json!({"type": "integer", "minimum": LIFETIMES.start(), "maximum": LIFETIMES.end(), "default": DEFAULT_LIFETIME,
            "description": "Seconds of life to ask of the upstream where a token is minted; 0 gives a token that is never handed out again."}),
        "fingerprint" => json!({"type": "string", "pattern": "^[0-9a-f]{64}$",
            "description": "HMAC-SHA256 of the token string: names it in the audit."}),
        "outcome" => json!({"type": "string", "enum": ["minted", "reused"], "description": "Whether it was minted for this very request."}),
        "verificationUrl" => json!({"type": "string", "format": "uri",
            "description": "The link for the end user, as secret as the token string in it."}),
        "invalidatedAt" => moment("When it was ended before its time."),
        "invalidationReason" | "reason" => reference("schemas", "InvalidationReason"),
        "invalidated" => json!({"type": "integer", "minimum": 0, "description": "Valid tokens that ended by this; 0 where nothing is known of them."}),
        "nextCursor" => json!({"type": "string", "description": "The `cursor` of the next page; null on the last."}),
        "occurredAt" => moment("When, to the microsecond."),
        "kind" => json!({"anyOf": [reference("schemas", "EventKind"), {"type": "string"}], "description": "What happened; later versions may have more kinds."}),
        "client" => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": MAX_NAME, "description": "An API key."}),
        "requestId" => request_id(),
        "sourceIp" => json!({"type": "string", "description": "The address that the request came from."}),
        "detail" => json!({"type": "object", "additionalProperties": true, "description": "What else there is to say, by kind."}),
        "from" => moment("At or after."),
        "to" => moment("Before; not before `from`."),
        "order" => json!({"type": "string", "enum": ["asc", "desc"], "default": "desc", "description": "Oldest or newest first."}),
        "limit" => json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT, "description": "The size of a page."}),
        "cursor" => json!({"type": "string", "description": "The `nextCursor` of an answer to this very query."}),
        "format" => json!({"type": "string", "enum": EventFormat::ALL, "default": EventFormat::Ndjson, "description": meanings(EventFormat::ALL, EventFormat::meaning)}),
        "dryRun" => json!({"type": "boolean", "default": Run::default().dry_run, "description": "Only count."}),
        "batchSize" => json!({"type": "integer", "minimum": BATCH_SIZES.start(), "maximum": BATCH_SIZES.end(), "default": Run::default().batch_size,
            "description": "Rows in one transaction."}),
        "maxRuntimeSeconds" => json!({"type": "integer", "minimum": RUNTIMES.start(), "maximum": RUNTIMES.end(),
            "default": Run::default().max_runtime.as_secs(), "description": "It stops after this."}),
        "expired" => count("Tokens whose time was over, marked and wiped."),
        "abandonedMints" => count("Mints that nobody finished, marked as unknown."),
        "purgedTokens" => count("Token records past retention, deleted."),
        "purgedMints" => count("Mint records past retention, deleted."),
        "purgedCombinations" => count("Combinations past retention, deleted."),
        "partitionsCreated" => count("Months of the audit made ahead."),
        "partitionsDropped" => count("Months of the audit past retention, dropped."),
        "complete" => json!({"type": "boolean", "description": "Nothing was left to do."}),
        "elapsedMs" => count("Milliseconds it took."),
        "overdueTokens" => count("Expired tokens still marked valid."),
        "oldestOverdue" => moment("When the oldest of them expired."),
        "lastRunAt" => moment("When the last run ended, on whichever replica."),
        "lastSuccessAt" => moment("When one last left nothing to do."),
        "lastRun" => reference("schemas", "CleanupSummary"),
        "nextDue" => moment("When the next one is due; null where an outside scheduler has it."),
        "status" => json!({"type": "string", "const": "ok"}),
        "version" => json!({"type": "string", "description": "The version of the service."}),
        _ => panic!("the member {name} has no schema"),
    }
}

/// What a request id may be: printable ASCII.
pub fn request_id() -> Value {
    json!({"type": "string", "pattern": "^[ -~]+$", "maxLength": MAX_NAME, "description": "The caller's own `X-Request-Id`, or ours."})
}

fn moment(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn count(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

/// A list of names, each with what it means.
fn meanings<T: Copy + ToString>(all: &[T], meaning: fn(T) -> &'static str) -> String {
    let lines = all
        .iter()
        .map(|one| format!("- `{}`: {}", one.to_string(), meaning(*one)));
    lines.collect::<Vec<_>>().join("\n")
}

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
    let names: Vec<_> = example
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    let mut schema = object(description, names.iter().copied(), optional, &example);
    schema["required"] = json!(names);
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

    let mut order = request("What a token is asked for: the upstream's own request, and `userId`.", &ORDER, &["userId"], &any,
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
        "Country": {"type": "string", "enum": Country::all().collect::<Vec<_>>(), "description": "The country of the bank; none is any."},
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
