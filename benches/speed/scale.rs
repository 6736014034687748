//! The same at three sizes of what is stored, or four, from ten thousand tokens on.

use anyhow::Result;

use crate::fill::{HOT, fill};
use crate::load::{Ask, drive, undisturbed};
use crate::reading::{count_events, export};
use crate::report::Goal::{self, AtLeast};
use crate::report::{Section, round};
use crate::upkeep::{clean, expire};
use crate::warm::{serve_warm, write_requests};
use crate::world::{Scale, World};

/// Tokens that a cleanup clears away, of few and of many.
const ENDED: u64 = HOT / 2;

struct Size {
    database: String,
    tokens: u64,
    events: u64,
}

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    let mut sizes = Vec::new();
    for share in [1_000, 100, 10, 1] {
        let size = Size {
            database: match share {
                1 => "filled".into(),
                _ => format!("one_in_{share}"),
            },
            tokens: world.scale.tokens / share,
            events: world.scale.events / share,
        };
        if size.tokens < HOT {
            continue;
        }
        if share > 1 {
            world.create_database(&size.database).await?;
            let mut db = world.connect(&size.database).await?;
            fill(&mut db, size.tokens, size.events).await?;
        }
        sizes.push(size);
    }
    // In this order: handouts add events, and what is cleared away is handed out no more.
    measure_exports(world, section, &sizes).await?;
    measure_handouts_and_pages(world, section, &sizes).await?;
    measure_cleanups(world, section, &sizes).await
}

async fn measure_exports(world: &World, section: &mut Section, sizes: &[Size]) -> Result<()> {
    let mut servers = Vec::new();
    for size in sizes {
        let events = count_events(&mut world.connect(&size.database).await?).await? as f64;
        let server = world.serve(&size.database, None, &[])?;
        servers.push((server, events, format!("{} events", round(events))));
    }
    let mut rates = vec![Vec::new(); sizes.len()];
    for _ in 0..world.scale.rounds {
        for (at, (server, events, _)) in servers.iter().enumerate() {
            // As often as it takes: of few events it is over in an instant.
            let (mut exported, mut took) = (0.0, 0.0);
            while took < world.scale.seconds.into() {
                took += export(server).await?.0;
                exported += events;
            }
            rates[at].push(exported / took);
        }
    }
    let names: Vec<_> = servers.into_iter().map(|(.., name)| name).collect();
    beside_smallest(section, "export as NDJSON", "/s", &names, &rates, None);
    Ok(())
}

async fn measure_handouts_and_pages(
    world: &World,
    section: &mut Section,
    sizes: &[Size],
) -> Result<()> {
    let Scale { seconds, .. } = world.scale;
    let (mut names, mut servers) = (Vec::new(), Vec::new());
    for size in sizes {
        let requests = write_requests(world, size.tokens)?;
        let server = serve_warm(world, &size.database, &requests, &[]).await?;
        let (tokens, events) = (round(size.tokens as f64), round(size.events as f64));
        names.push(format!("{tokens} tokens, {events} events"));
        servers.push((requests, server));
    }
    let mut rates = vec![Vec::new(); sizes.len()];
    let mut pages = rates.clone();
    for round in world.scale.loaded_rounds() {
        for turn in 0..sizes.len() {
            let at = (turn + round) % sizes.len();
            let (requests, server) = &servers[at];
            let load = undisturbed(async || {
                drive(world, &server.base(), 64, seconds, Ask::File(requests)).await
            });
            rates[at].push(load.await?.rate());
            let page = Ask::Get("/audit/events?client=client-1");
            let page = undisturbed(async || drive(world, &server.base(), 1, 1, page).await);
            pages[at].push(page.await?.p50_ms);
        }
    }
    let warm = "warm handout, 64 connections";
    beside_smallest(section, warm, "/s", &names, &rates, Some(AtLeast(0.9)));
    beside_smallest(section, "a page of the audit", "ms", &names, &pages, None);
    Ok(())
}

async fn measure_cleanups(world: &World, section: &mut Section, sizes: &[Size]) -> Result<()> {
    let mut rates = vec![Vec::new(); sizes.len()];
    for _ in 0..world.scale.rounds {
        for (at, size) in sizes.iter().enumerate() {
            expire(world, &size.database, ENDED).await?;
            let (tokens, seconds) = clean(world, &size.database, "10m").await?;
            rates[at].push(tokens as f64 / seconds);
        }
    }
    let name = |size: &Size| format!("{ENDED} expired of {}", round(size.tokens as f64));
    let names: Vec<_> = sizes.iter().map(name).collect();
    beside_smallest(section, "cleanup", "tokens/s", &names, &rates, None);
    Ok(())
}

/// A line for each size but the smallest, which stands beside it.
fn beside_smallest(
    section: &mut Section,
    path: &str,
    unit: &str,
    names: &[String],
    figures: &[Vec<f64>],
    goal: Option<Goal>,
) {
    for (name, figures_of_it) in names.iter().zip(figures).skip(1) {
        let path = format!("{path}, {name}");
        section.beside(&path, unit, figures_of_it, (&names[0], &figures[0]), goal);
    }
}
