//! Servers that stop accepting or keeping writes while the service runs. Each test has a server of its own.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::cluster::own_folder;
use crate::support::server::Server;
use crate::support::{Api, World, eventually, send};

async fn writer_check(api: &Api) -> Value {
    let ready = send(api.anonymous(Method::GET, "/health/ready")).await;
    let check = ready.body["checks"]["writer"].clone();
    assert!(ready.status != 200 || check == "ok", "{ready:?}");
    check
}

async fn wait_for_writer(api: &Api, expected: &str) {
    eventually(&format!("the writer check is {expected}"), async || {
        writer_check(api).await == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_a_server_that_does_not_keep_writes() {
    let server = Server::start(&[]).await;
    let world = World::on(server.url()).await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    for (setting, value, cause) in [
        ("default_transaction_read_only", "on", "read-only"),
        ("synchronous_commit", "off", "not-durable"),
        ("fsync", "off", "not-durable"),
    ] {
        server.set(setting, value).await;
        wait_for_writer(&replica, cause).await;
        let refused = replica.issue(json!({"userId": "u"})).await;
        refused.assert_problem(503, "database-unavailable");
        server.set(setting, "").await;
        wait_for_writer(&replica, "ok").await;
        replica
            .issue(json!({"userId": "u"}))
            .await
            .assert_reused(&minted);
    }
    drop(world);
    replica.service.stop().await;
    server.stop().await;
}

/// The replica notices the setting only at its next check.
#[tokio::test(flavor = "multi_thread")]
async fn every_answered_write_is_flushed_whatever_the_default_of_the_server_is() {
    let server = Server::start(&[("wal_writer_delay", "10s"), ("autovacuum", "off")]).await;
    let world = World::on(server.url()).await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    let assert_flushed = async || {
        let unflushed = "SELECT (pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn())::bigint";
        // The position of the next insert may lie behind the header of a page, of 24 bytes.
        assert!(server.count(unflushed).await <= 24);
    };
    let mut checked = 0;
    while checked < 5 {
        server.set("synchronous_commit", "off").await;
        let other = replica
            .issue(json!({"userId": format!("u-{checked}")}))
            .await;
        other.assert_minted("fwd=uri-miss; stored");
        assert_flushed().await;
        let path = format!("/bank/tokens/{}/invalidate", other.text("id"));
        let invalidated = send(replica.post(&path, &json!({"reason": "used"}))).await;
        assert_eq!(invalidated.status, 200, "{invalidated:?}");
        assert_flushed().await;
        // A new session already has the setting.
        let answer = replica.issue(json!({"userId": "u"})).await;
        if answer.status == 200 {
            assert_flushed().await;
            checked += 1;
        }
        server.set("synchronous_commit", "").await;
        wait_for_writer(&replica, "ok").await;
    }
    drop(world);
    replica.service.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_hang_do_not_accumulate_connections() {
    let server = Server::start(&[]).await;
    let world = World::on(server.url()).await;
    let replica = world
        .replica_with(&[("DATABASE_MAX_CONNECTIONS", "5")])
        .await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    server.hang_commits().await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'token-vendor'";
    for round in 0..4 {
        let calls = (0..8).map(|n| {
            replica.issue(
                json!({"userId": if n % 2 == 0 { "u".into() } else { format!("{round}-{n}") }}),
            )
        });
        for answer in futures_util::future::join_all(calls).await {
            assert!(matches!(answer.status, 503 | 504), "{answer:?}");
        }
        assert!(server.count(sessions).await <= 5, "round {round}");
    }
    assert_ne!(writer_check(&replica).await, "ok");
    server.set("synchronous_standby_names", "").await;
    wait_for_writer(&replica, "ok").await;
    eventually("a handout", async || {
        replica.issue(json!({"userId": "u"})).await.status == 200
    })
    .await;
    replica.service.stop().await;
    drop(world);
    server.stop().await;
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// The address leads to a hot standby for a while, as after a failover of a proxy that chose the wrong server.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_a_standby_is_not_used() {
    let primary = Server::start(&[]).await;
    let Server { postgres, data_dir } = primary;
    postgres.stop().await.unwrap();
    let standby_dir = own_folder();
    copy_folder(&data_dir, &standby_dir);
    std::fs::write(standby_dir.join("pgdata/standby.signal"), "").unwrap();
    let primary = Server::start_in(data_dir, &[]).await;
    let standby = Server::start_in(standby_dir, &[]).await;

    // The address is a link, which is turned from one server to the other.
    let link = own_folder();
    let turn_to = |server: &Server| {
        let _ = std::fs::remove_file(&link);
        symlink(server.postgres.socket_dir(), &link).unwrap();
    };
    turn_to(&primary);
    let url = primary.url();
    let folder = primary.postgres.socket_dir().to_str().unwrap();
    assert!(url.contains(folder), "{url}");
    let world = World::on(url.replace(folder, link.to_str().unwrap())).await;
    let replica = world.replica().await;
    replica
        .issue(json!({"userId": "u"}))
        .await
        .assert_minted("fwd=uri-miss; stored");

    turn_to(&standby);
    let end_sessions = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'token-vendor'";
    assert!(primary.count(end_sessions).await > 0);
    wait_for_writer(&replica, "in-recovery").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(4);
    while tokio::time::Instant::now() < deadline {
        let answer = replica.issue(json!({"userId": "new"})).await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    let used = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'token-vendor' AND state <> 'active'
                AND query NOT LIKE '%pg_is_in_recovery%' AND query <> ''";
    assert_eq!(standby.count(used).await, 0);

    turn_to(&primary);
    wait_for_writer(&replica, "ok").await;
    eventually("a mint", async || {
        replica.issue(json!({"userId": "new"})).await.status < 300
    })
    .await;
    replica.service.stop().await;
    drop(world);
    std::fs::remove_file(&link).unwrap();
    primary.stop().await;
    standby.stop().await;
}
