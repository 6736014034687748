//! Overload: the goodput of cold and warm requests under more load than the service can carry, and the goodput of
//! warm requests beside other load.
//!
//! A cold request is for a new user, so it mints a token. A warm request is a cache hit. Some loads are repeated with
//! a slow database, where the cores are idle and the connections are the limit.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, slice, thread};

use anyhow::Result;

use crate::callers::{Callers, measure_goodput, recover};
use crate::report::Goal::{AtLeast, AtMost};
use crate::report::{Section, format_number};
use crate::warm::{serve_warm, write_requests};
use crate::world::World;

/// The loads, as multiples of the callers that saturate the service.
const MULTIPLES: [u32; 5] = [1, 4, 16, 64, 128];
/// The callers that saturate the service with cold requests.
const COLD: u32 = 16;
/// The callers that saturate the service with warm requests.
const WARM: u32 = 64;

/// The warm callers beside other load, and the number of their combinations.
const FEW_WARM: u32 = 32;
/// The cold callers beside warm ones.
const MANY_COLD: u32 = 2_000;
/// The callers with unknown API keys beside warm ones.
const UNKNOWN_KEYS: [u32; 2] = [64, 256];

/// The delay of each answer of the slow database.
const DELAY: Duration = Duration::from_millis(20);
/// `DATABASE_MAX_CONNECTIONS` with the slow database.
const FEW_CONNECTIONS: &str = "5";
/// The callers that saturate the service with cold requests, if the database is slow.
const COLD_IF_SLOW: u32 = 4;
const MULTIPLES_IF_SLOW: [u32; 2] = [1, 128];

/// The name of the highest goodput of a round.
const HIGHEST: &str = "highest of all loads";

/// The time for which mints run before the first measurement.
const SETTLE: Duration = Duration::from_secs(20);

/// The latency of a cold request on a service that has recovered.
const NORMAL_LATENCY: Duration = Duration::from_millis(100);
/// The same with a slow database, for the 8 or so answers that a mint waits for.
const NORMAL_LATENCY_IF_SLOW: Duration = Duration::from_millis(500);

/// A load on a server and its results.
struct Load {
    server: SocketAddr,
    groups: Vec<Callers>,
    /// The goodput of each group in each round.
    rounds: Vec<Vec<f64>>,
}

impl Load {
    fn new(server: SocketAddr, groups: &[Callers]) -> Load {
        Load {
            server,
            groups: groups.to_vec(),
            rounds: Vec::new(),
        }
    }

    /// Measures the load once. Returns the seconds until the service has recovered from it.
    async fn measure(&mut self, duration: Duration, normal_latency: Duration) -> Result<f64> {
        let goodput = measure_goodput(self.server, &self.groups, duration).await?;
        self.rounds.push(goodput);
        Ok(recover(self.server, normal_latency).await)
    }

    fn goodput(&self, group: usize) -> Vec<f64> {
        self.rounds.iter().map(|goodput| goodput[group]).collect()
    }
}

/// Starts a proxy in front of a Postgres socket that delays each answer. Returns its port.
///
/// Runs on threads of its own, so that the load does not delay it.
fn start_slow_proxy(socket: PathBuf) -> io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let forward = move |service: TcpStream| {
        service.set_nodelay(true)?;
        let postgres = UnixStream::connect(&socket)?;
        let (mut requests, mut answers) = (service.try_clone()?, postgres.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut requests, &mut &postgres);
            let _ = postgres.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = answers.read(&mut buffer) {
                thread::sleep(DELAY);
                if (&service).write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = service.shutdown(Shutdown::Both);
        });
        io::Result::Ok(())
    };
    thread::spawn(move || {
        for service in listener.incoming().flatten() {
            // A connection that fails is closed. The service opens another one.
            let _ = forward(service);
        }
    });
    Ok(port)
}

