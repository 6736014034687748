//! Attacks on real replicas. A checker compares three independent records afterwards.
//!
//! | Module | Content |
//! | --- | --- |
//! | `ledger` | the provider's stand-in, which records every call and every minted token |
//! | `clients` | clients under load, which record what they receive |
//! | `checker` | compares ledger, clients and database, and names the promise of each violation |
//! | `report` | writes the table of docs/reliability.md |
//! | `kill_replicas`, … | one attack each: a short form for `make test`, a long form for `make chaos` |

mod change_clocks;
mod checker;
mod clients;
mod fail_over;
mod fill_disk;
mod freeze_replicas;
mod hostile_answers;
mod kill_cleaners;
mod kill_postgres;
mod kill_replicas;
mod ledger;
mod mix_releases;
mod pass_month_ends;
mod promote_standby;
mod report;
mod rolling_restarts;
mod stop_backends;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use nix::sys::signal::Signal;
use token_vendor::db::cleanup::abandon_mints;
use tokio::time::{sleep, timeout};

use crate::support::{Process, World, eventually, run};
use checker::{Findings, Promise, Rules};
use clients::{Clients, Load, Targets};
use ledger::Ledger;

/// The length of a short attack, in `make test`.
pub const SHORT: Duration = Duration::from_secs(5);
/// The length of a long attack, in `make chaos`.
pub const LONG: Duration = Duration::from_secs(60);

/// A running attack: a database, the provider's stand-in, and clients of any number of replicas.
pub struct Attack {
    /// The name in the table of docs/reliability.md.
    pub name: &'static str,
    pub world: World,
    pub ledger: Ledger,
    /// The replicas that the clients call. An attack changes them at any time.
    pub targets: Targets,
    pub rng: Rng,
    pub rules: Rules,
    /// The findings of the attack's own checks.
    pub findings: Findings,
    duration: Duration,
    ends: Instant,
}

impl Attack {
    /// Prepares an attack on a new database of the shared server.
    pub async fn new(name: &'static str, duration: Duration) -> Attack {
        Attack::on(name, duration, World::new().await).await
    }

    /// Prepares an attack on this world. Prints the seed of its random numbers.
    pub async fn on(name: &'static str, duration: Duration, mut world: World) -> Attack {
        // The checker asserts the invariants of the database.
        world.is_checked = false;
        let seed = match std::env::var("ATTACK_SEED") {
            Ok(seed) => seed.parse().expect("ATTACK_SEED is a number"),
            Err(_) => fastrand::u64(..),
        };
        eprintln!("{name}: ATTACK_SEED={seed}");
        Attack {
            name,
            world,
            ledger: Ledger::start().await,
            targets: Arc::default(),
            rng: Rng::with_seed(seed),
            rules: Rules::default(),
            findings: Findings::default(),
            duration,
            ends: Instant::now() + duration,
        }
    }

    /// Returns the environment variables of a replica. `more` adds and replaces variables.
    pub fn variables(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let base_url = self.ledger.base_url();
        let common = [
            ("UPSTREAM_BASE_URL", &*base_url),
            ("UPSTREAM_TIMEOUT", "1s"),
            ("UPSTREAM_HOURLY_BUDGET", "1000000"),
            ("MINT_COOLDOWN", "100ms"),
            // Tokens are then reused to their very end, which is the harder case.
            ("MIN_REMAINING", "0s"),
            ("CLEANUP_INTERVAL", "2s"),
            ("SEAL_INTERVAL", "500ms"),
            ("RUST_LOG", "token_vendor=info"),
        ];
        self.world.variables(&[&common, more].concat())
    }

    /// Starts a replica, which the clients do not call yet.
    pub async fn start_replica(&self, more: &[(&str, &str)]) -> Process {
        Process::serve(&self.variables(more)).await
    }

