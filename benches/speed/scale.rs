//! The same at three sizes of what is stored, or four, from ten thousand tokens on.

use anyhow::Result;

use crate::fill::{HOT, fill};
use crate::load::{Ask, drive, undisturbed};
use crate::report::Goal::AtLeast;
use crate::report::{Section, round};
use crate::warm::{serve_warm, write_requests};
use crate::world::{Scale, World};

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    let Scale {
        tokens,
        events,
        seconds,
        ..
    } = world.scale;
    let mut sizes = Vec::new();
    for share in [1_000, 100, 10, 1] {
        if tokens / share < HOT {
            continue;
        }
        let database = if share == 1 {
            "filled".into()
        } else {
            format!("one_in_{share}")
        };
        let (tokens, events) = (tokens / share, events / share);
        if share > 1 {
            world.create_database(&database).await?;
            fill(&mut world.connect(&database).await?, tokens, events).await?;
        }
        let requests = write_requests(world, tokens)?;
        let server = serve_warm(world, &database, &requests, &[]).await?;
        sizes.push((
            format!(
                "{} tokens, {} events",
                round(tokens as f64),
                round(events as f64)
            ),
            requests,
            server,
        ));
    }
    let mut rates = vec![Vec::new(); sizes.len()];
    let mut pages = vec![Vec::new(); sizes.len()];
    for round in world.scale.loaded_rounds() {
        for turn in 0..sizes.len() {
            let at = (turn + round) % sizes.len();
            let (_, requests, server) = &sizes[at];
            let load = undisturbed(async || {
                drive(world, &server.base(), 64, seconds, Ask::File(requests)).await
            });
            rates[at].push(load.await?.rate());
            let page = Ask::Get("/audit/events?client=client-1");
            let page = undisturbed(async || drive(world, &server.base(), 1, 1, page).await);
            pages[at].push(page.await?.p50_ms);
        }
    }
    let smallest = &sizes[0].0;
    for (at, (size, ..)) in sizes.iter().enumerate().skip(1) {
        let path = format!("warm handout, 64 connections, {size}");
        section.beside(
            &path,
            "/s",
            &rates[at],
            (smallest, &rates[0]),
            Some(AtLeast(0.9)),
        );
    }
    for (at, (size, ..)) in sizes.iter().enumerate().skip(1) {
        let path = format!("a page of the audit, {size}");
        section.beside(&path, "ms", &pages[at], (smallest, &pages[0]), None);
    }
    Ok(())
}
