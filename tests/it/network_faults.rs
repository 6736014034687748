//! Packets of established TCP connections to the database that are dropped. New connections work.
//!
//! The packets are dropped by nftables, in the network namespace that `make chaos` creates.

use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::database_proxy::{DatabaseProxy, Silence};
use crate::support::{World, issue_to_new_users, wait_until_all_succeed};

/// Returns true if there is nft and this network namespace has only the loopback interface.
async fn can_drop_packets() -> bool {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let is_private = devices
        .lines()
        .skip(2)
        .all(|line| line.trim().starts_with("lo:"));
    let nft = Command::new("nft").args(["list", "tables"]).output().await;
    is_private && !devices.is_empty() && nft.is_ok_and(|output| output.status.success())
}

/// Returns the ports of the established connections to this port of 127.0.0.1.
fn established(port: u16) -> Vec<u16> {
    // Each line: number, local address, remote address, state. 01 is ESTABLISHED (man 5 proc).
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    let lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|fields| fields[2] == remote && fields[3] == "01")
        .map(|fields| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
        .collect()
}

async fn run_nft(rules: &str) {
    let mut nft = Command::new("nft")
        .arg("-f-")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .await
        .unwrap();
    assert!(nft.wait().await.unwrap().success(), "{rules}");
}

async fn assert_recovers_from(silence: Silence) {
    if !can_drop_packets().await {
        eprintln!("skipped: dropping packets needs root, nft and unshare; run make chaos as root");
        return;
    }
    let world = World::new().await;
    let proxy = DatabaseProxy::start(&world.url).await;
    let replica = world.replica_with(&[("DATABASE_URL", &proxy.url())]).await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    let port = proxy.address.port();
    for round in 0..5 {
        issue_to_new_users(&replica, 150).await;
        let open = established(port);
        assert!((3..=16).contains(&open.len()), "round {round}: {open:?}");
        let open = open
            .iter()
            .map(u16::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let requests = match silence {
            Silence::Everything => format!("tcp dport {port} tcp sport {{ {open} }} drop"),
            _ => String::new(),
        };
        run_nft(&format!(
            "table inet round_{port}_{round} {{\nchain arriving {{\ntype filter hook input priority 0\n\
             tcp sport {port} tcp dport {{ {open} }} drop\n{requests}\n}}\n}}\n"
        ))
        .await;
        tokio::join!(
            issue_to_new_users(&replica, 150),
            wait_until_all_succeed(&world, &replica, &minted)
        );
    }
    assert!(established(port).len() <= 16);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and minutes: run make chaos"]
async fn connections_that_lose_all_packets_are_replaced() {
    assert_recovers_from(Silence::Everything).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and minutes: run make chaos"]
async fn connections_that_lose_the_packets_of_answers_are_replaced() {
    assert_recovers_from(Silence::Answers).await;
}
