//! Cleanup, memory, start time and binary size.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use token_vendor::db::cleanup::expire_tokens;

use crate::fill::{all_requests, run};
use crate::load::{Requests, run_to_end, run_wrk, send_all};
use crate::process::{Server, free_addr};
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::{Section, format_number};
use crate::warm::{serve_warm, write_requests};
use crate::world::{PROGRAM, World};

/// The batch size, which is the default of the `cleanup` command.
const BATCH: i64 = 1_000;

pub async fn measure_cleanup(world: &World, section: &mut Section) -> Result<()> {
    let expired = world.scale.tokens / 5;
    let requests = write_requests(world, world.scale.tokens)?;
    let server = serve_warm(world, "filled", &requests, &[]).await?;
    let (mut ours, mut same_sql, mut during_handouts, mut share_kept) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let rate = |(tokens, seconds): (u64, f64)| tokens as f64 / seconds;
    // The first cleanup of a new database has more work than the later ones.
    expire(world, "filled", expired).await?;
    clean(world, "filled", "10m").await?;
    for _ in 0..world.scale.rounds {
        expire(world, "filled", expired).await?;
        same_sql.push(rate(repeat_statement(world).await?));
        expire(world, "filled", expired).await?;
        ours.push(rate(clean(world, "filled", "10m").await?));

        expire(world, "filled", expired).await?;
        let seconds = world.scale.seconds;
        let base_url = server.base_url();
        let load = async || {
            let requests = Requests::PostLines(&requests);
            run_wrk(world, &base_url, 64, seconds, requests).await
        };
        let undisturbed = load().await?;
        let max_runtime = format!("{seconds}s");
        let (cleaned, disturbed) = tokio::join!(clean(world, "filled", &max_runtime), load());
        during_handouts.push(rate(cleaned?));
        share_kept.push(disturbed?.rate() / undisturbed.rate());
    }
    section.compare(
        &format!("cleanup, {}", expired_of(expired, world.scale.tokens)),
        "tokens/s",
        &ours,
        ("same SQL in a loop", &same_sql),
        Some(AtLeast(0.75)),
    );
    section.add(
        "handout rate during a cleanup, share kept",
        "",
        &share_kept,
        Some(AtLeast(0.7)),
    );
    section.add(
        "cleanup rate during handouts",
        "tokens/s",
        &during_handouts,
        None,
    );
    Ok(())
}

/// Returns a text like `5,000 expired of 10,000`.
pub fn expired_of(expired: u64, tokens: u64) -> String {
    let [expired, tokens] = [expired, tokens].map(|count| format_number(count as f64));
    format!("{expired} expired of {tokens}")
}

/// Expires this many tokens, the same ones each time. Cold tokens come first, because their bank sorts first.
pub async fn expire(world: &World, database: &str, tokens: u64) -> Result<()> {
    let mut db = world.connect(database).await?;
    run(
        &mut db,
        &format!(
        "UPDATE tokens t SET ends_at = clock_timestamp() - interval '1 second', is_valid = true,
                             ciphertext = decode(repeat('5a', 64), 'hex')
         FROM (SELECT user_id, id FROM tokens ORDER BY bank, id LIMIT {tokens}) d
         WHERE t.user_id = d.user_id AND t.id = d.id"),
    )
    .await?;
    run(&mut db, "VACUUM ANALYZE tokens").await?;
    run(&mut db, "CHECKPOINT").await
}

/// Runs the `cleanup` command. Returns the number of tokens and the seconds.
pub async fn clean(world: &World, database: &str, max_runtime: &str) -> Result<(u64, f64)> {
    let began = Instant::now();
    let cleanup = world.program(database, &["cleanup", "--max-runtime", max_runtime]);
    let stdout = run_to_end(cleanup).await?;
    let seconds = began.elapsed().as_secs_f64();
    let summary: serde_json::Value = serde_json::from_str(&stdout)?;
    let expired = summary["expired"].as_u64().context("no `expired`")?;
    ensure!(expired > 0, "no token had expired: {stdout}");
    Ok((expired, seconds))
}

/// Repeats the statement of the cleanup without pauses. Returns the number of tokens and the seconds.
async fn repeat_statement(world: &World) -> Result<(u64, f64)> {
    let mut connection = world.connect("filled").await?;
    let (mut tokens, began) = (0, Instant::now());
    loop {
        let expired = expire_tokens(&mut connection, chrono::Utc::now(), BATCH).await?;
        tokens += expired;
        if expired < BATCH.unsigned_abs() {
            ensure!(tokens > 0, "no token had expired");
            return Ok((tokens, began.elapsed().as_secs_f64()));
        }
    }
}

pub async fn measure_memory(world: &World, section: &mut Section) -> Result<()> {
    let tokens = world.scale.tokens.min(1_000_000);
    let max_tokens = (2 * tokens).to_string();
    // Tokens that the cleanups of the section `scale` expired are minted again.
    let sandbox = world.sandbox(Duration::ZERO)?;
    let variables = [("CACHE_MAX_TOKENS", &*max_tokens)];
    let server = world.serve("filled", Some(sandbox.addr), &variables)?;
    let requests = all_requests(world.scale.tokens);
    let requests: Vec<&str> = requests.lines().take(tokens as usize).collect();
    let (warm_up, measured) = requests.split_at(1_000);
    send_all(server.addr, warm_up).await?;
    let before = server.resident_memory()?;
    send_all(server.addr, measured).await?;
    let bytes = (server.resident_memory()? - before) as f64 / measured.len() as f64;
    let tokens = format_number(measured.len() as f64);
    section.add(
        &format!("resident memory per cached token, {tokens} tokens"),
        "bytes",
        &[bytes],
        Some(AtMost(550.0)),
    );
    Ok(())
}

pub async fn measure_start(world: &World, section: &mut Section) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..5 * world.scale.rounds {
        let addr = free_addr()?;
        let mut serve = world.program("filled", &["serve"]);
        serve.env("LISTEN_ADDR", addr.to_string());
        ours.push(first_answer(world, serve, addr)?);
        let addr = free_addr()?;
        let rival = world.rival_command("connected", addr, &world.url("filled"))?;
        theirs.push(first_answer(world, rival, addr)?);
    }
    section.compare(
        "start to first answer",
        "ms",
        &ours,
        ("bare actix with one connection", &theirs),
        Some(AtMost(3.0)),
    );
    let size = std::fs::metadata(PROGRAM)?.len() as f64 / 1e6;
    section.add("stripped release build", "MB", &[size], Some(AtMost(25.0)));
    Ok(())
}

/// Starts a program. Returns the milliseconds until its first answer.
fn first_answer(world: &World, program: Command, addr: std::net::SocketAddr) -> Result<f64> {
    let began = Instant::now();
    let _server = Server::spawn(program, addr, &world.log("start"))?;
    loop {
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "nothing answered at {addr} within 30 s"
        );
        let Ok(mut stream) = TcpStream::connect(addr) else {
            sleep(Duration::from_micros(200));
            continue;
        };
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        ensure!(
            &status == b"HTTP/1.1 200",
            "{}",
            String::from_utf8_lossy(&status)
        );
        return Ok(began.elapsed().as_secs_f64() * 1e3);
    }
}
