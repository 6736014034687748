//! Components that operations share: parameters, response headers and example problems.

use serde_json::{Map, Value, json};

use super::members::{member, request_id};
use super::schemas::{client, event, token};
use super::{described, reference};
use crate::api::extract::event_query::{EXPORT, LIST, REPEATABLE};
use crate::api::handlers::tokens::FILTER;
use crate::api::problem::ProblemKind;
use crate::model::FailureKind;

/// The parameters of requests, by name.
#[rustfmt::skip]
pub fn parameters() -> Value {
    let mut parameters = json!({
        "id": {"name": "id", "in": "path", "required": true, "schema": member("id"), "example": token()["id"],
            "description": "The id of the token. A value that is not a UUID returns 404."},
        "key": {"name": "key", "in": "path", "required": true, "schema": member("apiKey"), "example": client()["apiKey"],
            "description": "The API key of the client. A value that is no API key returns 404."},
        // No pattern, because the service accepts every value.
        "tile": {"name": "tile", "in": "path", "required": true, "example": "0/000.p/1",
            "schema": {"type": "string", "pattern": "^(entries|[0-9]|[1-5][0-9]|6[0-3])/(x[0-9]{3}/)*[0-9]{3}(\\.p/[0-9]{1,3})?$"},
            "description": "The level, or `entries`, and the index of the tile, in groups of three digits. `.p/W` requests the first W of \
                256 hashes or entries. The slashes are not percent-encoded."},
        "X-Request-Id": {"name": "X-Request-Id", "in": "header", "schema": {"type": "string"}, "example": event()["requestId"],
            "description": "The caller's id of the request. It appears in logs, in the audit log and in the response. \
                The service generates a UUID instead if the value is not 1 to 128 printable ASCII characters."},
        "traceparent": {"name": "traceparent", "in": "header", "schema": {"type": "string"},
            "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "description": "The W3C Trace Context of the request. The service never sends it to the provider."},
        "Cache-Control": {"name": "Cache-Control", "in": "header", "schema": {"type": "string"}, "example": "min-fresh=600",
            "description": "Request directives of RFC 9111. `min-fresh=N` requires at least N seconds of remaining life. N must \
                not exceed `lifetime`. `no-cache` requests a new token. It needs the scope `tokens:renew` and is ignored without \
                it. Simultaneous requests with `no-cache` share one mint. Other directives are ignored."},
    });
    for name in FILTER.iter().chain(&LIST).chain(&EXPORT) {
        let mut schema = match *name {
            name if REPEATABLE.contains(&name) => json!({"type": "array", "items": reference("schemas", "EventKind"),
                "description": match name {
                    "kind" => "The kinds of events, one in each parameter. An event matches any of them.",
                    _ => "The kinds of events to leave out, one in each parameter. They are left out even if `kind` names them.",
                }}),
            // The service compares a fingerprint as text, so it accepts any printable value.
            "fingerprint" => described(request_id(), "The fingerprint of a token string."),
            name => member(name),
        };
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let examples = [json!({
            "from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00+02:00", "limit": 100, "order": "asc",
            "format": "csv", "kind": ["token.minted", "token.reused"], "excludeKind": ["audit.read"],
        }), token(), event()];
        parameters[*name] = json!({"name": name, "in": "query", "schema": schema, "description": description});
        // A cursor has no example, because it is valid only for the query that returned it.
        if let Some(example) = examples.iter().find_map(|example| example.get(name)) {
            parameters[*name]["example"] = example.clone();
        }
    }
    parameters
}

/// The headers of responses, by name.
#[rustfmt::skip]
pub fn headers() -> Value {
    let header = |description: &str, schema: Value, example: Value| {
        json!({"required": true, "description": description, "schema": schema, "example": example})
    };
    let text = || json!({"type": "string"});
    let mut headers = json!({
        "X-Request-Id": header("The request id: the one that the caller sent, or a new UUID.", request_id(), json!("order-4711")),
        "Cache-Control": header("Always `no-store`: caches must not store the response.", json!({"type": "string", "const": "no-store"}), json!("no-store")),
        "X-Content-Type-Options": header("Always `nosniff`: browsers must not guess the media type.", json!({"type": "string", "const": "nosniff"}), json!("nosniff")),
        "Location": header("The path of the new record.", json!({"type": "string", "format": "uri-reference"}),
            format!("/bank/tokens/{}", token()["id"].as_str().unwrap_or_default()).into()),
        "Cache-Status": header("The source of the token (RFC 9211). `hit`: a token on record was reused, and `ttl` is its remaining life \
            in seconds. `fwd=uri-miss`: there was no token. `fwd=stale`: a token had too little life left. `fwd=request`: \
            `no-cache` bypassed a fresh token. `stored`: the token can be handed out again. `collapsed`: the request shared \
            another request's mint.",
            json!({"type": "string", "pattern": "^token-vendor; (hit; ttl=[0-9]+|fwd=(uri-miss|stale|request)(; stored)?(; collapsed)?)$"}),
            json!("token-vendor; fwd=uri-miss; stored")),
        "Retry-After": header("The number of seconds after which the request may be retried. It is absent if the problem is `upstream-refused`.",
            json!({"type": "integer", "minimum": 1}), json!(1)),
        "WWW-Authenticate": header("The authentication challenge (RFC 7617), and a second one for bearer tokens (RFC 6750) if an OIDC issuer is configured.",
            text(), json!("Basic realm=\"token-vendor\", charset=\"UTF-8\"")),
        "Allow": header("The methods of the path.", text(), json!("GET, HEAD, POST")),
        "Complete-Until": header("The time before which the export has every matching event: `to`, or an earlier time if events \
            before `to` may still be committing.", json!({"type": "string", "format": "date-time"}), json!("2026-11-22T09:39:08.123456Z")),
        "Content-Disposition": header("The name for the downloaded file.", text(), json!("attachment; filename=\"audit-events.ndjson\"")),
    });
    headers["Retry-After"]["required"] = json!(false);
    headers
}

/// An example of every problem, by slug.
pub fn problem_examples() -> Value {
    let example = |kind: ProblemKind| {
        let mut value = json!({
            "type": kind.type_uri(),
            "title": kind.title(),
            "status": kind.status().as_u16(),
            "detail": kind.meaning(),
            "requestId": event()["requestId"],
        });
        match kind {
            ProblemKind::Validation => {
                value["errors"] = json!([
                    {"detail": "must have 1 to 32 characters", "pointer": "#/bank"},
                    {"detail": "is not a parameter of this path", "parameter": "page"},
                    {"detail": "min-fresh must be a whole number of seconds", "header": "Cache-Control"},
                ]);
            }
            ProblemKind::Failed(FailureKind::UpstreamRejected) => {
                value["upstream"] = json!({"status": 400, "identifier": "BAD_VALUE", "message": "Bank is not supported."});
            }
            _ => {}
        }
        let example =
            json!({"summary": kind.title(), "description": kind.meaning(), "value": value});
        (kind.slug().to_owned(), example)
    };
    ProblemKind::all()
        .map(example)
        .collect::<Map<_, _>>()
        .into()
}
