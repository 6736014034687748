//! Reads of the audit log: pages and the export.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::{PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::{Requests, least_disturbed, pgbench, run_to_end, run_wrk};
use crate::process::Server;
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::Section;
use crate::world::{AUTHORIZATION, World};

const COLUMNS: &str = "id, occurred_at, kind, client, request_id, source_ip, user_id, country, bank, access, token_id, fingerprint, detail";

pub async fn measure_pages(world: &World, section: &mut Section) -> Result<()> {
    let server = world.serve("filled", None, &[])?;
    let mut db = world.connect("filled").await?;
    let row = sqlx::query(
        "SELECT user_id, token_id::text, fingerprint, request_id FROM audit_events WHERE user_id = 'u-00000000' AND client = 'client-1' LIMIT 1",
    );
    let row = row.fetch_one(&mut db).await?;
    let value = |name: &str| row.get::<String, _>(name);
    let month = chrono::Utc::now() - chrono::TimeDelta::days(30);
    let month = month.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    // A range of the index by user. With `=` or `ANY`, a kept plan expects few events and sorts all events of the user.
    let of_user = |user: &str| {
        format!(
            "(user_id, occurred_at) >= ({user}, '-infinity') AND (user_id, occurred_at) < ({user}, 'infinity')"
        )
    };
    let of_owner = |condition| of_user(&format!("(SELECT user_id FROM tokens WHERE {condition})"));
    // Name, column of the access path, condition, values.
    let filters = [
        ("no filter", "", "true".into(), vec![]),
        (
            "userId",
            "user_id",
            of_user(":userId"),
            vec![("userId", value("user_id"))],
        ),
        (
            "tokenId",
            "user_id",
            of_owner("id = :tokenId::uuid") + " AND coalesce(token_id = :tokenId::uuid, false)",
            vec![("tokenId", value("token_id"))],
        ),
        (
            "client",
            "client",
            "client = ANY(ARRAY[:client])".into(),
            vec![("client", "client-1".into())],
        ),
        (
            "a frequent kind",
            "",
            "kind = :kind".into(),
            vec![("kind", "token.reused".into())],
        ),
        (
            "a rare kind",
            "kind",
            "kind = ANY(ARRAY[:kind]) AND kind <> 'token.reused'".into(),
            vec![("kind", "token.invalidated".into())],
        ),
        (
            "requestId",
            "request_id",
            "request_id = ANY(ARRAY[:requestId])".into(),
            vec![("requestId", value("request_id"))],
        ),
        (
            "fingerprint",
            "user_id",
            of_owner("fingerprint = :fingerprint")
                + " AND coalesce(fingerprint = :fingerprint, false)",
            vec![("fingerprint", value("fingerprint"))],
        ),
        (
            "userId and kind",
            "user_id",
            of_user(":userId") + " AND kind = :kind",
            vec![
                ("userId", value("user_id")),
                ("kind", "token.minted".into()),
            ],
        ),
        (
            "client and to",
            "client",
            "client = ANY(ARRAY[:client]) AND occurred_at < :to".into(),
            vec![("client", "client-1".into()), ("to", month.clone())],
        ),
        (
            "from",
            "",
            "occurred_at >= :from".into(),
            vec![("from", month)],
        ),
    ];
    let path_and_sql = |(_, first, condition, values): &(_, &str, String, Vec<(&str, String)>)| {
        let query: Vec<_> = values
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let path = format!("/audit/events?{}", query.join("&"));
        let first = match *first {
            "" => String::new(),
            column => format!("{column} DESC, "),
        };
        // The service records every read before its answer, so the script does too.
        let sql = format!(
            "INSERT INTO audit_events (id, occurred_at, kind, client, request_id, detail)
             VALUES (gen_random_uuid(), clock_timestamp(), 'audit.read', 'pgbench', gen_random_uuid()::text, '{{}}');
             SELECT {COLUMNS} FROM audit_events WHERE {condition} ORDER BY {first}occurred_at DESC, id DESC LIMIT 101;"
        );
        (path, sql)
    };
    let queries: Vec<_> = filters.iter().map(path_and_sql).collect();
    let mut ours = vec![Vec::new(); filters.len()];
    let mut theirs = ours.clone();
    let base_url = server.base_url();
    for _ in 0..world.scale.rounds {
        for (at, (path, sql)) in queries.iter().enumerate() {
            let page = least_disturbed(async || {
                run_wrk(world, &base_url, 1, 1, Requests::Get(path)).await
            });
            ours[at].push(page.await?.p50_ms);
            let same_sql =
                least_disturbed(async || pgbench(world, "filled", sql, &filters[at].3, 1).await);
            theirs[at].push(same_sql.await?);
        }
    }
    for (at, (name, ..)) in filters.iter().enumerate() {
        section.compare(
            &format!("audit page of 100, {name}, p50"),
            "ms",
            &ours[at],
            ("prepared statement in pgbench", &theirs[at]),
            Some(AtMost(3.0)),
        );
    }
    Ok(())
}