    /// Starts replicas that the clients call. Target `n` is replica `n`.
    pub async fn start_replicas(&self, count: usize, more: &[(&str, &str)]) -> Vec<Process> {
        let mut replicas = Vec::new();
        for _ in 0..count {
            let replica = self.start_replica(more).await;
            self.targets.lock().unwrap().push(replica.base.clone());
            replicas.push(replica);
        }
        replicas
    }

    /// Starts the clients, and the time of the attack.
    pub fn start_clients(&mut self, load: &Load) -> Clients {
        self.ends = Instant::now() + self.duration;
        Clients::start(load, &self.targets, &mut self.rng)
    }

    /// Returns true until the time of the attack is over.
    pub fn is_running(&self) -> bool {
        Instant::now() < self.ends
    }

    /// Returns true until the time of the attack is over and `faults` are injected, for 30 s more at most.
    ///
    /// A busy machine may need more time for them.
    pub fn needs(&self, faults: usize, injected: usize) -> bool {
        let is_late = Instant::now() > self.ends + Duration::from_secs(30);
        self.is_running() || (injected < faults && !is_late)
    }

    /// Sleeps for a random time below this number of milliseconds.
    pub async fn sleep_below(&mut self, milliseconds: u64) {
        sleep(Duration::from_millis(self.rng.u64(0..milliseconds))).await;
    }

    /// Stops the clients and the replicas, compares the records, and publishes and asserts the findings.
    ///
    /// `faults` describes the injected faults, such as `12 kills`. `promises` are the rows of the attack in the table;
    /// every promise is asserted.
    pub async fn finish(
        mut self,
        clients: Clients,
        replicas: Vec<Process>,
        faults: String,
        promises: &[Promise],
    ) {
        // An attack that nothing survives would find nothing.
        let expected = 10 * self.duration.as_secs() as usize;
        eventually("clients receive tokens", async || {
            clients.handouts() >= expected
        })
        .await;
        let exchanges = clients.stop().await;
        stop_replicas(replicas).await;
        self.close_mints().await;
        let mut promises = promises.to_vec();
        if self.rules.verifies_log && self.duration >= LONG {
            // A short attack may seal no event.
            promises.push(Promise::I15Sealed);
        }
        self.verify_log().await;
        let calls = self.ledger.calls();
        let findings = checker::compare(
            &self.world.url,
            &calls,
            &exchanges,
            &self.rules,
            self.findings,
        )
        .await;
        let handouts = exchanges.iter().filter(|e| e.handout().is_some()).count();
        eprintln!(
            "{}: {} requests, {handouts} handouts, {} calls, {faults}",
            self.name,
            exchanges.len(),
            calls.len()
        );
        report::publish(self.name, &faults, &promises, &findings);
        assert_eq!(findings.summary(), "", "{}", self.name);
        for promise in promises {
            assert!(findings.checked(promise) > 0, "{promise:?} is not checked");
        }
    }

    /// Verifies the sealed audit log, unless the attack was too short to seal any event.
    async fn verify_log(&mut self) {
        let verified = run(&["audit", "verify"], &self.variables(&[])).await;
        if !self.rules.verifies_log || verified.err.contains("no event is sealed") {
            return;
        }
        let is_intact = verified.code == 0;
        self.findings
            .check(Promise::I15Sealed, is_intact, || format!("{verified:?}"));
    }

    /// Closes the mints that no replica finished, as a cleanup does some minutes later. A wrong clock may have dated
    /// them ahead.
    async fn close_mints(&self) {
        let mut db = self.world.db.acquire().await.unwrap();
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()")
            .fetch_one(&mut *db)
            .await
            .unwrap();
        let later = now + TimeDelta::days(3650);
        abandon_mints(&mut db, later, 1_000_000).await.unwrap();
    }
}

/// Stops the replicas in order. A replica that does not stop is killed.
async fn stop_replicas(replicas: Vec<Process>) {
    for replica in &replicas {
        replica.signal(Signal::SIGTERM);
    }
    for mut replica in replicas {
        let stopped = timeout(Duration::from_secs(40), replica.child.wait()).await;
        assert!(stopped.is_ok(), "a replica does not stop");
    }
}
