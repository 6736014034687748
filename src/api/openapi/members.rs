//! Schemas of members and query parameters. A name has the same schema everywhere.

use serde_json::{Value, json};

use super::{described, reference};
use crate::api::extract::fields::MAX_TOKEN_STRING;
use crate::api::extract::query::{DEFAULT_LIMIT, MAX_LIMIT};
use crate::api::handlers::clients::{DEFAULT_GRACE, GRACES};
use crate::api::handlers::maintenance::{BATCH_SIZES, RUNTIMES};
use crate::api::handlers::tokens::{DEFAULT_LIFETIME, LIFETIMES};
use crate::jobs::cleanup::CleanupOptions;
use crate::model::event_format::EventFormat;
use crate::model::rules::{
    CLIENT_LIMITS, EXPIRIES, MAX_BANK, MAX_CLIENT_NAME, MAX_NAME, MAX_NETWORKS, MAX_OIDC_SUBJECT,
    MAX_USER_ID,
};

/// Matches a text without control characters and without white space at either end.
const TRIMMED: &str = "^[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$";

/// Returns the schema of a member or query parameter.
///
/// # Panics
/// If the name has no schema. The test that generates the document catches this.
#[rustfmt::skip]
pub fn member(name: &str) -> Value {
    match name {
        "id" => json!({"type": "string", "format": "uuid", "description": "A UUIDv7."}),
        "tokenId" => json!({"type": "string", "format": "uuid", "description": "The id of the token. Events of a mint that failed carry the id of the mint."}),
        "userId" => json!({"type": "string", "minLength": 1, "maxLength": MAX_USER_ID, "pattern": TRIMMED,
            "not": {"type": "string", "pattern": ".@[^@]+\\.[A-Za-z]{2,}$"},
            "description": "The caller's opaque id of its user, without control characters and without white space at either end. E-mail addresses are rejected."}),
        "tokenString" => json!({"type": "string", "minLength": 1, "maxLength": MAX_TOKEN_STRING,
            "description": "The secret value of the token, as the provider returned it."}),
        "expiration" => timestamp("The time at which the token expires, as the provider returned it."),
        "expiresIn" => json!({"type": "integer", "minimum": 0, "description": "The remaining life in whole seconds, by the service's clock."}),
        "isValid" => json!({"type": "boolean", "description": "True while the token is neither invalidated nor expired, at the time of the request."}),
        "country" => described(reference("schemas", "Country"), "The country of the bank. Null or absent means any country."),
        "bank" => json!({"type": "string", "minLength": 1, "maxLength": MAX_BANK, "pattern": TRIMMED,
            "description": "The provider's name of the bank, without control characters and without white space at either end. Null or absent means any bank."}),
        "access" => reference("schemas", "Access"),
        "accounts" | "balances" | "transactions" => json!({"type": "boolean", "description": format!("True if the token gives access to the {name}.")}),
        "issuedAt" => timestamp("The time at which the token was recorded."),
        "lifetime" => json!({"type": "integer", "minimum": LIFETIMES.start(), "maximum": LIFETIMES.end(), "default": DEFAULT_LIFETIME,
            "description": "The lifetime of a newly minted token, in seconds. A token with lifetime 0 is handed out only once."}),
        "fingerprint" => json!({"type": "string", "pattern": "^[0-9a-f]{64}$",
            "description": "The HMAC-SHA256 of the token string. It identifies the token string in the audit log."}),
        "outcome" => json!({"type": "string", "enum": ["minted", "reused"], "description": "`minted`: the token was minted for this request. `reused`: the token was already on record."}),
        "verificationUrl" => json!({"type": "string", "format": "uri",
            "description": "The link for the end user. It contains the token string and is equally secret."}),
        "invalidatedAt" => timestamp("The time at which the token was invalidated, or null."),
        "invalidationReason" | "reason" => reference("schemas", "InvalidationReason"),
        "invalidated" => json!({"type": "integer", "minimum": 0, "description": "The number of tokens that this request invalidated, which is the number of its `token.invalidated` events. It includes tokens that expired but are not marked yet. It is 0 for an unknown user or token string."}),
        "completeUntil" => timestamp("The time up to which the audit log is complete: no event before it can still appear. It is about 10 s in the past. It lies further back while a transaction is open or waits for a synchronous standby, or if the standby that is read lags. On Citus, it stays at the time when the tables were distributed."),
        "leafIndex" => count("The index of the entry in the log."),
        "entry" => json!({"type": "string", "description": "The entry: the line of the event in an NDJSON export, byte for byte."}),
        "proof" => json!({"type": "array", "items": {"type": "string", "format": "byte"}, "description": "The hashes of the inclusion proof (RFC 6962, section 2.1.1), 32 bytes in base64 each."}),
        "checkpoint" => json!({"type": "string", "description": "The signed head of the log to which the proof leads (c2sp.org/tlog-checkpoint)."}),
        "nextCursor" => json!({"type": "string", "description": "The `cursor` of the next page, or null on the last page."}),
        "occurredAt" => timestamp("The time of the event, with microseconds."),
        "kind" => json!({"anyOf": [reference("schemas", "EventKind"), {"type": "string"}], "description": "The kind of event. Later versions may add kinds."}),
        "client" => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": MAX_NAME, "description": "The API key of the client."}),
        "clientName" => json!({"type": "string", "description": "The name of the client at the time of the request. It is not part of the recorded event."}),
        "requestId" => described(request_id(), "The request id: the caller's `X-Request-Id`, or a UUID from the service."),
        "sourceIp" => json!({"type": "string", "description": "The IP address that sent the request."}),
        "detail" => json!({"type": "object", "additionalProperties": true, "description": "Further data, which depends on the kind of event."}),
        "from" => timestamp("The start of the time range, inclusive."),
        "to" => timestamp("The end of the time range, exclusive. It must not be before `from`."),
        "order" => json!({"type": "string", "enum": ["asc", "desc"], "default": "desc", "description": "`asc` returns the oldest entries first, `desc` the newest."}),
        "limit" => json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT, "description": "The maximum number of entries in a page."}),
        "cursor" => json!({"type": "string", "description": "The `nextCursor` of the previous page. It is valid only for the same query."}),
        "format" => json!({"type": "string", "enum": EventFormat::ALL, "default": EventFormat::Ndjson, "description": meanings(EventFormat::ALL, EventFormat::meaning)}),
        "dryRun" => json!({"type": "boolean", "default": CleanupOptions::default().dry_run, "description": "If true, the pass only counts what it would change."}),
        "batchSize" => json!({"type": "integer", "minimum": BATCH_SIZES.start(), "maximum": BATCH_SIZES.end(), "default": CleanupOptions::default().batch_size,
            "description": "The maximum number of rows changed in one transaction."}),
        "maxRuntimeSeconds" => json!({"type": "integer", "minimum": RUNTIMES.start(), "maximum": RUNTIMES.end(),
            "default": CleanupOptions::default().max_runtime.as_secs(), "description": "The maximum run time of the pass, in seconds."}),
        "expired" => count("The number of expired tokens that were marked as expired and whose token string was deleted."),
        "abandonedMints" => count("The number of unfinished mints that were closed. They failed if the provider was not called, otherwise their outcome is unknown."),
        "purgedTokens" => count("The number of token records past retention that were deleted."),
        "purgedMints" => count("The number of mint records past retention that were deleted."),
        "purgedCombinations" => count("The number of combinations past retention that were deleted."),
        "partitionsCreated" => count("The number of monthly audit log partitions that were created in advance."),
        "partitionsDropped" => count("The number of monthly audit log partitions past retention that were dropped."),
        "complete" => json!({"type": "boolean", "description": "True if no work was left at the end of the pass."}),
        "clocksAgree" => json!({"type": "boolean", "description": "False if the clock of the database, the clock of the service or the newest event differs from the others by more than a day. The pass then only creates partitions."}),
        "elapsedMs" => count("The run time of the pass, in milliseconds."),
        "overdueTokens" => count("The number of expired tokens that are still marked as valid."),
        "oldestOverdue" => timestamp("The time at which the oldest of these tokens expired, or null if there is none."),
        "lastRunAt" => timestamp("The end of the last cleanup pass on any replica, or null."),
        "lastSuccessAt" => timestamp("The end of the last complete cleanup pass, or null."),
        "lastRun" => reference("schemas", "CleanupSummary"),
        "nextDue" => timestamp("The time at which the next pass is due, or null if an external scheduler runs the cleanup."),
        "apiKey" => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": MAX_NAME, "description": "The API key, which is the username of HTTP Basic."}),
        "apiSecret" => json!({"type": "string", "description": "The secret, which is the password of HTTP Basic. It cannot be read again."}),
        "name" => json!({"type": "string", "minLength": 1, "maxLength": MAX_CLIENT_NAME, "pattern": TRIMMED,
            "description": "The name, for people. Enabled clients have different names."}),
        "scopes" => json!({"type": "array", "items": reference("schemas", "Scope"), "description": "The permissions of the client."}),
        "mintsPerHour" => limit("The maximum number of mints in an hour, over all replicas. Null means no limit."),
        "requestsPerSecond" => limit("The maximum number of requests per second, in each replica. Null means the setting `CLIENT_RATE_LIMIT`."),
        "allowFrom" => json!({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_NETWORKS,
            "description": "The networks from which the client may call, as CIDRs without host bits. Null means any address."}),
        "expiresInSeconds" => json!({"type": "integer", "minimum": EXPIRIES.start(), "maximum": EXPIRIES.end(),
            "description": "The time from now until no secret of the client is accepted, in seconds. Null means never."}),
        "oidcSubject" => json!({"type": "string", "minLength": 1, "maxLength": MAX_OIDC_SUBJECT,
            "description": "The `sub` of the bearer tokens that name the client. A client that has one has no secret. Null means none."}),
        "graceSeconds" => json!({"type": "integer", "minimum": GRACES.start(), "maximum": GRACES.end(), "default": DEFAULT_GRACE,
            "description": "The time for which the old secret stays valid, in seconds."}),
        "expiresAt" => timestamp("The time from which no secret of the client is accepted, or null for never."),
        "isEnabled" => json!({"type": "boolean", "description": "False after the client was disabled. An expired client is still enabled."}),
        "createdAt" => timestamp("The time at which the client was created."),
        "rotatedAt" => timestamp("The time of the last rotation, or null."),
        "lastUsedOn" => json!({"type": "string", "format": "date", "description": "The day of the last use, in UTC, or null. It is recorded within a minute of the first use on a day."}),
        "status" => json!({"type": "string", "const": "ok"}),
        "version" => json!({"type": "string", "description": "The version of the service."}),
        _ => panic!("the member {name} has no schema"),
    }
}

/// The schema of a request id: printable ASCII, limited in length.
pub fn request_id() -> Value {
    json!({"type": "string", "pattern": "^[ -~]+$", "maxLength": MAX_NAME})
}

fn timestamp(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn limit(description: &str) -> Value {
    json!({"type": "integer", "minimum": CLIENT_LIMITS.start(), "maximum": CLIENT_LIMITS.end(), "description": description})
}

fn count(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

/// Renders a Markdown list of all values of an enumeration with their meanings.
pub fn meanings<T: Copy + ToString>(all: &[T], meaning: fn(T) -> &'static str) -> String {
    let lines = all
        .iter()
        .map(|one| format!("- `{}`: {}", one.to_string(), meaning(*one)));
    lines.collect::<Vec<_>>().join("\n")
}
