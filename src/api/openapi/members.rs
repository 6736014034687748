//! The vocabulary: a member, or a query parameter, means the same wherever it is.

use serde_json::{Value, json};

use super::{described, reference};
use crate::api::extract::event_query::MAX_NAME;
use crate::api::extract::fields::{MAX_BANK, MAX_TOKEN_STRING, MAX_USER_ID};
use crate::api::extract::query::{DEFAULT_LIMIT, MAX_LIMIT};
use crate::api::handlers::maintenance::{BATCH_SIZES, RUNTIMES};
use crate::api::handlers::tokens::{DEFAULT_LIFETIME, LIFETIMES};
use crate::jobs::cleanup::CleanupOptions;
use crate::model::event_format::EventFormat;

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
        "expiration" => timestamp("When it ends, by the upstream's word."),
        "expiresIn" => json!({"type": "integer", "minimum": 0, "description": "Whole seconds of life left, by the service's clock."}),
        "isValid" => json!({"type": "boolean", "description": "Not ended, and its time not over: as of the reading."}),
        "country" => described(reference("schemas", "Country"), "The country of the bank; none is any."),
        "bank" => json!({"type": "string", "minLength": 1, "maxLength": MAX_BANK,
            "pattern": "^[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$",
            "description": "The bank as the upstream names it, without control characters and without white space at either end; none is any."}),
        "access" => reference("schemas", "Access"),
        "accounts" | "balances" | "transactions" => json!({"type": "boolean", "description": format!("Whether the {name} may be read.")}),
        "issuedAt" => timestamp("When it was recorded."),
        "lifetime" => json!({"type": "integer", "minimum": LIFETIMES.start(), "maximum": LIFETIMES.end(), "default": DEFAULT_LIFETIME,
            "description": "Seconds of life to ask of the upstream where a token is minted; 0 gives a token that is never handed out again."}),
        "fingerprint" => json!({"type": "string", "pattern": "^[0-9a-f]{64}$",
            "description": "HMAC-SHA256 of the token string: names it in the audit."}),
        "outcome" => json!({"type": "string", "enum": ["minted", "reused"], "description": "Whether it was minted for this very request."}),
        "verificationUrl" => json!({"type": "string", "format": "uri",
            "description": "The link for the end user, as secret as the token string in it."}),
        "invalidatedAt" => timestamp("When it was ended before its time."),
        "invalidationReason" | "reason" => reference("schemas", "InvalidationReason"),
        "invalidated" => json!({"type": "integer", "minimum": 0, "description": "Valid tokens that ended by this; 0 where nothing is known of them."}),
        "nextCursor" => json!({"type": "string", "description": "The `cursor` of the next page; null on the last."}),
        "occurredAt" => timestamp("When, to the microsecond."),
        "kind" => json!({"anyOf": [reference("schemas", "EventKind"), {"type": "string"}], "description": "What happened; later versions may have more kinds."}),
        "client" => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": MAX_NAME, "description": "An API key."}),
        "requestId" => described(request_id(), "The caller's own `X-Request-Id`, or ours."),
        "sourceIp" => json!({"type": "string", "description": "The address that the request came from."}),
        "detail" => json!({"type": "object", "additionalProperties": true, "description": "What else there is to say, by kind."}),
        "from" => timestamp("At or after."),
        "to" => timestamp("Before; not before `from`."),
        "order" => json!({"type": "string", "enum": ["asc", "desc"], "default": "desc", "description": "Oldest or newest first."}),
        "limit" => json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT, "description": "The size of a page."}),
        "cursor" => json!({"type": "string", "description": "The `nextCursor` of an answer to this very query."}),
        "format" => json!({"type": "string", "enum": EventFormat::ALL, "default": EventFormat::Ndjson, "description": meanings(EventFormat::ALL, EventFormat::meaning)}),
        "dryRun" => json!({"type": "boolean", "default": CleanupOptions::default().dry_run, "description": "Only count."}),
        "batchSize" => json!({"type": "integer", "minimum": BATCH_SIZES.start(), "maximum": BATCH_SIZES.end(), "default": CleanupOptions::default().batch_size,
            "description": "Rows in one transaction."}),
        "maxRuntimeSeconds" => json!({"type": "integer", "minimum": RUNTIMES.start(), "maximum": RUNTIMES.end(),
            "default": CleanupOptions::default().max_runtime.as_secs(), "description": "It stops after this."}),
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
        "oldestOverdue" => timestamp("When the oldest of them expired."),
        "lastRunAt" => timestamp("When the last run ended, on whichever replica."),
        "lastSuccessAt" => timestamp("When one last left nothing to do."),
        "lastRun" => reference("schemas", "CleanupSummary"),
        "nextDue" => timestamp("When the next one is due; null where an outside scheduler has it."),
        "status" => json!({"type": "string", "const": "ok"}),
        "version" => json!({"type": "string", "description": "The version of the service."}),
        _ => panic!("the member {name} has no schema"),
    }
}

/// What a request id may be: printable ASCII.
pub fn request_id() -> Value {
    json!({"type": "string", "pattern": "^[ -~]+$", "maxLength": MAX_NAME})
}

fn timestamp(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn count(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

/// A list of names, each with what it means.
pub fn meanings<T: Copy + ToString>(all: &[T], meaning: fn(T) -> &'static str) -> String {
    let lines = all
        .iter()
        .map(|one| format!("- `{}`: {}", one.to_string(), meaning(*one)));
    lines.collect::<Vec<_>>().join("\n")
}