pub async fn measure(world: &World, section: &mut Section) -> Result<()> {
    let sandbox = world.sandbox(Duration::ZERO)?;
    let requests = write_requests(world, world.scale.tokens)?;
    let provider = sandbox.base_url();
    // The tokens of new users must not evict the warm ones.
    let variables = [
        ("UPSTREAM_BASE_URL", &*provider),
        ("CACHE_MAX_TOKENS", "1000000"),
    ];
    let server = serve_warm(world, "filled", &requests, &variables).await?;
    let port = start_slow_proxy(world.socket())?;
    let url = format!("postgres://postgres@127.0.0.1:{port}/filled?sslmode=disable");
    let variables = [
        ("DATABASE_URL", &*url),
        ("DATABASE_MAX_CONNECTIONS", FEW_CONNECTIONS),
    ];
    let slow_server = world.serve("filled", Some(sandbox.addr), &variables)?;
    let bodies = fs::read_to_string(requests)?;
    let bodies: Arc<[String]> = bodies.lines().map(String::from).collect();
    let few_warm = Callers::warm(FEW_WARM, &bodies[..FEW_WARM as usize].into());

    let fast = |groups: &[Callers]| Load::new(server.addr, groups);
    let slow = |groups: &[Callers]| Load::new(slow_server.addr, groups);
    let with_warm = |others: Callers| [few_warm.clone(), others];
    let mut cold = MULTIPLES.map(|multiple| fast(&[Callers::cold(multiple * COLD)]));
    let mut impatient = fast(&[cold[cold.len() - 1].groups[0].clone().without_patience()]);
    let mut warm = MULTIPLES.map(|multiple| fast(&[Callers::warm(multiple * WARM, &bodies)]));
    let mut alone = fast(slice::from_ref(&few_warm));
    let mut beside_cold = fast(&with_warm(Callers::cold(MANY_COLD)));
    let mut beside_unknown =
        UNKNOWN_KEYS.map(|count| fast(&with_warm(Callers::with_unknown_keys(count))));
    let mut slow_cold =
        MULTIPLES_IF_SLOW.map(|multiple| slow(&[Callers::cold(multiple * COLD_IF_SLOW)]));
    let mut slow_alone = slow(slice::from_ref(&few_warm));
    let mut slow_beside_cold = slow(&with_warm(slow_cold[1].groups[0].clone()));
    let mut slow_beside_unknown = slow(&with_warm(Callers::with_unknown_keys(UNKNOWN_KEYS[1])));

    // Mints are slower for some seconds after the checkpoint of the fill, whatever the load.
    fast(&[Callers::cold(COLD)])
        .measure(SETTLE, NORMAL_LATENCY)
        .await?;
    let duration = Duration::from_secs(world.scale.seconds.into());
    let mut recoveries = Vec::new();
    // Two rounds of five keep the section below four minutes.
    for _ in 0..world.scale.rounds.div_ceil(3) {
        let mut recovery = 0_f64;
        let loads = cold.iter_mut().chain([&mut impatient]).chain(&mut warm);
        let loads = loads
            .chain([&mut alone, &mut beside_cold])
            .chain(&mut beside_unknown);
        for load in loads {
            recovery = recovery.max(load.measure(duration, NORMAL_LATENCY).await?);
        }
        recoveries.push(recovery);
        for load in &mut slow_cold {
            // Longer, because few requests succeed.
            load.measure(2 * duration, NORMAL_LATENCY_IF_SLOW).await?;
        }
        for load in [
            &mut slow_alone,
            &mut slow_beside_cold,
            &mut slow_beside_unknown,
        ] {
            load.measure(duration, NORMAL_LATENCY_IF_SLOW).await?;
        }
    }

    let cold_peaks = add_sweep(section, "cold requests", &cold);
    section.compare(
        "the same, callers ignore `Retry-After`",
        "/s",
        &impatient.goodput(0),
        (HIGHEST, &cold_peaks),
        None,
    );
    add_sweep(section, "warm requests", &warm);
    let many = format_number(MANY_COLD.into());
    let measurement = format!("{FEW_WARM} warm callers beside {many} cold ones");
    add_beside(section, &measurement, (&beside_cold, &alone), 0.5);
    section.compare(
        "the same, the cold ones",
        "/s",
        &beside_cold.goodput(1),
        (HIGHEST, &cold_peaks),
        None,
    );
    for (load, count) in beside_unknown.iter().zip(UNKNOWN_KEYS) {
        let measurement = format!("{FEW_WARM} warm callers beside {count} with unknown API keys");
        add_beside(section, &measurement, (load, &alone), 0.5);
    }
    add_sweep(section, "slow database, cold requests", &slow_cold);
    for (load, others) in [
        (&slow_beside_cold, "cold ones"),
        (&slow_beside_unknown, "with unknown API keys"),
    ] {
        let count = load.groups[1].count;
        let measurement = format!("slow database, {FEW_WARM} warm callers beside {count} {others}");
        add_beside(section, &measurement, (load, &slow_alone), 0.7);
    }
    section.add(
        "end of a load until cold requests take less than 100 ms, longest",
        "s",
        &recoveries,
        Some(AtMost(10.0)),
    );
    Ok(())
}

/// Adds a line for each load, compared with the highest goodput of the round. Returns the highest goodputs.
fn add_sweep(section: &mut Section, measurement: &str, loads: &[Load]) -> Vec<f64> {
    let mut peaks = vec![0.0; loads[0].rounds.len()];
    for load in loads {
        for (peak, goodput) in peaks.iter_mut().zip(load.goodput(0)) {
            *peak = goodput.max(*peak);
        }
    }
    for (at, load) in loads.iter().enumerate() {
        let callers = format_number(load.groups[0].count.into());
        let goal = (at + 1 == loads.len()).then_some(AtLeast(0.8));
        section.compare(
            &format!("{measurement}, {callers} callers, goodput"),
            "/s",
            &load.goodput(0),
            (HIGHEST, &peaks),
            goal,
        );
    }
    peaks
}

/// Adds the goodput of the first group of a load, compared with its goodput alone.
fn add_beside(section: &mut Section, measurement: &str, loads: (&Load, &Load), goal: f64) {
    let (beside, alone) = loads;
    section.compare(
        &format!("{measurement}, goodput"),
        "/s",
        &beside.goodput(0),
        ("alone", &alone.goodput(0)),
        Some(AtLeast(goal)),
    );
}
