//! The benchmark: measures the service and the programs that it is compared with, in one run on one machine.
//!
//! `make bench` runs all of it, `make bench ARGS="warm export"` some sections. It prints the results and writes them
//! to `target/bench`. `docs/performance.md` explains them.

#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read clocks and the environment"
)]

mod bearer;
mod callers;
mod fill;
mod huge_pages;
mod load;
mod overload;
mod process;
mod reading;
mod report;
mod rivals;
mod scale;
mod seal;
mod upkeep;
mod upstream;
mod warm;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use chrono::Utc;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use load::ProcessorTimes;
use report::Section;
use world::{Scale, World};

/// The sections, in the order of the run. `overload` is the last, because it adds many tokens and events.
const SECTIONS: [&str; 11] = [
    "warm", "miss", "herd", "scale", "audit", "export", "memory", "start", "cleanup", "seal",
    "overload",
];
/// The argument that serves until it is interrupted, for a profiler.
const HOLD: &str = "hold";

#[derive(Parser)]
struct Arguments {
    /// The sections to measure [default: all]. `hold` serves until it is interrupted, for a profiler.
    #[arg(value_parser = [&SECTIONS[..], &[HOLD]].concat())]
    sections: Vec<String>,
    /// Use 10 million tokens and 50 million events instead of one million each. Needs 70 GB.
    #[arg(long)]
    large: bool,
    /// Run Postgres without huge pages. Otherwise root reserves them.
    #[arg(long)]
    small_pages: bool,
    /// The number of rounds. Results are medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The duration of one measurement under load, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, rival, kind, addr, argument] = &*arguments
        && rival == "rival"
    {
        return rivals::run(kind, addr, argument).await;
    }
    let arguments = Arguments::parse();
    // The section `overload` holds 8,192 connections at each end. The started programs inherit the limit.
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A signal drops `run`, which stops all started programs.
    tokio::select! {
        result = run(arguments) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let (tokens, events) = match arguments.large {
        false => (1_000_000, 1_000_000),
        true => (10_000_000, 50_000_000),
    };
    let scale = Scale {
        tokens,
        events,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
    };
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    let world = World::start(&folder, scale, !arguments.small_pages).await?;
    eprintln!("inserting {tokens} tokens and {events} events");
    let began = Instant::now();
    world.create_database("filled").await?;
    fill::fill(&mut world.connect("filled").await?, tokens, events).await?;
    eprintln!("  took {:.0} s", began.elapsed().as_secs_f64());

    let is_given = |name: &str| arguments.sections.iter().any(|given| given == name);
    let is_selected = |name: &str| arguments.sections.is_empty() || is_given(name);
    for name in SECTIONS.into_iter().filter(|name| is_selected(name)) {
        measure(&world, name, &folder)
            .await
            .with_context(|| format!("measuring {name}"))?;
    }
    if is_given(HOLD) {
        warm::hold(&world).await?;
    }
    world.stop().await?;
    summarize(&folder)
}

/// Writes the table, the figures and the chart of all sections, including those of earlier runs.
fn summarize(folder: &Path) -> Result<()> {
    let sections = SECTIONS
        .iter()
        .filter_map(|name| Section::read(folder, name).ok());
    let sections: Vec<Section> = sections.collect();
    let lines = sections.iter().flat_map(|section| &section.lines);
    let stolen = sections.iter().filter_map(|section| {
        let stolen = section.stolen? * 1e2;
        Some(format!("{} {stolen:.0} %", section.name))
    });
    let stolen = stolen.collect::<Vec<_>>().join(", ");
    let mut text = report::table(lines);
    if !stolen.is_empty() {
        text += &format!("\nCPU time taken by other guests of the machine: {stolen}.\n");
    }
    fs::write(folder.join("speed.md"), text)?;
    let json = serde_json::to_string(&sections)? + "\n";
    fs::write(folder.join("speed.json"), json)?;
    if let Some(warm) = sections.iter().find(|section| section.name == "warm") {
        fs::write(folder.join("speed.svg"), report::chart(warm))?;
    }
    eprintln!(
        "wrote speed.md, speed.json and speed.svg to {}",
        folder.display()
    );
    Ok(())
}

async fn measure(world: &World, name: &str, folder: &Path) -> Result<()> {
    eprintln!("measuring {name}");
    let (began, times) = (Instant::now(), ProcessorTimes::now());
    let mut section = Section {
        name: name.into(),
        at: Utc::now().format("%Y-%m-%d %H:%M UTC").to_string(),
        seconds: 0.0,
        machine: machine(world),
        stolen: None,
        lines: Vec::new(),
    };
    match name {
        "warm" => warm::measure(world, &mut section).await?,
        "miss" => upstream::measure_miss(world, &mut section).await?,
        "herd" => upstream::measure_herd(world, &mut section).await?,
        "scale" => scale::measure(world, &mut section).await?,
        "audit" => reading::measure_pages(world, &mut section).await?,
        "export" => reading::measure_export(world, &mut section).await?,
        "memory" => upkeep::measure_memory(world, &mut section).await?,
        "start" => upkeep::measure_start(world, &mut section).await?,
        "cleanup" => upkeep::measure_cleanup(world, &mut section).await?,
        "seal" => seal::measure(world, &mut section).await?,
        "overload" => overload::measure(world, &mut section).await?,
        _ => unreachable!("not a section"),
    }
    section.seconds = began.elapsed().as_secs_f64();
    section.stolen = times.stolen();
    section.write(folder)?;
    println!("{}", report::table(&section.lines));
    if let Some(stolen) = section.stolen {
        println!(
            "Other guests of the machine took {:.0} % of the CPU time.\n",
            stolen * 1e2
        );
    }
    Ok(())
}

fn machine(world: &World) -> String {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let pages = if world.has_huge_pages {
        "huge pages"
    } else {
        "small pages"
    };
    let model = model.unwrap_or("an unknown CPU");
    format!("{cores} cores of {model}, Postgres in {pages}")
}
