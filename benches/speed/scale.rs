//! Comparison of three or four database sizes, from ten thousand tokens upwards.

use anyhow::Result;

use crate::fill::{HOT_USERS, fill};
use crate::load::{Requests, least_disturbed, run_wrk};
use crate::reading::{count_events, export};
use crate::report::Goal::{self, AtLeast};
use crate::report::{Section, format_number};
use crate::upkeep::{clean, expire, expired_of};
use crate::warm::{serve_warm, write_requests};
use crate::world::{Scale, World};

/// The number of expired tokens for a cleanup, the same for every size.
const EXPIRED: u64 = HOT_USERS / 2;

struct Size {
    database: String,
    tokens: u64,
    events: u64,
}

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    let mut sizes = Vec::new();
    for divisor in [1_000, 100, 10, 1] {
        let size = Size {
            database: match divisor {
                1 => "filled".into(),
                _ => format!("one_in_{divisor}"),
            },
            tokens: world.scale.tokens / divisor,
            events: world.scale.events / divisor,
        };
        if size.tokens < HOT_USERS {
            continue;
        }
        if divisor > 1 {
            world.create_database(&size.database).await?;
            let mut db = world.connect(&size.database).await?;
            fill(&mut db, size.tokens, size.events).await?;
        }
        sizes.push(size);
    }
    // The order matters: handouts add events, and the cleanup removes tokens.
    measure_exports(world, section, &sizes).await?;
    measure_handouts_and_pages(world, section, &sizes).await?;
    measure_cleanups(world, section, &sizes).await
}

async fn measure_exports(world: &World, section: &mut Section, sizes: &[Size]) -> Result<()> {
    let mut servers = Vec::new();
    for size in sizes {
        let events = count_events(&mut world.connect(&size.database).await?).await? as f64;
        let server = world.serve(&size.database, None, &[])?;
        let name = format!("{} events", format_number(events));
        servers.push((server, events, name));
    }
    let mut rates = vec![Vec::new(); sizes.len()];
    for _ in 0..world.scale.rounds {
        for (at, (server, events, _)) in servers.iter().enumerate() {
            // Repeated, because an export of few events takes only milliseconds.
            let (mut exported, mut seconds) = (0.0, 0.0);
            while seconds < world.scale.seconds.into() {
                seconds += export(server).await?.0;
                exported += events;
            }
            rates[at].push(exported / seconds);
        }
    }
    let names: Vec<_> = servers.into_iter().map(|(.., name)| name).collect();
    compare_to_smallest(section, "export as NDJSON", "/s", &names, &rates, None);
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
        let tokens = format_number(size.tokens as f64);
        names.push(if size.tokens == size.events {
            format!("{tokens} tokens and events")
        } else {
            format!(
                "{tokens} tokens, {} events",
                format_number(size.events as f64)
            )
        });
        servers.push((requests, server));
    }
    let mut rates = vec![Vec::new(); sizes.len()];
    let mut pages = rates.clone();
    for round in world.scale.loaded_rounds() {
        for turn in 0..sizes.len() {
            let at = (turn + round) % sizes.len();
            let (requests, server) = &servers[at];
            let load = least_disturbed(async || {
                run_wrk(
                    world,
                    &server.base_url(),
                    64,
                    seconds,
                    Requests::PostLines(requests),
                )
                .await
            });
            rates[at].push(load.await?.rate());
            let page = Requests::Get("/audit/events?client=client-1");
            let page =
                least_disturbed(async || run_wrk(world, &server.base_url(), 1, 1, page).await);
            pages[at].push(page.await?.p50_ms);
        }
    }
    let goal = Some(AtLeast(0.9));
    compare_to_smallest(section, "warm handout", "/s", &names, &rates, goal);
    compare_to_smallest(section, "audit page by client", "ms", &names, &pages, None);
    Ok(())
}

async fn measure_cleanups(world: &World, section: &mut Section, sizes: &[Size]) -> Result<()> {
    let mut rates = vec![Vec::new(); sizes.len()];
    for _ in 0..world.scale.rounds {
        for (at, size) in sizes.iter().enumerate() {
            expire(world, &size.database, EXPIRED).await?;
            let (tokens, seconds) = clean(world, &size.database, "10m").await?;
            rates[at].push(tokens as f64 / seconds);
        }
    }
    let name = |size: &Size| expired_of(EXPIRED, size.tokens);
    let names: Vec<_> = sizes.iter().map(name).collect();
    compare_to_smallest(section, "cleanup", "tokens/s", &names, &rates, None);
    Ok(())
}

/// Adds a line for each size except the smallest, which is the rival.
fn compare_to_smallest(
    section: &mut Section,
    measurement: &str,
    unit: &str,
    names: &[String],
    figures: &[Vec<f64>],
    goal: Option<Goal>,
) {
    for (name, figures_of_size) in names.iter().zip(figures).skip(1) {
        let measurement = format!("{measurement}, {name}");
        let smallest = (&*names[0], &*figures[0]);
        section.compare(&measurement, unit, figures_of_size, smallest, goal);
    }
}
