//! A Postgres server, or one of its processes, that is killed at random times and started again.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};
use crate::support::World;
use crate::support::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_killed_breaks_no_promise() {
    kill_postgres(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn a_postgres_that_is_killed_for_a_minute_breaks_no_promise() {
    kill_postgres(LONG).await;
}

async fn kill_postgres(duration: Duration) {
    let mut server = Server::start(&[]).await;
    let world = World::on(server.url()).await;
    let mut attack = Attack::on("Postgres killed", duration, world).await;
    let replicas = attack.start_replicas(2, &[]).await;
    let clients = attack.start_clients(&Load::default());
    let (mut servers, mut backends) = (0, 0);
    while attack.needs(2, servers + backends) {
        attack.sleep_below(2_000).await;
        if attack.rng.bool() && kill_backend(&attack).await {
            // The server ends all its processes, and recovers.
            backends += 1;
            continue;
        }
        kill(
            Pid::from_raw(server.postgres.pid().cast_signed()),
            Signal::SIGKILL,
        )
        .unwrap();
        servers += 1;
        let data_dir = server.data_dir.clone();
        server.postgres.stop().await.unwrap();
        // Without this file, the start waits for the last processes of the killed server.
        let _ = std::fs::remove_file(data_dir.join("pgdata/postmaster.pid"));
        server = Server::start_in(data_dir, &[]).await;
    }
    assert!(servers + backends >= 2, "{servers} + {backends} kills");
    let promises = [
        Promise::I1Recorded,
        Promise::I2MintRecorded,
        Promise::I5NotInvalidated,
    ];
    let faults = format!("{servers} kills of the server, {backends} of a process");
    attack.finish(clients, replicas, faults, &promises).await;
    server.stop().await;
}

/// Kills a server process of a replica, an active one if possible. Returns false if there is none.
async fn kill_backend(attack: &Attack) -> bool {
    let select = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'token-vendor%'
                  ORDER BY state = 'active' DESC, random() LIMIT 1";
    let pid: Option<i32> = sqlx::query_scalar(select)
        .fetch_optional(&attack.world.db)
        .await
        .unwrap_or_default();
    pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
}
