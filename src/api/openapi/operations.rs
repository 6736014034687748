//! What there is to say of each operation that its handler does not say itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reference;
use crate::api::event_query::{EXPORT, LIST};
use crate::api::problem::ProblemKind;
use crate::api::routes::Operation;
use crate::api::tokens::FILTER;
use crate::model::FailureKind as F;

struct Text {
    tag: &'static str,
    summary: &'static str,
    description: &'static str,
    body: &'static str,
    header: Option<&'static str>,
    query: &'static [&'static str],
    answers: Map<String, Value>,
    problems: Vec<ProblemKind>,
}

/// The text of the operation of that name. One that is missing fails the test of the document.
#[rustfmt::skip]
fn text(id: &str) -> Text {
    match id {
        "issue_token" => Text::new("tokens", "Get a token",
            "Gives back a token of this user, country, bank and access that is still valid and has enough life left: \
             60 seconds, or half of `lifetime` if that is shorter, unless configured otherwise. Else it has one minted. \
             The request that started a mint is answered with 201, those that waited for it with 200.\n\n\
             The service cannot see that a token was used up: say so by `invalidate_token` with the reason `used`, \
             or the next caller gets a dead token.")
            .body("IssueToken").header("cacheControl")
            .answer(200, "Token", "A token on record, handed out again. It may have less life than `lifetime` asks (say `min-fresh`), or more.", &["Cache-Status"])
            .answer(201, "Token", "A token minted for this very request.", &["Cache-Status", "Location"])
            .fails([F::UpstreamRejected, F::UpstreamRefused, F::UpstreamFailed, F::UpstreamUnavailable,
                F::UpstreamBudgetSpent, F::UpstreamTimeout, F::Overloaded, F::TokenUnreadable]),
        "list_tokens" => Text::new("tokens", "List records of tokens",
            "Newest first, by page. It may be read from a standby and lag behind.")
            .query(&FILTER)
            .answer(200, "TokenRecordPage", "A page of records.", &[]),
        "get_token" => Text::new("tokens", "Read the record of a token", "As it is now.")
            .answer(200, "TokenRecord", "The record.", &[]),
        "look_up_token" => Text::new("tokens", "Find the record of a token string",
            "Whose is this token that turned up?")
            .body("LookUpToken")
            .answer(200, "TokenRecord", "The record.", &[])
            .problem(ProblemKind::NotFound),
        "invalidate_token" => Text::new("tokens", "End a token",
            "From the answer on nobody is handed this token, on any replica. Saying it twice is fine: the first reason stays.")
            .body("InvalidateToken")
            .answer(200, "TokenRecord", "The record as it is now.", &[]),
        "invalidate_tokens" => Text::new("tokens", "End all tokens of a user, or the one of a token string",
            "From the answer on nobody is handed any of them, on any replica; a mint under way ends as invalidated too.")
            .body("InvalidateTokens")
            .answer(200, "Invalidated", "How many it ended.", &[]),
        "list_events" => Text::new("audit", "List audit events",
            "Any filters together, by page. It may be read from a standby and lag behind. The reading is an event itself (`audit.read`).")
            .query(&LIST)
            .answer(200, "AuditEventPage", "A page of events.", &[]),
        "export_events" => Text::new("audit", "Export audit events",
            "Every event that matches, oldest first, as a stream of any length. A failure on the way cuts the connection \
             before the final chunk. The reading is an event itself (`audit.read`).")
            .query(&EXPORT)
            .stream(),
        "get_cleanup" => Text::new("maintenance", "See whether the cleanup keeps up", "The backlog, the last run, the next one.")
            .answer(200, "CleanupState", "How it stands.", &[]),
        "run_cleanup" => Text::new("maintenance", "Clear away what has ended", "Safe beside any number of others.")
            .body("RunCleanup")
            .answer(200, "CleanupSummary", "What the run did, or would do.", &[]),
        "get_liveness" => Text::new("service", "Whether the process answers", "For liveness probes.")
            .answer(200, "Liveness", "It does.", &[]),
        "get_readiness" => Text::new("service", "Whether requests will be served", "For readiness probes.")
            .answer(200, "Readiness", "They will.", &[])
            .answer(503, "Readiness", "They will not: `checks` says why.", &["Retry-After"]),
        "get_metrics" => Text::new("service", "Metrics of this replica", "The text format of Prometheus. No user, bank or token is in a label.")
            .file("text/plain; version=0.0.4; charset=utf-8", "The metrics."),
        "get_openapi" => Text::new("service", "This document", "What `token-vendor openapi` prints.")
            .file("application/json", "An OpenAPI 3.1 document."),
        "get_docs" => Text::new("service", "This document, for reading", "Swagger UI; it loads nothing from elsewhere.")
            .file("text/html; charset=utf-8", "A page."),
        _ => panic!("the operation {id} has no text"),
    }
}

