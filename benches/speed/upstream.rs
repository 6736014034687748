//! Tokens that nobody has asked for before: one caller each, and a herd for one.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::load::{callers, herd, request};
use crate::report::Goal::AtMost;
use crate::report::{Section, percentile};
use crate::world::{AUTHORIZATION, World};

/// How long the stand-in upstream takes.
const LATENCY: Duration = Duration::from_millis(100);
const AT_ONCE: u32 = 64;
const SANDBOX_AUTHORIZATION: &str = "Basic c2FuZGJveC1rZXk6c2FuZGJveC1zZWNyZXQ=";
const REPLICAS: usize = 3;
const CALLERS: usize = 5_000;

pub async fn measure_miss(world: &World, section: &mut Section) -> Result<()> {
    let sandbox = world.sandbox(LATENCY)?;
    let ours = world.serve("filled", Some(sandbox.addr), &[])?;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let (mut direct_p50, mut direct_p99) = (Vec::new(), Vec::new());
    for round in 0..=world.scale.rounds {
        let new = |caller, n| format!(r#"{{"userId":"miss-{round}-{caller}-{n}","country":"LT"}}"#);
        let asked = callers(
            ours.addr,
            AT_ONCE,
            LATENCY,
            world.scale.seconds,
            |caller, n| request(AUTHORIZATION, &new(caller, n)),
        );
        let asked = asked.await?;
        let called = callers(
            sandbox.addr,
            AT_ONCE,
            LATENCY,
            world.scale.seconds,
            |_, _| request(SANDBOX_AUTHORIZATION, r#"{"country":"LT"}"#),
        );
        let called = called.await?;
        // The first round opens the connections.
        if round > 0 {
            p50.push(percentile(&asked, 50));
            p99.push(percentile(&asked, 99));
            direct_p50.push(percentile(&called, 50));
            direct_p99.push(percentile(&called, 99));
        }
    }
    let path = "miss, upstream at 100 ms, 64 at once";
    let (direct_p50, direct_p99) = (
        ("the upstream itself", &*direct_p50),
        ("the upstream itself", &*direct_p99),
    );
    section.beside(
        &format!("{path}, p50"),
        "ms",
        &p50,
        direct_p50,
        Some(AtMost(1.03)),
    );
    section.beside(&format!("{path}, p99"), "ms", &p99, direct_p99, None);
    Ok(())
}

pub async fn measure_herd(world: &World, section: &mut Section) -> Result<()> {
    let sandbox = world.sandbox(LATENCY)?;
    let replicas = (0..REPLICAS).map(|_| world.serve("filled", Some(sandbox.addr), &[]));
    let replicas = replicas.collect::<Result<Vec<_>>>()?;
    let addrs: Vec<_> = replicas.iter().map(|replica| replica.addr).collect();
    let rival = world.rival("herd", &sandbox.addr.to_string())?;
    let mut db = world.connect("filled").await?;
    let (mut ours, mut theirs, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..world.scale.rounds {
        let user = format!("herd-{round}-{}", fastrand::u32(..));
        let request = request(
            AUTHORIZATION,
            &format!(r#"{{"userId":"{user}","country":"LT"}}"#),
        );
        ours.push(herd(&addrs, CALLERS, &request).await? * 1e3);
        theirs.push(herd(&[rival.addr], CALLERS, &request).await? * 1e3);
        let attempts = "SELECT coalesce(sum(attempts), 0) FROM mints WHERE user_id = $1";
        let attempts: i64 = sqlx::query_scalar(attempts)
            .bind(&user)
            .fetch_one(&mut db)
            .await?;
        let handed_out = "SELECT count(*) FROM audit_events WHERE user_id = $1";
        let handed_out: i64 = sqlx::query_scalar(handed_out)
            .bind(&user)
            .fetch_one(&mut db)
            .await?;
        ensure!(
            handed_out as usize == CALLERS,
            "{handed_out} events of {CALLERS} answers"
        );
        calls.push(attempts as f64);
    }
    let herd = format!("cold herd of {CALLERS} over {REPLICAS} replicas");
    section.alone(
        &format!("{herd}, upstream calls"),
        "",
        &calls,
        Some(AtMost(1.0)),
    );
    section.beside(
        &format!("{herd}, last answer"),
        "ms",
        &ours,
        ("moka's try_get_with in one process", &theirs),
        Some(AtMost(1.5)),
    );
    Ok(())
}
