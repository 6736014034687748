//! Connections to the database that hang. New connections work.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::database_proxy::{DatabaseProxy, Silence};
use crate::support::server::Server;
use crate::support::{World, issue_to_new_users, wait_until_all_succeed};

/// More requests than the service has connections, so that each connection is in use.
const HERD: usize = 150;

async fn assert_recovers_from(silence: Silence) {
    let world = World::new().await;
    let proxy = DatabaseProxy::start(&world.url).await;
    let replica = world.replica_with(&[("DATABASE_URL", &proxy.url())]).await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    issue_to_new_users(&replica, HERD).await;
    proxy.silence(silence);
    tokio::join!(
        issue_to_new_users(&replica, HERD),
        wait_until_all_succeed(&world, &replica, &minted)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_replaced() {
    assert_recovers_from(Silence::Everything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_whose_answers_are_lost_are_replaced() {
    assert_recovers_from(Silence::Answers).await;
}

/// Stopped processes, which continue when this is dropped.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn stop(processes: Vec<Pid>) -> Stopped {
        for pid in &processes {
            kill(*pid, Signal::SIGSTOP).unwrap();
        }
        Stopped(processes)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_stopped_server_processes_are_replaced() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    issue_to_new_users(&replica, HERD).await;
    // The other processes would wait for a lock that a stopped one holds. An idle one holds none.
    let idle = "application_name = 'token-vendor' AND state = 'idle'";
    let stopped = Stopped::stop(world.backends(idle).await);
    tokio::join!(
        issue_to_new_users(&replica, HERD),
        wait_until_all_succeed(&world, &replica, &minted)
    );
    drop(stopped);
}

/// The time that the standby is absent, longer than every time limit of a statement.
const ABSENCE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_standby_keep_their_connections_within_the_maximum() {
    let server = Server::start(&[]).await;
    let world = World::on(server.url()).await;
    let replica = world
        .replica_with(&[("DATABASE_MAX_CONNECTIONS", "8")])
        .await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    let started = Instant::now();
    let mut acknowledged = HashSet::from([minted.header("x-request-id").to_owned()]);
    let load = async {
        while started.elapsed() < ABSENCE {
            let reuse = replica.issue(json!({"userId": "u"}));
            let (reused, mints) = tokio::join!(reuse, issue_to_new_users(&replica, HERD));
            for answer in mints.into_iter().chain([reused]) {
                if answer.status < 300 {
                    acknowledged.insert(answer.header("x-request-id").to_owned());
                } else {
                    assert!(matches!(answer.status, 503 | 504), "{answer:?}");
                }
            }
        }
    };
    let watch = async {
        // The first mints run.
        server.set("synchronous_standby_names", "nope").await;
        let mut max = 0;
        // The server may still count a connection that the service has just replaced.
        let sessions = "SELECT count(*) FROM pg_stat_activity
                        WHERE application_name = 'token-vendor' AND backend_start < now() - interval '1 second'";
        while started.elapsed() < ABSENCE {
            max = max.max(server.count(sessions).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        max
    };
    let ((), max_sessions) = tokio::join!(load, watch);
    assert!(max_sessions <= 8, "{max_sessions} connections");

    server.set("synchronous_standby_names", "").await;
    wait_until_all_succeed(&world, &replica, &minted).await;
    let log = std::fs::read_to_string(server.data_dir.join("postgres.log")).unwrap();
    assert!(
        !log.contains("synchronous replication"),
        "a COMMIT was cancelled"
    );
    let recorded: Vec<String> = sqlx::query_scalar(
        "SELECT request_id FROM audit_events WHERE kind IN ('token.minted', 'token.reused')",
    )
    .fetch_all(&world.db)
    .await
    .unwrap();
    let recorded = recorded.into_iter().collect();
    assert!(acknowledged.is_subset(&recorded));
    replica.service.stop().await;
    drop(world);
    server.stop().await;
}
