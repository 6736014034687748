//! Exports of the audit log over HTTP and by the command line.

use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta, Utc};
use fastrand::Rng;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::audit::{insert, read_all_pages, seed, without_names};
use crate::support::{ADMIN, Answer, Api, World, program, run};

const PATH: &str = "/audit/events/export";

/// Returns a time after all seeded events and before the test's own reads.
fn after_seeded_events() -> String {
    let to = Utc::now() - TimeDelta::minutes(50);
    to.to_rfc3339_opts(SecondsFormat::Secs, true)
}

async fn export(api: &Api, query: &str) -> Response {
    let request = api.request(Method::GET, &format!("{PATH}?{query}"));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200, "{query}");
    response
}

/// Parses NDJSON.
fn parse_ndjson(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'));
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Parses CSV according to RFC 4180.
fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut record, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut characters) = (false, text.chars().peekable());
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => cell.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {
                assert_eq!(characters.next(), Some('\n'));
                record.push(std::mem::take(&mut cell));
                records.push(std::mem::take(&mut record));
            }
            _ => cell.push(character),
        }
    }
    assert!(
        !quoted && cell.is_empty() && record.is_empty(),
        "the last record is not terminated"
    );
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_the_same_events_as_the_list() {
    let world = World::new().await;
    let replica = world.replica().await;
    let events = seed(&world, &mut Rng::with_seed(3), 4_500).await;
    let to = format!("to={}", after_seeded_events());
    for filter in [
        to.clone(),
        format!("{to}&client=c-1"),
        format!("{to}&kind=keys.rotated&userId=u-2"),
    ] {
        let listed = read_all_pages(
            &replica,
            &format!("{filter}&order=asc&limit=500"),
            async || {},
        )
        .await;
        let ndjson = export(&replica, &filter).await;
        assert_eq!(ndjson.headers()["content-type"], "application/x-ndjson");
        assert_eq!(
            ndjson.headers()["content-disposition"],
            "attachment; filename=\"audit-events.ndjson\""
        );
        assert_eq!(ndjson.headers()["cache-control"], "no-store");
        assert!(ndjson.headers().contains_key("x-request-id"));
        assert!(
            parse_ndjson(&ndjson.text().await.unwrap()) == without_names(listed.clone()),
            "{filter}"
        );

        let csv = export(&replica, &format!("{filter}&format=csv")).await;
        assert_eq!(csv.headers()["content-type"], "text/csv; charset=utf-8");
        let records = parse_csv(&csv.text().await.unwrap());
        assert_eq!(records.len(), listed.len() + 1);
        for (record, item) in records[1..].iter().zip(&listed) {
            for (name, cell) in records[0].iter().zip(record) {
                match &item[name] {
                    Value::Null => assert_eq!(cell, ""),
                    Value::String(text) => assert_eq!(cell, text, "{name}"),
                    object => assert_eq!(&serde_json::from_str::<Value>(cell).unwrap(), object),
                }
            }
            assert_eq!(records[0].len(), item.as_object().unwrap().len());
        }
    }
    let all = export(&replica, &to).await.text().await.unwrap();
    assert_eq!(parse_ndjson(&all).len(), events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_cells_do_not_begin_like_a_formula() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut events = seed(&world, &mut Rng::with_seed(5), 20).await;
    let prefixes = ["=", "+", "-", "@", "\t", "\r"];
    for (event, prefix) in events.iter_mut().zip(prefixes.iter().cycle()) {
        event.id = uuid::Uuid::new_v4();
        event.user_id = Some(format!("{prefix}cmd|' /C calc'!A0,\"x\""));
        event.request_id = Some(format!("{prefix}1"));
    }
    insert(&world.db, &events).await;
    let text = export(&replica, "format=csv").await.text().await.unwrap();
    let records = parse_csv(&text);
    for cell in records.iter().flatten() {
        assert!(
            !cell.starts_with(['=', '+', '-', '@', '\t', '\r']),
            "{cell:?}"
        );
    }
    let escaped = records
        .iter()
        .flatten()
        .filter(|cell| cell.starts_with('\''));
    assert_eq!(escaped.count(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_recorded_and_excludes_its_own_event() {
    let world = World::new().await;
    let replica = world.replica().await;
    for _ in 0..2 {
        let found = parse_ndjson(
            &export(&replica, "kind=audit.read&format=ndjson")
                .await
                .text()
                .await
                .unwrap(),
        );
        let before = world
            .count("SELECT count(*) FROM audit_events WHERE kind = 'audit.read'")
            .await;
        assert_eq!(
            found.len() as i64,
            before - 1,
            "the export's own event is recorded but not exported"
        );
    }
    let found = parse_ndjson(
        &export(&replica, "kind=audit.read")
            .await
            .text()
            .await
            .unwrap(),
    );
    assert_eq!(
        found[0]["detail"],
        json!({"filter": {"kind": "audit.read"}, "format": "ndjson"})
    );
    assert_eq!(found[0]["client"], ADMIN.0);
    let empty = export(&replica, "kind=keys.rotated&format=csv")
        .await
        .text()
        .await
        .unwrap();
    assert_eq!(parse_csv(&empty).len(), 1, "{empty}");
    assert_eq!(
        export(&replica, "kind=keys.rotated")
            .await
            .text()
            .await
            .unwrap(),
        ""
    );
    for (query, expected) in [
        ("format=xml", "format"),
        ("format=", "format"),
        ("limit=1", "limit"),
        ("order=asc", "order"),
        ("cursor=x", "cursor"),
        ("from=2026-11-22T00:00:00Z&to=2026-11-21T00:00:00Z", "to"),
        ("userId=%00", "userId"),
    ] {
        let answer = replica.get(&format!("{PATH}?{query}")).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), [expected]);
    }
    let anonymous = Answer::of(replica.anonymous(Method::GET, PATH))
        .await
        .unwrap();
    anonymous.assert_problem(401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_export_breaks_the_response_instead_of_ending_it() {
    const EVENTS: usize = 40_000;
    let world = World::new().await;
    let replica = world.replica().await;
    sqlx::query(
        "INSERT INTO audit_events (id, occurred_at, kind, detail)
         SELECT gen_random_uuid(), clock_timestamp(), 'cleanup.ran', jsonb_build_object('text', repeat('x', 1000))
         FROM generate_series(1, $1)",
    )
    .bind(EVENTS as i32)
    .execute(&world.db)
    .await
    .unwrap();
    let mut response = export(&replica, "").await;
    let mut read = response.chunk().await.unwrap().unwrap().to_vec();

    let options: PgConnectOptions = world.url.parse().unwrap();
    let database = options.get_database().unwrap().to_owned();
    let mut admin = options.database("postgres").connect().await.unwrap();
    let allow_connections = |allow: bool| {
        sqlx::AssertSqlSafe(format!(
            "ALTER DATABASE {database} ALLOW_CONNECTIONS {allow}"
        ))
    };
    admin.execute(allow_connections(false)).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
        .bind(&database)
        .execute(&mut admin)
        .await
        .unwrap();
    let result = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => read.extend(chunk),
            result => break result,
        }
    };
    assert!(result.is_err(), "the response ended like a complete export");
    let complete_lines = read.iter().filter(|byte| **byte == b'\n').count();
    assert!(complete_lines < EVENTS, "{complete_lines}");
    replica
        .get(PATH)
        .await
        .assert_problem(503, "database-unavailable");
    admin.execute(allow_connections(true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_and_http_write_the_same_export() {
    let world = World::new().await;
    let replica = world.replica().await;
    seed(&world, &mut Rng::with_seed(9), 2_500).await;
    let variables = world.variables(&[]);
    let to = after_seeded_events();
    for format in ["ndjson", "csv"] {
        let kinds =
            "kind=token.minted&kind=token.reused&kind=access.denied&excludeKind=access.denied";
        let query = format!("to={to}&{kinds}&client=c_2&format={format}");
        let expected = export(&replica, &query).await.text().await.unwrap();
        let arguments = [
            "audit", "export", "--to", &to, "--client", "c_2", "--format", format,
        ];
        let kinds: Vec<_> = kinds
            .split(['&', '='])
            .map(|word| match word {
                "kind" => "--kind",
                "excludeKind" => "--exclude-kind",
                kind => kind,
            })
            .collect();
        let output = run(&[&arguments[..], &kinds].concat(), &variables).await;
        assert_eq!(output.code, 0, "{}", output.err);
        assert!(output.out == expected && expected.len() > 1000);
        assert!(
            !output.err.contains("events, up to"),
            "progress without a terminal: {}",
            output.err
        );
    }
    let actor: String = sqlx::query_scalar(
        "SELECT detail->>'actor' FROM audit_events
         WHERE kind = 'audit.read' AND client IS NULL AND detail->'filter'->>'client' = 'c_2' LIMIT 1",
    )
    .fetch_one(&world.db)
    .await
    .unwrap();
    assert!(actor.starts_with("cli:") && actor.contains('@'), "{actor}");
    for invalid in [
        &["--format", "xml"][..],
        &["--from", "yesterday"],
        &["--kind", "token.sold"],
        &["--exclude-kind", "token.sold"],
        &["--token-id", "1"],
        &["--user-id", "u "],
        &["--user-id", ""],
        &["--client", "c 2"],
        &["--request-id", ""],
        &["--fingerprint", "ž"],
        &[
            "--from",
            "2026-11-22T00:00:00Z",
            "--to",
            "2026-11-21T00:00:00Z",
        ],
    ] {
        let output = run(&[&["audit", "export"], invalid].concat(), &variables).await;
        assert_eq!(
            (output.code, output.out.as_str()),
            (2, ""),
            "{invalid:?}: {output:?}"
        );
    }
    // A standby without events that does not lag.
    let standby = World::new().await;
    let horizon = "UPDATE audit_horizon SET complete_until = now()";
    standby.db.execute(horizon).await.unwrap();
    let output = run(
        &["audit", "export", "--client", "c_2"],
        &world.variables(&[("READ_DATABASE_URL", &standby.url)]),
    )
    .await;
    assert_eq!((output.code, output.out.as_str()), (0, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_the_export_without_a_message() {
    let world = World::new().await;
    seed(&world, &mut Rng::with_seed(13), 3_000).await;
    let mut child = program(&["audit", "export"], &world.variables(&[]))
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).await.unwrap();
    drop(out);
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let output = output.unwrap().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*err), (Some(0), ""));
}
