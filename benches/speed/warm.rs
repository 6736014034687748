//! Warm handouts: cache hits, each checked and committed before its answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::bearer::Issuer;
use crate::fill::hot_requests;
use crate::load::{Load, Requests, least_disturbed, pgbench, run_wrk, run_wrk_as, send_all};
use crate::process::Server;
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::Section;
use crate::world::{AUTHORIZATION, Scale, World};

/// The row of one handout in its own transaction.
const BARE_COMMIT: &str = "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access, token_id, fingerprint)
VALUES (gen_random_uuid(), clock_timestamp(), 'token.reused', 'bare', 'bare', gen_random_uuid()::text, '127.0.0.1', 'LT', 'Swedbank', 1, gen_random_uuid(), '28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc28fa2f4f8dcc1234');";

/// Seconds of load before the first measurement. In this time the index page of each hot user in the audit log splits
/// for the first time, which may read the next page from the disk.
const WARM_UP: u32 = 30;

/// The pause between two measurements, for background work of the previous one.
const REST: Duration = Duration::from_millis(500);

/// Writes the requests for the hot users to a file and returns its path.
pub fn write_requests(world: &World, tokens: u64) -> Result<PathBuf> {
    let path = world.folder.join(format!("hot-{tokens}.txt"));
    fs::write(&path, hot_requests(tokens))?;
    Ok(path)
}

/// Starts a replica and loads it, so that its cache has the hot tokens and Postgres has their pages in memory.
pub async fn serve_warm(
    world: &World,
    database: &str,
    requests: &Path,
    variables: &[(&str, &str)],
) -> Result<Server> {
    let server = world.serve(database, None, variables)?;
    let bodies = fs::read_to_string(requests)?;
    let bodies: Vec<_> = bodies.lines().collect();
    if let Err(error) = send_all(server.addr, &bodies).await {
        // A slow disk can cause a 503 with `Retry-After: 1`.
        eprintln!("  sending the requests again: {error:#}");
        sleep(Duration::from_secs(1)).await;
        send_all(server.addr, &bodies).await?;
    }
    let base_url = server.base_url();
    let load = Requests::PostLines(requests);
    run_wrk(world, &base_url, 64, WARM_UP, load).await?;
    // Writes that are still pending must not disturb the measurement.
    nix::unistd::sync();
    Ok(server)
}

