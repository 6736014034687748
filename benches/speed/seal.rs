//! The sealed audit log: its cost for handouts, its lag, its storage, and the speed of its verification.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use sqlx::PgConnection;
use token_vendor::db::audit_log::{find_lag, find_log};
use tokio::time::sleep;

use crate::fill::{fill, run};
use crate::load::{Requests, run_to_end, run_wrk, send_all};
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::{Section, format_number};
use crate::warm::write_requests;
use crate::world::World;

/// The default of `SEAL_INTERVAL`.
const INTERVAL: &str = "2s";

/// Seconds of load before a measurement. The first events of the load are sealed in this time.
const LEAD: u32 = 12;

/// The duration of one measurement, as a multiple of that of the other sections. It covers several seals.
const LONGER: u32 = 5;

/// The number of tokens in the database that is verified.
const TOKENS: u64 = 10_000;

/// The longest time until all events are sealed.
const SEAL_TIMEOUT: Duration = Duration::from_secs(600);

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    measure_verification(world, section).await?;
    measure_cost(world, section).await
}

/// Measures `audit verify` over as many events as the filled database has.
async fn measure_verification(world: &World, section: &mut Section) -> Result<()> {
    world.create_database("sealed").await?;
    let mut db = world.connect("sealed").await?;
    fill(&mut db, TOKENS, 0).await?;
    // Each token has the event of its mint, which the verification compares.
    let handouts = world.scale.events / TOKENS - 1;
    run(&mut db, &format!(
        "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access, token_id, fingerprint)
         SELECT gen_random_uuid(), CASE WHEN n = 0 THEN t.issued_at ELSE now() - interval '50 minutes' * random() - interval '1 minute' END AS at,
                CASE WHEN n = 0 THEN 'token.minted' ELSE 'token.reused' END, t.user_id, 'client-' || n % 5,
                gen_random_uuid()::text, '10.0.0.' || n % 250, t.country, t.bank, t.access, t.id, t.fingerprint
         FROM tokens t, generate_series(0, {handouts}) AS n ORDER BY at")).await?;
    run(&mut db, "VACUUM ANALYZE").await?;
    let cpu = seal_all(world, "sealed").await?;
    let size = find_log(&mut db).await?.size as f64;
    let micros = [cpu / size * 1e6];
    section.add(
        "sealing at once, CPU per event, with Postgres",
        "µs",
        &micros,
        None,
    );
    add_storage(section, &mut db, "sealed at once").await?;

    let (mut rates, mut rates_per_core, mut rates_of_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let cores = std::thread::available_parallelism()?.get() as f64;
    for _ in 0..world.scale.rounds {
        let (began, cpu) = (Instant::now(), cpu_of_children()?);
        let verified = run_to_end(world.program("sealed", &["audit", "verify"])).await?;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_of_children()? - cpu);
        let verified: serde_json::Value = serde_json::from_str(&verified)?;
        let compared = verified["compared"].as_f64().context("no `compared`")?;
        ensure!(
            compared == size,
            "compared only {compared} of {size} events"
        );
        rates.push(compared / seconds);
        rates_per_core.push(compared / seconds / cores);
        rates_of_cpu.push(compared / cpu);
    }
    let measurement = format!("audit verify, {} events", format_number(size));
    section.add(&measurement, "/s", &rates, None);
    let per_core = "the same, per core of the machine, Postgres included";
    section.add(per_core, "/s", &rates_per_core, None);
    let of_cpu = "the same, per second of CPU of the command";
    section.add(of_cpu, "/s", &rates_of_cpu, Some(AtLeast(500_000.0)));
    Ok(())
}

/// Measures warm handouts with and without sealing, in turn.
async fn measure_cost(world: &World, section: &mut Section) -> Result<()> {
    let requests = write_requests(world, world.scale.tokens)?;
    let bodies = fs::read_to_string(&requests)?;
    let bodies: Vec<_> = bodies.lines().collect();
    let mut db = world.connect("filled").await?;
    let (mut sealing, mut off, mut lags) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..world.scale.rounds.max(3) {
        let mut turns = [INTERVAL, "off"];
        turns.rotate_left(round % 2);
        for interval in turns {
            // Events of the turn before are not part of the load.
            seal_all(world, "filled").await?;
            let server = world.serve("filled", None, &[("SEAL_INTERVAL", interval)])?;
            send_all(server.addr, &bodies).await?;
            let base_url = server.base_url();
            let load = async |seconds| {
                run_wrk(
                    world,
                    &base_url,
                    64,
                    seconds,
                    Requests::PostLines(&requests),
                )
                .await
            };
            load(LEAD).await?;
            let cpu = world.cpu_seconds(&server)?;
            let mut highest = 0_f64;
            let sample = async {
                loop {
                    highest = highest.max(find_lag(&mut db).await?);
                    sleep(Duration::from_millis(200)).await;
                }
            };
            let load = tokio::select! {
                load = load(LONGER * world.scale.seconds) => load?,
                failed = sample => return failed,
            };
            let cpu = world.cpu_seconds(&server)? - cpu;
            let figures = (load.rate(), cpu / load.requests as f64 * 1e6);
            if interval == INTERVAL {
                sealing.push(figures);
                lags.push(highest);
            } else {
                off.push(figures);
            }
        }
    }
    let (rates, micros): (Vec<_>, Vec<_>) = sealing.into_iter().unzip();
    let (rates_off, micros_off): (Vec<_>, Vec<_>) = off.into_iter().unzip();
    section.compare(
        "warm handout, 64 connections, sealed every 2 s",
        "/s",
        &rates,
        ("SEAL_INTERVAL=off", &rates_off),
        Some(AtLeast(0.9)),
    );
    // Unlike the rate, this hardly depends on other programs of the machine.
    section.compare(
        "the same, CPU per handout, with Postgres",
        "µs",
        &micros,
        ("SEAL_INTERVAL=off", &micros_off),
        None,
    );
    let lag = "age of the oldest event that is not sealed, highest under this load";
    section.add(lag, "s", &lags, Some(AtMost(10.0)));
    seal_all(world, "filled").await?;
    add_storage(section, &mut db, "sealed under load").await
}

/// Seals all events of a database with a replica of its own. Returns the seconds of CPU that it and Postgres used.
async fn seal_all(world: &World, database: &str) -> Result<f64> {
    let mut db = world.connect(database).await?;
    let began = Instant::now();
    let server = world.serve(database, None, &[("SEAL_INTERVAL", "100ms")])?;
    let cpu = world.cpu_seconds(&server)?;
    while find_lag(&mut db).await? > 0.0 {
        ensure!(
            began.elapsed() < SEAL_TIMEOUT,
            "events of {database} are not sealed after {SEAL_TIMEOUT:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
    Ok(world.cpu_seconds(&server)? - cpu)
}

/// Adds the storage of the tiles and the head of the log per sealed event.
async fn add_storage(section: &mut Section, db: &mut PgConnection, how: &str) -> Result<()> {
    let size = find_log(db).await?.size as f64;
    let bytes: i64 = sqlx::query_scalar(
        "SELECT pg_total_relation_size('audit_tiles') + pg_total_relation_size('audit_log')",
    )
    .fetch_one(db)
    .await?;
    let measurement = format!("storage of the sealed log per event, {how}");
    section.add(&measurement, "bytes", &[bytes as f64 / size], None);
    Ok(())
}

/// Returns the seconds of CPU of all programs that have ended.
fn cpu_of_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = usage.user_time() + usage.system_time();
    Ok(time.num_microseconds() as f64 / 1e6)
}
