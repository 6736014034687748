//! Cache misses: many callers with a combination each, and many callers with the same combination.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::load::{run_callers, run_herd, token_request};
use crate::report::Goal::AtMost;
use crate::report::{Section, format_number, percentile};
use crate::world::{AUTHORIZATION, World};

/// The latency of the sandbox provider.
const LATENCY: Duration = Duration::from_millis(100);
const CALLERS: u32 = 64;
const SANDBOX_AUTHORIZATION: &str = "Basic c2FuZGJveC1rZXk6c2FuZGJveC1zZWNyZXQ=";
const REPLICAS: usize = 3;
const HERD: usize = 5_000;

pub async fn measure_miss(world: &World, section: &mut Section) -> Result<()> {
    let sandbox = world.sandbox(LATENCY)?;
    let ours = world.serve("filled", Some(sandbox.addr), &[])?;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let (mut direct_p50, mut direct_p99) = (Vec::new(), Vec::new());
    let seconds = world.scale.seconds;
    for round in 0..=world.scale.rounds {
        let misses = run_callers(ours.addr, CALLERS, LATENCY, seconds, |caller, n| {
            let user_id = format!("miss-{round}-{caller}-{n}");
            let body = format!(r#"{{"userId":"{user_id}","country":"LT"}}"#);
            token_request(AUTHORIZATION, &body)
        });
        let misses = misses.await?;
        let direct = run_callers(sandbox.addr, CALLERS, LATENCY, seconds, |_, _| {
            token_request(SANDBOX_AUTHORIZATION, r#"{"country":"LT"}"#)
        });
        let direct = direct.await?;
        // The first round opens the connections and is not counted.
        if round > 0 {
            p50.push(percentile(&misses, 50));
            p99.push(percentile(&misses, 99));
            direct_p50.push(percentile(&direct, 50));
            direct_p99.push(percentile(&direct, 99));
        }
    }
    let measurement = format!(
        "miss, provider at {} ms, {CALLERS} callers",
        LATENCY.as_millis()
    );
    let rival = "provider called directly";
    section.compare(
        &format!("{measurement}, p50"),
        "ms",
        &p50,
        (rival, &direct_p50),
        Some(AtMost(1.03)),
    );
    section.compare(
        &format!("{measurement}, p99"),
        "ms",
        &p99,
        (rival, &direct_p99),
        None,
    );
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
        let request = token_request(
            AUTHORIZATION,
            &format!(r#"{{"userId":"{user}","country":"LT"}}"#),
        );
        ours.push(run_herd(&addrs, HERD, &request).await? * 1e3);
        theirs.push(run_herd(&[rival.addr], HERD, &request).await? * 1e3);
        let attempts = "SELECT coalesce(sum(attempts), 0) FROM mints WHERE user_id = $1";
        let attempts: i64 = sqlx::query_scalar(attempts)
            .bind(&user)
            .fetch_one(&mut db)
            .await?;
        let events = "SELECT count(*) FROM audit_events WHERE user_id = $1";
        let events: i64 = sqlx::query_scalar(events)
            .bind(&user)
            .fetch_one(&mut db)
            .await?;
        ensure!(
            events as usize == HERD,
            "{HERD} answers, but {events} events"
        );
        calls.push(attempts as f64);
    }
    let callers = format_number(HERD as f64);
    let measurement = format!("{callers} cold callers, {REPLICAS} replicas");
    section.add(
        &format!("{measurement}, provider calls"),
        "",
        &calls,
        Some(AtMost(1.0)),
    );
    section.compare(
        &format!("{measurement}, last answer"),
        "ms",
        &ours,
        ("moka's try_get_with in one process", &theirs),
        Some(AtMost(1.5)),
    );
    Ok(())
}
