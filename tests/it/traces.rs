//! Traces: export by OTLP, and W3C Trace Context.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::dev::sandbox;

use crate::support::{Answer, Api, Process, World, eventually, send};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// An OTLP receiver that stores the request bodies.
#[derive(Clone, Default)]
struct Collector {
    bodies: Arc<Mutex<Vec<web::Bytes>>>,
    /// Tells whether every export gets the status 400.
    refuses: bool,
}

impl Collector {
    /// Creates a receiver that refuses every export.
    fn refusing() -> Collector {
        Collector {
            refuses: true,
            ..Collector::default()
        }
    }

    /// Starts the receiver and returns its base URL.
    fn start(&self) -> String {
        let (bodies, refuses) = (self.bodies.clone(), self.refuses);
        let server = HttpServer::new(move || {
            let bodies = bodies.clone();
            App::new().route(
                "/v1/traces",
                web::post().to(move |body: web::Bytes| {
                    bodies.lock().unwrap().push(body);
                    async move {
                        match refuses {
                            true => HttpResponse::BadRequest().finish(),
                            false => HttpResponse::Ok().finish(),
                        }
                    }
                }),
            )
        });
        let server = server
            .workers(1)
            .disable_signals()
            .bind(("127.0.0.1", 0))
            .unwrap();
        let address = server.addrs()[0];
        tokio::spawn(server.run());
        format!("http://{address}")
    }

    /// Returns the number of received exports.
    fn exports(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    /// Decodes all received spans.
    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().unwrap();
        let requests = bodies
            .iter()
            .map(|body| ExportTraceServiceRequest::decode(&**body).unwrap());
        requests
            .flat_map(|request| request.resource_spans)
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }

    /// Tells whether the text occurs in the received bytes.
    fn has_received(&self, text: &str) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies
            .iter()
            .any(|body| body.windows(text.len()).any(|part| part == text.as_bytes()))
    }
}

async fn serve(world: &World, endpoint: &str) -> (Process, Api) {
    let variables = world.variables(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("LOG_FORMAT", "json"),
    ]);
    let process = Process::serve(&variables).await;
    let api = Api::at(process.base.clone());
    (process, api)
}

async fn issue(api: &Api, body: Value, traceparent: &str) -> Answer {
    let request = api
        .post("/bank/tokens/", &body)
        .header("traceparent", traceparent);
    send(request).await
}

