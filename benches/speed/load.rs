//! Generates load with wrk, pgbench and connections of its own.

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

/// The requests that wrk sends.
#[derive(Clone, Copy)]
pub enum Requests<'a> {
    /// POST requests with the lines of a file as bodies, in turn.
    PostLines(&'a Path),
    /// GET requests of a path.
    Get(&'a str),
}

/// The result of a wrk run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Load {
    pub requests: u64,
    seconds: f64,
    failed: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Load {
    /// Returns the requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// The CPU time of all cores that was requested since boot, and the part that other guests took, from `/proc/stat`.
pub struct ProcessorTimes(Option<(u64, u64)>);

impl ProcessorTimes {
    pub fn now() -> Self {
        let read = || {
            let stat = fs::read_to_string("/proc/stat").ok()?;
            let times = stat.lines().next()?.split_whitespace().skip(1);
            let times: Vec<u64> = times.filter_map(|time| time.parse().ok()).collect();
            // The other fields are idle time, or are already part of these.
            let [user, nice, system, _, _, irq, softirq, steal, ..] = times[..] else {
                return None;
            };
            Some((user + nice + system + irq + softirq + steal, steal))
        };
        ProcessorTimes(read())
    }

    /// Returns the share of the CPU time since then that other guests took.
    pub fn stolen(&self) -> Option<f64> {
        let (before, after) = (self.0?, ProcessorTimes::now().0?);
        Some((after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64)
    }
}

/// Measures up to three times, until other guests take less than 4 % of the CPU time. Returns the least disturbed
/// result.
pub async fn least_disturbed<T>(measure: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut best = None;
    for _ in 0..3 {
        let times = ProcessorTimes::now();
        let result = measure().await?;
        let stolen = times.stolen().unwrap_or(0.0);
        if best.as_ref().is_none_or(|(lowest, _)| stolen < *lowest) {
            best = Some((stolen, result));
        }
        if stolen < 0.04 {
            break;
        }
    }
    Ok(best.context("nothing was measured")?.1)
}

/// Loads a server with wrk, with the credentials of [`AUTHORIZATION`].
///
/// # Errors
/// Fails if a request fails.
pub async fn run_wrk(
    world: &World,
    base_url: &str,
    connections: u32,
    seconds: u32,
    requests: Requests<'_>,
) -> Result<Load> {
    run_wrk_as(
        AUTHORIZATION,
        world,
        base_url,
        connections,
        seconds,
        requests,
    )
    .await
}

/// Loads a server with wrk, with this `Authorization` header.
pub async fn run_wrk_as(
    authorization: &str,
    world: &World,
    base_url: &str,
    connections: u32,
    seconds: u32,
    requests: Requests<'_>,
) -> Result<Load> {
    let script = world.folder.join("handouts.lua");
    fs::write(&script, include_str!("handouts.lua"))?;
    // wrk uses at most half of the cores.
    let cores = std::thread::available_parallelism()?.get() as u32;
    let threads = (cores / 2).clamp(1, connections);
    let (method, target) = match requests {
        Requests::PostLines(path) => ("post", path.display().to_string()),
        Requests::Get(path) => ("get", path.to_owned()),
    };
    let mut wrk = command(Path::new("wrk"), None);
    wrk.arg(format!("-t{threads}"))
        .arg(format!("-c{connections}"));
    wrk.arg(format!("-d{seconds}s"))
        .args(["--timeout=20s", "-s"])
        .arg(script);
    wrk.arg(format!("{base_url}/bank/tokens/"))
        .args(["--", method, &target, authorization]);
    let stdout = run_to_end(wrk).await.context("wrk")?;
    let line = stdout.lines().last().unwrap_or_default();
    let load: Load = serde_json::from_str(line).with_context(|| stdout.clone())?;
    ensure!(
        load.failed == 0 && load.requests > 0,
        "requests failed: {load:?}"
    );
    Ok(load)
}

/// Repeats a script on one connection with prepared statements. Returns the median time in milliseconds.
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
    run_to_end(pgbench).await.context("pgbench")?;
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

/// Runs a program and returns its standard output. Dropping the future kills the program.
pub async fn run_to_end(command: Command) -> Result<String> {
    let mut command = tokio::process::Command::from(command);
    let output = command
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .output()
        .await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {stderr}", command.as_std());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the text of a request for a token.
pub fn token_request(authorization: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /bank/tokens/ HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Sends requests from several callers at the same time, each one after the other. Returns the milliseconds of every
/// answer.
///
/// The first requests are spread over `stagger`, so that the callers do not send in step.
pub async fn run_callers(
    server: SocketAddr,
    callers: u32,
    stagger: Duration,
    seconds: u32,
    request: impl Fn(u32, usize) -> String,
) -> Result<Vec<f64>> {
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    let request = &request;
    let callers = (0..callers).map(|caller| async move {
        let mut connection = Connection::open(server).await?;
        sleep(stagger * caller / callers).await;
        let mut times = Vec::new();
        while Instant::now() < deadline {
            let request = request(caller, times.len());
            let began = Instant::now();
            connection.send(&request).await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::Ok(times)
    });
    Ok(try_join_all(callers).await?.concat())
}

/// Sends one token request per body, over 64 connections.
pub async fn send_all(server: SocketAddr, bodies: &[&str]) -> Result<()> {
    let callers = bodies
        .chunks(bodies.len().div_ceil(64))
        .map(|bodies| async move {
            let mut connection = Connection::open(server).await?;
            for body in bodies {
                connection.send(&token_request(AUTHORIZATION, body)).await?;
            }
            anyhow::Ok(())
        });
    try_join_all(callers).await?;
    Ok(())
}

/// Sends one request from every caller at the same time. Returns the seconds until the last answer.
///
/// The callers are spread over the servers and connect before.
pub async fn run_herd(servers: &[SocketAddr], callers: usize, request: &str) -> Result<f64> {
    let mut connections = Vec::with_capacity(callers);
    for caller in 0..callers {
        connections.push(Connection::open(servers[caller % servers.len()]).await?);
    }
    // The servers need a moment to accept all connections.
    sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    let answers = connections
        .iter_mut()
        .map(|connection| connection.send(request));
    try_join_all(answers).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// A keep-alive connection with one request at a time.
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

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// Fails if the status is not 200…209.
    pub async fn send(&mut self, request: &str) -> Result<()> {
        let Answer { status, .. } = self.exchange(request).await?;
        let text = || String::from_utf8_lossy(&self.answer).into_owned();
        ensure!((200..210).contains(&status), text());
        Ok(())
    }

    /// Sends a request and reads the answer, whatever its status.
    pub async fn exchange(&mut self, request: &str) -> Result<Answer> {
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "the server closed the connection");
            let text = std::str::from_utf8(&self.answer)?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                lines.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
            };
            let length = header("content-length").context("no Content-Length")?;
            if body.len() >= length.parse::<usize>()? {
                let status = head.split(' ').nth(1).context("no status")?;
                return Ok(Answer {
                    status: status.parse()?,
                    retry_after: header("retry-after").map(str::parse).transpose()?,
                    closes: header("connection").is_some_and(|value| value == "close"),
                });
            }
        }
    }
}

/// The head of an answer.
pub struct Answer {
    pub status: u16,
    /// The seconds of `Retry-After`.
    pub retry_after: Option<u32>,
    /// True if the server closes the connection after this answer.
    pub closes: bool,
}
