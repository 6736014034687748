//! Clearing away, memory, start and size.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use token_vendor::db::PgPool;
use token_vendor::db::cleanup::expire_tokens;

use crate::fill::{all_requests, run};
use crate::load::{Ask, ask_all, drive, output};
use crate::process::{Server, free_addr};
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::Section;
use crate::warm::{serve_warm, write_requests};
use crate::world::{PROGRAM, World};

/// Tokens in one statement, as the command has it unless told otherwise.
const BATCH: i64 = 1_000;

pub async fn measure_cleanup(world: &World, section: &mut Section) -> Result<()> {
    let due = world.scale.tokens / 5;
    let requests = write_requests(world, world.scale.tokens)?;
    let server = serve_warm(world, "filled", &requests, &[]).await?;
    let (mut ours, mut by_hand, mut beside, mut kept) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let rate = |cleaned: (u64, f64)| cleaned.0 as f64 / cleaned.1;
    // What was filled in has never been cleaned.
    expire(world, "filled", due).await?;
    clean(world, "filled", "10m").await?;
    for _ in 0..world.scale.rounds {
        expire(world, "filled", due).await?;
        by_hand.push(rate(clean_by_hand(world).await?));
        expire(world, "filled", due).await?;
        ours.push(rate(clean(world, "filled", "10m").await?));

        expire(world, "filled", due).await?;
        let base = server.base();
        let seconds = world.scale.seconds;
        let alone = drive(world, &base, 64, seconds, Ask::File(&requests)).await?;
        let load = drive(world, &base, 64, seconds, Ask::File(&requests));
        let as_long = format!("{seconds}s");
        let (cleaned, load) = tokio::join!(clean(world, "filled", &as_long), load);
        beside.push(rate(cleaned?));
        kept.push(load?.rate() / alone.rate());
    }
    let path = format!("cleanup, {due} expired of {}", world.scale.tokens);
    section.beside(
        &path,
        "tokens/s",
        &ours,
        ("the same SQL in a loop", &by_hand),
        Some(AtLeast(0.75)),
    );
    section.alone(
        "handouts beside a cleanup, rate kept",
        "",
        &kept,
        Some(AtLeast(0.7)),
    );
    section.alone("cleanup beside handouts", "tokens/s", &beside, None);
    Ok(())
}

/// Lets so many tokens be over, the same ones each time: first those that nobody asks for, whose bank
/// is the first.
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

/// A run of the command, at most that long: tokens and seconds.
pub async fn clean(world: &World, database: &str, at_most: &str) -> Result<(u64, f64)> {
    let began = Instant::now();
    let said = output(world.program(database, &["cleanup", "--max-runtime", at_most])).await?;
    let seconds = began.elapsed().as_secs_f64();
    let summary: serde_json::Value = serde_json::from_str(&said)?;
    let expired = summary["expired"].as_u64().context("no count")?;
    ensure!(expired > 0, "nothing was due: {said}");
    Ok((expired, seconds))
}

/// The cleanup's own statement, one after the other without a pause.
async fn clean_by_hand(world: &World) -> Result<(u64, f64)> {
    let pool = PgPool::connect(&world.url("filled")).await?;
    let (mut tokens, began) = (0, Instant::now());
    loop {
        let done = expire_tokens(&pool, BATCH).await?;
        tokens += done;
        if done < BATCH.unsigned_abs() {
            ensure!(tokens > 0, "nothing was due");
            return Ok((tokens, began.elapsed().as_secs_f64()));
        }
    }
}

pub async fn measure_memory(world: &World, section: &mut Section) -> Result<()> {
    let tokens = world.scale.tokens.min(1_000_000);
    let room = (2 * tokens).to_string();
    let server = world.serve("filled", None, &[("CACHE_MAX_TOKENS", &room)])?;
    let requests = all_requests(world.scale.tokens);
    let requests: Vec<&str> = requests.lines().take(tokens as usize).collect();
    let (first, rest) = requests.split_at(1_000);
    ask_all(server.addr, first).await?;
    let before = server.resident()?;
    ask_all(server.addr, rest).await?;
    let bytes = (server.resident()? - before) as f64 / rest.len() as f64;
    section.alone(
        &format!("resident memory a cached token, {} of them", rest.len()),
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
    section.beside(
        "start to first answer",
        "ms",
        &ours,
        ("bare actix with one connection", &theirs),
        Some(AtMost(3.0)),
    );
    let size = std::fs::metadata(PROGRAM)?.len() as f64 / 1e6;
    section.alone("stripped release build", "MB", &[size], Some(AtMost(25.0)));
    Ok(())
}

/// Milliseconds until a program answers.
fn first_answer(world: &World, program: Command, addr: std::net::SocketAddr) -> Result<f64> {
    let began = Instant::now();
    let _server = Server::spawn(program, addr, &world.log("start"))?;
    loop {
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "nothing answers at {addr}"
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