pub async fn measure_export(world: &World, section: &mut Section) -> Result<()> {
    let server = world.serve("filled", None, &[])?;
    let mut db = world.connect("filled").await?;
    let (mut ours, mut unordered, mut ordered, mut memory) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..world.scale.rounds {
        let rows = count_events(&mut db).await?;
        let (seconds, resident) = export(&server).await?;
        ours.push(rows as f64 / seconds);
        // The export allocates its buffers in the first tenth.
        let after_first_tenth = resident[resident.len() / 10];
        let peak = resident.iter().max().context("no memory samples")?;
        memory.push(*peak as f64 / after_first_tenth as f64);
        unordered.push(rows as f64 / copy(world, "").await?);
        ordered.push(rows as f64 / copy(world, "ORDER BY occurred_at, id").await?);
    }
    let measurement = "export as NDJSON, events";
    section.compare(
        measurement,
        "/s",
        &ours,
        ("COPY … TO STDOUT, unordered", &unordered),
        Some(AtLeast(0.6)),
    );
    section.compare(
        measurement,
        "/s",
        &ours,
        ("COPY … TO STDOUT, ordered by time", &ordered),
        None,
    );
    section.add(
        "export, peak memory / memory after its first tenth",
        "",
        &memory,
        Some(AtMost(1.1)),
    );
    Ok(())
}

/// Returns the number of events.
pub async fn count_events(db: &mut PgConnection) -> Result<i64> {
    let count = sqlx::query_scalar("SELECT count(*) FROM audit_events");
    Ok(count.fetch_one(db).await?)
}

/// Exports all events. Returns the seconds and samples of the resident memory.
pub async fn export(server: &Server) -> Result<(f64, Vec<u64>)> {
    let mut stream = TcpStream::connect(server.addr).await?;
    let began = Instant::now();
    let mut resident = Vec::new();
    let request = format!(
        "GET /audit/events/export HTTP/1.1\r\nHost: bench\r\nAuthorization: {AUTHORIZATION}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let (mut buffer, mut end, mut sampled_at) = (vec![0; 1 << 20], Vec::new(), Instant::now());
    while !end.ends_with(b"\r\n0\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the export was cut off");
        end.extend_from_slice(&buffer[..read][read.saturating_sub(8)..]);
        end.drain(..end.len().saturating_sub(8));
        if sampled_at.elapsed() > Duration::from_millis(10) {
            resident.push(server.resident_memory()?);
            sampled_at = Instant::now();
        }
    }
    resident.push(server.resident_memory()?);
    Ok((began.elapsed().as_secs_f64(), resident))
}

/// Copies all events to `/dev/null` with psql. Returns the seconds.
async fn copy(world: &World, order: &str) -> Result<f64> {
    let mut psql = world.postgres_tool("psql", "filled");
    psql.args(["-X", "-q", "-o", "/dev/null", "-c"]);
    psql.arg(format!(
        "COPY (SELECT {COLUMNS} FROM audit_events {order}) TO STDOUT"
    ));
    let began = Instant::now();
    run_to_end(psql).await?;
    Ok(began.elapsed().as_secs_f64())
}
