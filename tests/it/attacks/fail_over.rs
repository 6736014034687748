//! Three nodes with the files of deploy/patroni, one of which is killed, frozen or demoted.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use token_vendor::db::schema;

use super::checker::Promise;
use super::clients::{Clients, Load};
use super::{Attack, LONG};
use crate::support::patroni::{Nodes, within_a_minute};
use crate::support::{World, run};

/// A fault. The service goes on by itself after each, in less than 30 s.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// All processes of the primary's machine are killed.
    PrimaryKilled,
    /// All processes of the primary's machine stand still, and go on when another one is the primary.
    PrimaryFrozen,
    /// Postgres is killed on the primary's machine.
    PostgresKilled,
    /// All processes of the synchronous standby's machine stand still.
    StandbyFrozen,
    /// Two of the three processes of etcd stand still.
    EtcdFrozen,
    /// The primary and its standby change places, as an operator asks.
    Switchover,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn failovers_of_patroni_break_no_promise() {
    let mut nodes = match Nodes::start().await {
        Ok(nodes) => nodes,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let owner = nodes.url("token_vendor", 5432);
    let options = schema::connect_options(&owner.clone().into()).unwrap();
    schema::migrate(&options).await.unwrap();
    let mut attack = Attack::on("Patroni failovers", LONG, World::on(owner).await).await;
    let grant = ["migrate", "--grant", "token_vendor_service"];
    let granted = run(&grant, &attack.variables(&[])).await;
    assert_eq!(granted.code, 0, "{granted:?}");
    let [primary, standby] = [5432, 5433].map(|port| nodes.url("token_vendor_service", port));
    let service = [
        ("DATABASE_URL", &*primary),
        ("READ_DATABASE_URL", &*standby),
    ];
    let mut replicas = attack.start_replicas(2, &service).await;
    let clients = attack.start_clients(&Load::default());
    let mut faults = [
        Fault::PrimaryKilled,
        Fault::PrimaryFrozen,
        Fault::PostgresKilled,
        Fault::StandbyFrozen,
        Fault::EtcdFrozen,
        Fault::Switchover,
    ];
    attack.rng.shuffle(&mut faults);
    handouts_go_on(&clients).await;
    for fault in faults {
        inject(fault, &mut nodes, &clients).await;
    }
    for replica in &mut replicas {
        assert!(replica.child.try_wait().unwrap().is_none(), "it ended");
    }
    let faults = format!("{} faults", faults.len());
    attack
        .finish(clients, replicas, faults, &Promise::OF_REQUESTS)
        .await;
}

/// Injects a fault, waits until handouts go on, and repairs it. Prints the longest time without a handout.
async fn inject(fault: Fault, nodes: &mut Nodes, clients: &Clients) {
    let (primary, standby) = (nodes.find("leader").await, nodes.find("sync_standby").await);
    let started = Instant::now();
    let mut frozen = Vec::new();
    match fault {
        Fault::PrimaryKilled => {
            nodes.cut_off(primary).await;
            nodes.kill(primary).await;
        }
        Fault::PrimaryFrozen => {
            nodes.cut_off(primary).await;
            frozen = nodes.freeze(primary);
        }
        Fault::PostgresKilled => nodes.kill_postgres(primary),
        Fault::StandbyFrozen => frozen = nodes.freeze(standby),
        Fault::EtcdFrozen => {
            frozen = [primary, standby]
                .map(|node| nodes.freeze_etcd(node))
                .concat();
            nodes.goes_on_without_etcd(primary).await;
        }
        Fault::Switchover => nodes.switch_over().await,
    }
    handouts_go_on(clients).await;
    let without = clients.longest_pause(started);
    let repaired = Instant::now();
    for process in frozen {
        // A backend may have ended meanwhile.
        let _ = kill(process, Signal::SIGCONT);
    }
    if matches!(fault, Fault::PrimaryKilled) {
        nodes.spawn(primary).await;
    }
    nodes.are_whole().await;
    handouts_go_on(clients).await;
    let after = clients.longest_pause(repaired);
    let whole = repaired.elapsed();
    eprintln!(
        "{fault:?}: {without:.1?} without handouts, {after:.1?} during the repair of {whole:.1?}"
    );
}

/// Waits until there are more handouts than those that were under way.
async fn handouts_go_on(clients: &Clients) {
    let before = clients.handouts();
    within_a_minute("handouts go on", async || clients.handouts() > before + 50).await;
}
