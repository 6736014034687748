//! The disk of the database, which becomes full and is freed.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;

use super::checker::Promise;
use super::clients::Load;
use super::{Attack, LONG, SHORT};
use crate::support::World;
use crate::support::server::Server;
use crate::support::tmpfs::Tmpfs;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_breaks_no_promise() {
    fill_disk(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn a_disk_that_is_often_full_for_a_minute_breaks_no_promise() {
    fill_disk(LONG).await;
}

/// Settings under which the server keeps few unused segments of the write-ahead log, of 16 MB each.
const SETTINGS: [(&str, &str); 2] = [("min_wal_size", "32MB"), ("max_wal_size", "48MB")];

async fn fill_disk(duration: Duration) {
    let Some(disk) = Tmpfs::mount("256m") else {
        eprintln!("skipped: mounting a disk needs root");
        return;
    };
    let mut server = Server::create_in(disk.path.join("data"), &SETTINGS).await;
    let world = World::on(server.url()).await;
    let mut attack = Attack::on("disk full", duration, world).await;
    let replicas = attack.start_replicas(2, &[]).await;
    let clients = attack.start_clients(&Load::default());
    let (mut fills, mut ends) = (0, 0);
    while attack.needs(2, fills) {
        attack.sleep_below(1000).await;
        // Tables and the log then fail at different times.
        disk.fill(attack.rng.u64(0..500_000));
        fills += 1;
        for _ in 0..attack.rng.u8(0..4) {
            attack.sleep_below(300).await;
            let _ = switch_log(&server.url()).await;
        }
        disk.free();
        let starts;
        (server, starts) = wait_until_up(server).await;
        ends += starts;
    }
    assert!(fills > 1, "only {fills} full disks");
    let promises = [
        Promise::I1Recorded,
        Promise::I2MintRecorded,
        Promise::I3OneMint,
        Promise::I5NotInvalidated,
        Promise::I6NoGuess,
        Promise::I7ClearErrors,
        Promise::Consistent,
    ];
    let faults = format!("{fills} full disks, {ends} ends of the server");
    attack.finish(clients, replicas, faults, &promises).await;
    server.stop().await;
}

/// Waits until the server writes. Starts it again if it ended, because its recovery found no space. Returns the number
/// of starts.
async fn wait_until_up(mut server: Server) -> (Server, u32) {
    let (started, mut starts) = (Instant::now(), 0);
    while switch_log(&server.url()).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(30));
        if !Path::new(&format!("/proc/{}", server.postgres.pid())).exists() {
            let Server { postgres, data_dir } = server;
            postgres.stop().await.unwrap();
            server = Server::start_in(data_dir, &SETTINGS).await;
            starts += 1;
        }
        sleep(Duration::from_millis(50)).await;
    }
    (server, starts)
}

/// Starts a new segment of the write-ahead log, for which the server needs space.
async fn switch_log(url: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute("SELECT pg_switch_wal()").await?;
    Ok(())
}