/// Serves until it is interrupted, and prints a command that loads the service.
pub async fn hold(world: &World) -> Result<()> {
    let requests = write_requests(world, world.scale.tokens)?;
    let server = serve_warm(world, "filled", &requests, &[]).await?;
    let (script, requests) = (world.folder.join("handouts.lua"), requests.display());
    println!("DATABASE_URL='{}'", world.url("filled"));
    println!(
        "wrk -t1 -c64 -d10s -s {} {}/bank/tokens/ -- post {requests} '{AUTHORIZATION}'",
        script.display(),
        server.base_url()
    );
    std::future::pending().await
}

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    let Scale {
        tokens, seconds, ..
    } = world.scale;
    let requests = write_requests(world, tokens)?;
    let issuer = Issuer::start(world)?;
    let ours = serve_warm(world, "filled", &requests, &issuer.settings()).await?;
    let ours_logged = serve_warm(world, "filled", &requests, &[("RUST_LOG", "info")]).await?;
    let bare = world.rival("constant", "")?;
    let naive = world.rival("naive", &world.url("filled"))?;
    let nginx = world.nginx(bare.addr)?;

    let mut contenders = vec![
        ("ours", ours.base_url(), 64),
        ("ours-bearer", ours.base_url(), 64),
        ("ours-256", ours.base_url(), 256),
        ("ours-1", ours.base_url(), 1),
        ("ours-logged", ours_logged.base_url(), 64),
        ("bare", bare.base_url(), 64),
        ("naive", naive.base_url(), 64),
    ];
    if let Some((nginx, logged)) = &nginx {
        contenders.push(("nginx", nginx.base_url(), 64));
        contenders.push(("nginx-1", nginx.base_url(), 1));
        contenders.push(("nginx-logged", format!("http://{logged}"), 64));
        // Fills the cache of nginx.
        let load = Requests::PostLines(&requests);
        run_wrk(world, &nginx.base_url(), 64, 2, load).await?;
    }
    let mut loads: Vec<Vec<Load>> = vec![Vec::new(); contenders.len()];
    let mut commits = Vec::new();
    for round in world.scale.loaded_rounds() {
        // Each round starts with another contender.
        for turn in 0..contenders.len() {
            let at = (turn + round * 2) % contenders.len();
            let (name, base_url, connections) = &contenders[at];
            let authorization = match *name {
                "ours-bearer" => &issuer.authorization,
                _ => AUTHORIZATION,
            };
            let load = least_disturbed(async || {
                sleep(REST).await;
                let load = Requests::PostLines(&requests);
                run_wrk_as(authorization, world, base_url, *connections, seconds, load).await
            });
            loads[at].push(load.await?);
        }
        let commit =
            least_disturbed(async || pgbench(world, "filled", BARE_COMMIT, &[], seconds).await);
        commits.push(commit.await?);
    }

    let figures = |name: &str, figure: fn(&Load) -> f64| -> Vec<f64> {
        let at = contenders.iter().position(|(known, ..)| *known == name);
        at.map_or(Vec::new(), |at| loads[at].iter().map(figure).collect())
    };
    let rate = |name| figures(name, Load::rate);
    let p50 = |name| figures(name, |load| load.p50_ms);
    let p99 = |name| figures(name, |load| load.p99_ms);
    let per_second = "/s";
    let warm = "warm handout, 64 connections";
    if nginx.is_some() {
        section.compare(
            warm,
            per_second,
            &rate("ours"),
            ("nginx proxy_cache", &rate("nginx")),
            Some(AtLeast(0.65)),
        );
        section.compare(
            "the same, one log line per request",
            per_second,
            &rate("ours-logged"),
            ("nginx with an access log", &rate("nginx-logged")),
            None,
        );
    }
    section.compare(
        warm,
        per_second,
        &rate("ours"),
        ("SELECT and INSERT per request", &rate("naive")),
        Some(AtLeast(8.0)),
    );
    section.compare(
        warm,
        per_second,
        &rate("ours"),
        ("bare actix handler, constant answer", &rate("bare")),
        None,
    );
    section.compare(
        "warm handout with a bearer token, 64 connections",
        per_second,
        &rate("ours-bearer"),
        ("HTTP Basic", &rate("ours")),
        Some(AtLeast(0.9)),
    );
    section.compare(
        "warm handout, 64 connections, p99",
        "ms",
        &p99("ours"),
        ("bare commit", &commits),
        Some(AtMost(20.0)),
    );
    section.compare(
        "warm handout, 64 connections, p99",
        "ms",
        &p99("ours"),
        ("SELECT and INSERT per request", &p99("naive")),
        None,
    );
    section.compare(
        "warm handout, 256 connections",
        per_second,
        &rate("ours-256"),
        ("64 connections", &rate("ours")),
        Some(AtLeast(1.0)),
    );
    section.compare(
        "warm handout, one connection, p50",
        "ms",
        &p50("ours-1"),
        ("bare commit", &commits),
        Some(AtMost(1.5)),
    );
    if nginx.is_some() {
        section.compare(
            "warm handout, one connection, p50",
            "ms",
            &p50("ours-1"),
            ("nginx proxy_cache", &p50("nginx-1")),
            None,
        );
    }
    section.compare(
        "warm handout, 64 connections, p50",
        "ms",
        &p50("ours"),
        ("SELECT and INSERT per request", &p50("naive")),
        None,
    );
    Ok(())
}
