//! Handouts of tokens that are in memory, each committed and checked before its answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::fill::hot_requests;
use crate::load::{Ask, Load, ask_all, drive, pgbench, undisturbed};
use crate::process::Server;
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::Section;
use crate::world::{AUTHORIZATION, Scale, World};

/// A single handout's row, committed by itself.
const BARE_COMMIT: &str = "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access, token_id, fingerprint)
VALUES (gen_random_uuid(), clock_timestamp(), 'token.reused', 'bare', 'bare', gen_random_uuid()::text, '127.0.0.1', 'LT', 'Swedbank', 1, gen_random_uuid(), '28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc1234');";

/// Seconds in which each hot user's page of the trail's key is split for the first time. That reads the
/// page beside it, which nobody may have used of late: a disk's time, once.
const WARM_UP: u32 = 30;

/// For what the last one left to do.
const REST: Duration = Duration::from_millis(500);

/// Writes the requests for the hot users, and returns where.
pub fn write_requests(world: &World, tokens: u64) -> Result<PathBuf> {
    let path = world.folder.join(format!("hot-{tokens}.txt"));
    fs::write(&path, hot_requests(tokens))?;
    Ok(path)
}

/// A replica that has the hot tokens in memory, as Postgres has what a handout of them touches.
pub async fn serve_warm(
    world: &World,
    database: &str,
    requests: &Path,
    more: &[(&str, &str)],
) -> Result<Server> {
    let server = world.serve(database, None, more)?;
    let bodies = fs::read_to_string(requests)?;
    let bodies: Vec<_> = bodies.lines().collect();
    if let Err(refused) = ask_all(server.addr, &bodies).await {
        // A disk may hang for longer than a request waits, which is then told to come back in a second.
        eprintln!("  asking once more: {refused:#}");
        sleep(Duration::from_secs(1)).await;
        ask_all(server.addr, &bodies).await?;
    }
    drive(world, &server.base(), 64, WARM_UP, Ask::File(requests)).await?;
    // What that left to be written is no part of the next two seconds.
    nix::unistd::sync();
    Ok(server)
}

/// Serves, and says how to load it.
pub async fn hold(world: &World) -> Result<()> {
    let requests = write_requests(world, world.scale.tokens)?;
    let server = serve_warm(world, "filled", &requests, &[]).await?;
    let (script, requests) = (world.folder.join("handouts.lua"), requests.display());
    let base = server.base();
    println!("DATABASE_URL='{}'", world.url("filled"));
    println!(
        "wrk -t1 -c64 -d10s -s {} {base}/bank/tokens/ -- file {requests} '{AUTHORIZATION}'",
        script.display()
    );
    std::future::pending().await
}

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    let Scale {
        tokens, seconds, ..
    } = world.scale;
    let requests = write_requests(world, tokens)?;
    let ours = serve_warm(world, "filled", &requests, &[]).await?;
    let chatty = serve_warm(world, "filled", &requests, &[("RUST_LOG", "info")]).await?;
    let bare = world.rival("constant", "")?;
    let audited = world.rival("audited", &world.url("filled"))?;
    let nginx = world.nginx(bare.addr)?;

    let mut contenders = vec![
        ("ours", ours.base(), 64),
        ("ours-256", ours.base(), 256),
        ("ours-1", ours.base(), 1),
        ("chatty", chatty.base(), 64),
        ("bare", bare.base(), 64),
        ("audited", audited.base(), 64),
    ];
    if let Some((nginx, logged)) = &nginx {
        contenders.push(("nginx", nginx.base(), 64));
        contenders.push(("nginx-1", nginx.base(), 1));
        contenders.push(("nginx-logged", format!("http://{logged}"), 64));
        drive(world, &nginx.base(), 64, 2, Ask::File(&requests)).await?;
    }
    let mut loads: Vec<Vec<Load>> = vec![Vec::new(); contenders.len()];
    let mut commits = Vec::new();
    for round in world.scale.loaded_rounds() {
        // Who comes after whom changes from round to round.
        for turn in 0..contenders.len() {
            let at = (turn + round * 2) % contenders.len();
            let (_, base, connections) = &contenders[at];
            let load = undisturbed(async || {
                sleep(REST).await;
                drive(world, base, *connections, seconds, Ask::File(&requests)).await
            });
            loads[at].push(load.await?);
        }
        let commit =
            undisturbed(async || pgbench(world, "filled", BARE_COMMIT, &[], seconds).await);
        commits.push(commit.await?);
    }

    let of = |name: &str, figure: fn(&Load) -> f64| -> Vec<f64> {
        let at = contenders.iter().position(|(known, ..)| *known == name);
        at.map_or(Vec::new(), |at| loads[at].iter().map(figure).collect())
    };
    let rate = |name| of(name, Load::rate);
    let (p50, p99) = (
        |name| of(name, |load| load.p50_ms),
        |name| of(name, |load| load.p99_ms),
    );
    let per_second = "/s";
    let warm = "warm handout, 64 connections";
    if nginx.is_some() {
        section.beside(
            warm,
            per_second,
            &rate("ours"),
            ("nginx proxy_cache", &rate("nginx")),
            Some(AtLeast(0.65)),
        );
        section.beside(
            "the same, a log line for each",
            per_second,
            &rate("chatty"),
            ("nginx, an access log line", &rate("nginx-logged")),
            None,
        );
    }
    section.beside(
        warm,
        per_second,
        &rate("ours"),
        ("SELECT and INSERT a request", &rate("audited")),
        Some(AtLeast(8.0)),
    );
    section.beside(
        warm,
        per_second,
        &rate("ours"),
        ("bare actix, a constant", &rate("bare")),
        None,
    );
    section.beside(
        "warm handout, 64 connections, p99",
        "ms",
        &p99("ours"),
        ("bare commit", &commits),
        Some(AtMost(20.0)),
    );
    section.beside(
        "warm handout, 64 connections, p99",
        "ms",
        &p99("ours"),
        ("SELECT and INSERT a request", &p99("audited")),
        None,
    );
    section.beside(
        "warm handout, 256 connections",
        per_second,
        &rate("ours-256"),
        ("64 connections", &rate("ours")),
        Some(AtLeast(1.0)),
    );
    section.beside(
        "warm handout, one connection, p50",
        "ms",
        &p50("ours-1"),
        ("bare commit", &commits),
        Some(AtMost(1.5)),
    );
    if nginx.is_some() {
        section.beside(
            "warm handout, one connection, p50",
            "ms",
            &p50("ours-1"),
            ("nginx proxy_cache", &p50("nginx-1")),
            None,
        );
    }
    section.beside(
        "warm handout, 64 connections, p50",
        "ms",
        &p50("ours"),
        ("SELECT and INSERT a request", &p50("audited")),
        None,
    );
    Ok(())
}
