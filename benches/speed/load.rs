//! The load: wrk, pgbench, and herds.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::process::command;
use crate::report::median;
use crate::world::{AUTHORIZATION, World};

/// What wrk asks for.
#[derive(Clone, Copy)]
pub enum Ask<'a> {
    /// The bodies of a file, in turn.
    File(&'a Path),
    /// A path.
    Get(&'a str),
}

/// What came of it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Load {
    requests: u64,
    seconds: f64,
    failed: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Load {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// What all processors were wanted for since the start, and what of it other guests of the machine
/// got; Linux tells.
pub struct ProcessorTimes(Option<(u64, u64)>);

impl ProcessorTimes {
    pub fn now() -> Self {
        let read = || {
            let stat = fs::read_to_string("/proc/stat").ok()?;
            let times = stat.lines().next()?.split_whitespace().skip(1);
            let times: Vec<u64> = times.filter_map(|time| time.parse().ok()).collect();
            // The rest is idle or counted twice.
            let [user, nice, system, _, _, irq, softirq, steal, ..] = times[..] else {
                return None;
            };
            Some((user + nice + system + irq + softirq + steal, steal))
        };
        ProcessorTimes(read())
    }

    /// The share that other guests got since.
    pub fn stolen(&self) -> Option<f64> {
        let (before, after) = (self.0?, ProcessorTimes::now().0?);
        Some((after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64)
    }
}

/// A measurement; where other guests of the machine got much of it, the best of three.
pub async fn undisturbed<T>(measure: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut best = None;
    for _ in 0..3 {
        let times = ProcessorTimes::now();
        let measured = measure().await?;
        let stolen = times.stolen().unwrap_or(0.0);
        if best.as_ref().is_none_or(|(least, _)| stolen < *least) {
            best = Some((stolen, measured));
        }
        if stolen < 0.04 {
            break;
        }
    }
    Ok(best.context("never measured")?.1)
}

/// Drives a server over that many connections for so long, and insists that nothing fails.
pub async fn drive(
    world: &World,
    base: &str,
    connections: u32,
    seconds: u32,
    ask: Ask<'_>,
) -> Result<Load> {
    let script = world.folder.join("handouts.lua");
    fs::write(&script, include_str!("handouts.lua"))?;
    // The load has no more than half of the machine to itself.
    let cores = std::thread::available_parallelism()?.get() as u32;
    let threads = (cores / 2).clamp(1, connections);
    let (kind, what) = match ask {
        Ask::File(path) => ("file", path.display().to_string()),
        Ask::Get(path) => ("get", path.to_owned()),
    };
    let mut wrk = command(Path::new("wrk"), None);
    wrk.arg(format!("-t{threads}"))
        .arg(format!("-c{connections}"));
    wrk.arg(format!("-d{seconds}s"))
        .args(["--timeout=20s", "-s"])
        .arg(script);
    wrk.arg(format!("{base}/bank/tokens/"))
        .args(["--", kind, &what, AUTHORIZATION]);
    let said = output(wrk).await.context("wrk")?;
    let line = said.lines().last().unwrap_or_default();
    let load: Load = serde_json::from_str(line).with_context(|| said.clone())?;
    ensure!(
        load.failed == 0 && load.requests > 0,
        "requests failed: {load:?}"
    );
    Ok(load)
}

/// The median milliseconds of a script that one connection repeats, each statement prepared.
pub async fn pgbench(
    world: &World,
    database: &str,
    sql: &str,
    values: &[(&str, String)],
    seconds: u32,
) -> Result<f64> {
    let script = world.folder.join("pgbench.sql");
    fs::write(&script, sql)?;
    let log = world.folder.join("log/pgbench");
    let mut pgbench = world.postgres_tool("pgbench", database);
    pgbench
        .args(["-n", "-M", "prepared", "-c", "1", "-l"])
        .arg(format!("-T{seconds}"));
    pgbench.arg("--log-prefix").arg(&log).arg("-f").arg(script);
    for (name, value) in values {
        pgbench.arg("-D").arg(format!("{name}={value}"));
    }
    output(pgbench).await.context("pgbench")?;
    let mut times = Vec::new();
    for entry in fs::read_dir(world.folder.join("log"))? {
        let path = entry?.path();
        if !path
            .display()
            .to_string()
            .starts_with(&format!("{}.", log.display()))
        {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let micros = text
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
        times.extend(micros.map(|micros| micros / 1e3));
        fs::remove_file(path)?;
    }
    Ok(median(&times))
}

/// Runs a program to its end, and ends it when nobody waits any more; its standard output.
pub async fn output(command: Command) -> Result<String> {
    let mut command = tokio::process::Command::from(command);
    let output = command
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {said}", command.as_std());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The bytes of a request for a token.
pub fn request(authorization: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /bank/tokens/ HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// The milliseconds that each answer took so many callers, who keep asking for so long. They begin
/// one after the other, spread over `apart`, so that they do not ask in step.
pub async fn callers(
    server: SocketAddr,
    callers: u32,
    apart: Duration,
    seconds: u32,
    request: impl Fn(u32, usize) -> String,
) -> Result<Vec<f64>> {
    let ends = Instant::now() + Duration::from_secs(seconds.into());
    let request = &request;
    let callers = (0..callers).map(|caller| async move {
        let mut connection = Connection::open(server).await?;
        sleep(apart * caller / callers).await;
        let mut times = Vec::new();
        while Instant::now() < ends {
            let request = request(caller, times.len());
            let began = Instant::now();
            connection.ask(&request).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::Ok(times)
    });
    Ok(try_join_all(callers).await?.concat())
}

/// Asks for each of them once, over 64 connections.
pub async fn ask_all(server: SocketAddr, bodies: &[&str]) -> Result<()> {
    let callers = bodies
        .chunks(bodies.len().div_ceil(64))
        .map(|bodies| async move {
            let mut connection = Connection::open(server).await?;
            for body in bodies {
                connection.ask(&request(AUTHORIZATION, body)).await?;
            }
            anyhow::Ok(())
        });
    try_join_all(callers).await?;
    Ok(())
}

/// Connects so many callers, spread over the servers, has all of them ask at once, and returns the
/// seconds until the last has its answer.
pub async fn herd(servers: &[SocketAddr], callers: usize, request: &str) -> Result<f64> {
    let mut connections = Vec::with_capacity(callers);
    for caller in 0..callers {
        connections.push(Connection::open(servers[caller % servers.len()]).await?);
    }
    // What was just accepted is settled.
    sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    let answers = connections
        .iter_mut()
        .map(|connection| connection.ask(request));
    try_join_all(answers).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// A caller that asks one thing after the other.
pub struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub async fn open(addr: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            answer: Vec::with_capacity(2048),
        })
    }

    /// Asks, and insists on an answer that is a success.
    pub async fn ask(&mut self, request: &str) -> Result<()> {
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "a connection was closed");
            let text = std::str::from_utf8(&self.answer)?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let head = head.to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 20"), "{text}");
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.lines().next());
            if body.len() >= length.context("no length")?.parse::<usize>()? {
                return Ok(());
            }
        }
    }
}