impl Text {
    fn new(tag: &'static str, summary: &'static str, description: &'static str) -> Self {
        Text {
            tag,
            summary,
            description,
            body: "",
            header: None,
            query: &[],
            answers: Map::new(),
            problems: Vec::new(),
        }
    }

    fn body(self, schema: &'static str) -> Self {
        Text {
            body: schema,
            ..self
        }
    }

    fn header(self, name: &'static str) -> Self {
        Text {
            header: Some(name),
            ..self
        }
    }

    fn query(self, names: &'static [&'static str]) -> Self {
        Text {
            query: names,
            ..self
        }
    }

    fn answer(self, status: u16, schema: &str, description: &str, headers: &[&str]) -> Self {
        let content = json!({"application/json": {"schema": reference("schemas", schema)}});
        self.content(status, description, headers, content)
    }

    fn file(self, media_type: &str, description: &str) -> Self {
        let schema = match media_type {
            "application/json" => json!({"type": "object"}),
            _ => json!({"type": "string"}),
        };
        self.content(
            200,
            description,
            &[],
            json!({media_type: {"schema": schema}}),
        )
    }

    fn stream(self) -> Self {
        let content = json!({
            "application/x-ndjson": {"schema": {"type": "string", "description": "An `AuditEvent` a line."}},
            "text/csv; charset=utf-8": {"schema": {"type": "string", "description":
                "RFC 4180, with a header row: the members of an `AuditEvent`, `access` and `detail` as JSON. \
                 A cell that a spreadsheet would take for a formula begins with an apostrophe."}},
        });
        self.content(200, "The events.", &["Content-Disposition"], content)
    }

    fn content(mut self, status: u16, description: &str, headers: &[&str], content: Value) -> Self {
        let answer = response(description, headers, content);
        self.answers.insert(status.to_string(), answer);
        self
    }

    fn fails(mut self, kinds: impl IntoIterator<Item = F>) -> Self {
        self.problems
            .extend(kinds.into_iter().map(ProblemKind::Failed));
        self
    }

    fn problem(mut self, kind: ProblemKind) -> Self {
        self.problems.push(kind);
        self
    }
}

/// The Operation Object. The answers to problems, which operations share, go into `responses`.
pub fn describe(operation: &Operation, responses: &mut Map<String, Value>) -> Value {
    let mut text = text(operation.id);
    text.problems.extend(&operation.problems);
    let mut by_status = BTreeMap::<u16, Vec<ProblemKind>>::new();
    for kind in ProblemKind::all().filter(|kind| text.problems.contains(kind)) {
        by_status
            .entry(kind.status().as_u16())
            .or_default()
            .push(kind);
    }
    for (status, kinds) in by_status {
        let slugs: Vec<_> = kinds.iter().map(|kind| kind.slug()).collect();
        let name = slugs.join(".");
        let answer = reference("responses", &name);
        text.answers.entry(status.to_string()).or_insert(answer);
        responses.insert(name, problem(&kinds));
    }

    let id = operation.has_id.then_some("id");
    let named = ["requestId", "traceparent"].into_iter().chain(text.header);
    let named = named.chain(id).chain(text.query.iter().copied());
    let parameters: Vec<_> = named.map(|name| reference("parameters", name)).collect();
    let needed = operation
        .scope
        .map(|scope| format!("\n\nScope `{scope}`: {}", scope.meaning()));
    let mut object = json!({
        "operationId": operation.id,
        "tags": [text.tag],
        "summary": text.summary,
        "description": text.description.to_owned() + &needed.unwrap_or_default(),
        "security": Vec::from_iter(operation.scope.map(|scope| json!({"client": [scope]}))),
        "parameters": parameters,
        "responses": text.answers,
    });
    if operation.has_body {
        object["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": reference("schemas", text.body)}},
        });
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
    let examples = |kind: &ProblemKind| (kind.slug().into(), reference("examples", kind.slug()));
    let content = json!({"application/problem+json": {
        "schema": reference("schemas", "Problem"),
        "examples": kinds.iter().map(examples).collect::<Map<_, _>>(),
    }});
    let meaning = |kind: &ProblemKind| format!("`{}`: {}", kind.slug(), kind.meaning());
    let meanings: Vec<_> = kinds.iter().map(meaning).collect();
    response(&meanings.join("\n\n"), headers, content)
}

fn response(description: &str, headers: &[&str], content: Value) -> Value {
    let headers = ["X-Request-Id", "Cache-Control"].iter().chain(headers);
    let headers: Map<_, _> = headers
        .map(|name| (name.to_string(), reference("headers", name)))
        .collect();
    json!({"description": description, "headers": headers, "content": content})
}