/// Returns the next log line that describes a request.
async fn next_request_line(process: &mut Process) -> Value {
    loop {
        let line = process.next_line().await;
        let line: Value = serde_json::from_str(&line).unwrap();
        if line.get("route").is_some() {
            return line;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_join_the_trace_of_the_caller_and_the_upstream_gets_no_trace_headers() {
    let (world, collector) = (World::new().await, Collector::default());
    let (mut process, api) = serve(&world, &collector.start()).await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let minted = issue(&api, json!({"userId": "private-user"}), &traceparent).await;
    assert_eq!(minted.status, 201);
    assert_eq!(next_request_line(&mut process).await["trace_id"], TRACE);

    let mut spans = Vec::new();
    eventually("the trace arrives", async || {
        spans = collector.spans();
        spans.iter().any(|span| span.name == "POST /bank/tokens/")
    })
    .await;
    assert!(
        spans.iter().all(|span| hex(&span.trace_id) == TRACE),
        "{spans:#?}"
    );
    let find = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| {
            panic!(
                "{name} in {:?}",
                spans.iter().map(|span| &span.name).collect::<Vec<_>>()
            )
        })
    };
    let root = find("POST /bank/tokens/");
    assert_eq!(hex(&root.parent_span_id), PARENT);
    for name in [
        "flight",
        "read a slot",
        "claim a mint",
        "mint",
        "record a mint",
    ] {
        let mut span = find(name);
        while span.parent_span_id != root.span_id {
            let parent = spans
                .iter()
                .find(|parent| parent.span_id == span.parent_span_id);
            span =
                parent.unwrap_or_else(|| panic!("{name} is not a descendant of the request span"));
        }
    }
    let attribute = |key: &str| {
        let found = root
            .attributes
            .iter()
            .find(|attribute| attribute.key == key);
        format!("{:?}", found.and_then(|attribute| attribute.value.as_ref()))
    };
    assert!(attribute("http.route").contains("/bank/tokens/"));
    assert!(attribute("http.response.status_code").contains("201"));

    for entry in world.sandbox.ledger() {
        assert_eq!(
            (entry.header("traceparent"), entry.header("tracestate")),
            (None, None)
        );
    }
    for private in ["private-user", minted.token(), "admin-secret"] {
        assert!(!collector.has_received(private), "{private}");
    }
    // A cache hit makes a span too. A trace that the caller does not sample is not exported.
    let unsampled = issue(
        &api,
        json!({"userId": "private-user"}),
        &format!("00-{}-{PARENT}-00", TRACE.replace('4', "5")),
    )
    .await;
    assert_eq!(unsampled.status, 200);
    issue(&api, json!({"userId": "private-user"}), &traceparent).await;
    eventually("the handout arrives", async || {
        collector.spans().iter().any(|span| span.name == "handout")
    })
    .await;
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| hex(&span.trace_id) == TRACE)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn problems_contain_the_trace_id_and_failed_spans_have_an_error_status() {
    let (world, collector) = (World::new().await, Collector::default());
    let (mut process, api) = serve(&world, &collector.start()).await;
    world.sandbox.script([sandbox::Answer::status(418)]);
    let failed = api.issue(json!({"userId": "u"})).await;
    failed.assert_problem(502, "upstream-failed");
    let trace = failed.text("traceId").to_owned();
    assert_eq!(
        next_request_line(&mut process).await["trace_id"],
        trace.as_str()
    );
    let mut found = None;
    eventually("the trace arrives", async || {
        let mut spans = collector.spans().into_iter();
        found =
            spans.find(|span| span.name == "POST /bank/tokens/" && hex(&span.trace_id) == trace);
        found.is_some()
    })
    .await;
    assert_eq!(
        found.unwrap().status.unwrap().code,
        2,
        "the status code of an error"
    );
    // An invalid traceparent is ignored.
    for bad in [
        "",
        "00-0-0-00",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "\u{fc}",
    ] {
        let refused = issue(&api, json!({}), bad).await;
        refused.assert_problem(400, "validation");
        assert_eq!(refused.text("traceId").len(), 32, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_exports_are_logged_at_most_once_a_minute() {
    let (world, collector) = (World::new().await, Collector::refusing());
    let (mut process, api) = serve(&world, &collector.start()).await;
    for user in 0..5 {
        assert_eq!(
            api.issue(json!({"userId": user.to_string()})).await.status,
            201
        );
        eventually("another export fails", async || collector.exports() > user).await;
    }
    process.signal(Signal::SIGTERM);
    let mut lines = Vec::new();
    while let Some(line) = process.logs.recv().await {
        lines.push(line);
    }
    assert_eq!(process.child.wait().await.unwrap().code(), Some(0));
    let failures = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(failures("traces could not be sent"), 1, "{lines:#?}");
    assert_eq!(failures("\"target\":\"opentelemetry"), 0, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_traces_within_its_own_time_limit() {
    let world = World::new().await;
    // The collector accepts connections and never answers.
    let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    world.sandbox.set_latency(Duration::from_secs(1));
    for (has_time, max_wait) in [(false, "0ns"), (true, "500ms")] {
        let variables = world.variables(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("SHUTDOWN_TIMEOUT", "5s"),
            ("UPSTREAM_TIMEOUT", "3s"),
            ("LOG_FORMAT", "json"),
        ]);
        let mut process = Process::serve(&variables).await;
        let api = Api::at(process.base.clone());
        let caller = tokio::spawn(async move { api.issue(json!({"userId": max_wait})).await });
        world.upstream_is_called(1 + u64::from(has_time)).await;
        // A mint that cannot be recorded uses all of SHUTDOWN_TIMEOUT.
        let lock = match has_time {
            true => None,
            false => Some(world.lock_table("tokens IN ACCESS EXCLUSIVE MODE").await),
        };
        let status = if has_time { 201 } else { 503 };
        assert_eq!(caller.await.unwrap().status, status);
        let _export = collector.accept().await.unwrap();
        process.signal(Signal::SIGTERM);
        let line = loop {
            let line = process.next_line().await;
            if line.contains("the last traces could not be sent") {
                break line;
            }
        };
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["max_wait"], max_wait);
        assert_eq!(process.child.wait().await.unwrap().code(), Some(0));
        drop(lock);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_collector_delays_nothing_and_problems_keep_the_trace_id() {
    let world = World::new().await;
    // Nothing listens on port 9.
    let (mut process, api) = serve(&world, "http://127.0.0.1:9").await;
    assert_eq!(api.issue(json!({"userId": "u"})).await.status, 201);
    next_request_line(&mut process).await;
    process.signal(Signal::SIGTERM);
    assert_eq!(process.child.wait().await.unwrap().code(), Some(0));

    let replica = world.replica().await;
    let refused = issue(&replica, json!({}), &format!("00-{TRACE}-{PARENT}-01")).await;
    assert_eq!(refused.text("traceId"), TRACE);
    let untraced = send(replica.anonymous(Method::GET, "/nothing")).await;
    assert_eq!(untraced.body.get("traceId"), None);
}
