//! Parameters, headers and examples that operations share.

use serde_json::{Map, Value, json};

use super::members::{member, request_id};
use super::schemas::{event, token};
use super::{described, reference};
use crate::api::extract::event_query::{EXPORT, LIST};
use crate::api::handlers::tokens::FILTER;
use crate::api::problem::ProblemKind;
use crate::model::FailureKind;

/// What a request says beside its body.
#[rustfmt::skip]
pub fn parameters() -> Value {
    let mut parameters = json!({
        "id": {"name": "id", "in": "path", "required": true, "schema": member("id"), "example": token()["id"],
            "description": "The token's id. What is no UUID is not found."},
        "X-Request-Id": {"name": "X-Request-Id", "in": "header", "schema": request_id(), "example": event()["requestId"],
            "description": "The caller's own id of this request, for logs, the audit and the answer. Any other gets a new UUID."},
        "traceparent": {"name": "traceparent", "in": "header", "schema": {"type": "string"},
            "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "description": "W3C Trace Context. It is not sent on to the upstream."},
        "Cache-Control": {"name": "Cache-Control", "in": "header", "schema": {"type": "string"}, "example": "min-fresh=600",
            "description": "RFC 9111. `min-fresh=N` asks for at least N seconds of life left, at most `lifetime`. `no-cache` asks \
                for a new token and needs the scope `tokens:renew`, without which it is ignored; callers who ask at the same \
                timestamp share one mint. Other directives are ignored."},
    });
    for name in FILTER.iter().chain(&LIST).chain(&EXPORT) {
        let mut schema = match *name {
            "kind" => described(reference("schemas", "EventKind"), "What happened."),
            // Looked for as it is written.
            "fingerprint" => described(request_id(), "Of a token string."),
            name => member(name),
        };
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let examples = [token(), event(), json!({
            "from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00+02:00", "limit": 100, "order": "asc",
            "format": "csv", "cursor": "AAZBpKyr2kQBogTqmFt3EYGI…",
        })];
        let example = examples.iter().find_map(|example| example.get(name));
        parameters[*name] = json!({"name": name, "in": "query", "schema": schema, "example": example, "description": description});
    }
    parameters
}

/// What an answer says beside its body.
#[rustfmt::skip]
pub fn headers() -> Value {
    let header = |description: &str, schema: Value, example: Value| {
        json!({"required": true, "description": description, "schema": schema, "example": example})
    };
    let text = || json!({"type": "string"});
    let mut headers = json!({
        "X-Request-Id": header("The caller's own id of this request, or a new UUID.", request_id(), json!("order-4711")),
        "Cache-Control": header("No answer is to be kept by a cache.", json!({"type": "string", "const": "no-store"}), json!("no-store")),
        "Location": header("The record of the new token.", json!({"type": "string", "format": "uri-reference"}),
            format!("/bank/tokens/{}", token()["id"].as_str().unwrap_or_default()).into()),
        "Cache-Status": header("How the token was come by (RFC 9211): `hit` with the seconds left as `ttl`; or `fwd`, `uri-miss` where there \
            was none, `stale` where one had too little life, `request` where `no-cache` passed a fresh one over, with `stored` \
            if it can be handed out again and `collapsed` where another request's mint was shared.",
            json!({"type": "string", "pattern": "^token-vendor; (hit; ttl=[0-9]+|fwd=(uri-miss|stale|request)(; stored)?(; collapsed)?)$"}),
            json!("token-vendor; fwd=uri-miss; stored")),
        "Retry-After": header("Seconds after which trying again makes sense. It is there unless the problem is `upstream-refused`.",
            json!({"type": "integer", "minimum": 1}), json!(1)),
        "WWW-Authenticate": header("The challenge (RFC 7617).", text(), json!("Basic realm=\"token-vendor\", charset=\"UTF-8\"")),
        "Allow": header("The methods of this path.", text(), json!("GET, HEAD, POST")),
        "Content-Disposition": header("The name of a file.", text(), json!("attachment; filename=\"audit-events.ndjson\"")),
    });
    headers["Retry-After"]["required"] = json!(false);
    headers
}

/// An example of every problem, by slug.
pub fn problems() -> Value {
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
