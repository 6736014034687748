//! The sealed audit log: its tree, its tiles and its proofs, as an independent reader computes them.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::Executor;

use crate::support::{ADMIN, Api, Process, World, eventually, run, send};

type Hash = [u8; 32];

fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(entry)
        .finalize()
        .into()
}

fn node_hash(left: &[u8], right: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// Returns the root of a tree, as RFC 6962 (section 2.1) defines it.
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        leaves => {
            let half = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(half);
            node_hash(&root(left), &root(right))
        }
    }
}

/// Returns the root to which an inclusion proof leads (RFC 9162, section 2.1.3.2).
fn root_of_proof(leaf: Hash, mut index: u64, size: u64, proof: &[Vec<u8>]) -> Hash {
    let (mut hash, mut last) = (leaf, size - 1);
    for sibling in proof {
        if index % 2 == 1 || index == last {
            hash = node_hash(sibling, &hash);
            while index.is_multiple_of(2) && index != 0 {
                (index, last) = (index / 2, last / 2);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (index, last) = (index / 2, last / 2);
    }
    hash
}

/// A checkpoint without its signatures.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    origin: String,
    pub size: u64,
    root: Hash,
}

fn parse_checkpoint(text: &str) -> Checkpoint {
    let mut lines = text.lines();
    Checkpoint {
        origin: lines.next().unwrap().into(),
        size: lines.next().unwrap().parse().unwrap(),
        root: BASE64_STANDARD
            .decode(lines.next().unwrap())
            .unwrap()
            .try_into()
            .unwrap(),
    }
}

pub async fn fetch(api: &Api, path: &str) -> Option<Vec<u8>> {
    let response = api.request(Method::GET, path).send().await.unwrap();
    match response.status().as_u16() {
        404 => None,
        status => {
            assert_eq!(status, 200, "{path}");
            Some(response.bytes().await.unwrap().to_vec())
        }
    }
}

async fn checkpoint(api: &Api) -> Option<Checkpoint> {
    let text = fetch(api, "/audit/log/checkpoint").await?;
    Some(parse_checkpoint(&String::from_utf8(text).unwrap()))
}

/// Returns the path of a tile of a tree of this size.
fn tile_path(level: &str, n: u64, width: u64) -> String {
    let index = match n {
        0..1_000 => format!("{n:03}"),
        n => format!("x{:03}/{:03}", n / 1_000, n % 1_000),
    };
    match width {
        256 => format!("/audit/log/tile/{level}/{index}"),
        width => format!("/audit/log/tile/{level}/{index}.p/{width}"),
    }
}

/// Reads all entries of the log from its tiles.
async fn read_entries(api: &Api, size: u64) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    for n in 0..size.div_ceil(256) {
        let width = (size - n * 256).min(256);
        let bundle = fetch(api, &tile_path("entries", n, width)).await.unwrap();
        let mut rest = &bundle[..];
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let (entry, after) = after.split_at(u16::from_be_bytes(*length).into());
            entries.push(entry.to_vec());
            rest = after;
        }
        assert_eq!(entries.len() as u64, n * 256 + width);
        let hashes = fetch(api, &tile_path("0", n, width)).await.unwrap();
        let leaves = entries[n as usize * 256..].iter();
        assert_eq!(
            hashes,
            leaves
                .flat_map(|entry| leaf_hash(entry))
                .collect::<Vec<_>>()
        );
    }
    entries
}

async fn export(api: &Api) -> Vec<Vec<u8>> {
    let export = fetch(api, "/audit/events/export").await.unwrap();
    let lines = export.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// Waits until this many events are sealed, and returns the checkpoint.
pub async fn wait_for_size(api: &Api, size: u64) -> Checkpoint {
    let mut latest = None;
    eventually("the events are sealed", async || {
        latest = checkpoint(api).await;
        latest.as_ref().is_some_and(|latest| latest.size >= size)
    })
    .await;
    latest.unwrap()
}

/// Mints a token and hands it out, `count` times in all.
pub async fn seed(world: &World, api: &Api, count: usize) {
    let token = api.issue(json!({"userId": "u"})).await;
    assert!(token.status < 300, "{token:?}");
    seed_more(api, count - 1).await;
    assert!(world.count("SELECT count(*) FROM audit_events").await >= count as i64);
}

/// Hands out the token of [`seed`] again.
async fn seed_more(api: &Api, count: usize) {
    let issue = (0..count).map(|_| api.issue(json!({"userId": "u"})));
    for answer in join_all(issue).await {
        assert_eq!(answer.status, 200);
    }
}

pub const FAST: (&str, &str) = ("SEAL_INTERVAL", "100ms");

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_every_event_in_its_tree() {
    let world = World::new().await;
    let replica = world.replica_with(&[FAST]).await;
    assert_eq!(checkpoint(&replica).await, None);
    seed(&world, &replica, 600).await;
    let exported = export(&replica).await;
    let checkpoint = wait_for_size(&replica, exported.len() as u64).await;
    assert_eq!(checkpoint.origin, "token-vendor");
    let entries = read_entries(&replica, checkpoint.size).await;
    assert!(entries.starts_with(&exported));
    let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    assert_eq!(root(&leaves), checkpoint.root);
    let second = fetch(&replica, &tile_path("1", 0, 2)).await.unwrap();
    assert_eq!(second[..32], root(&leaves[..256]));
    assert_eq!(second[32..], root(&leaves[256..512]));

    let recorded =
        "SELECT count(*) FROM audit_events WHERE kind = 'audit.read' AND detail ? 'tile'";
    assert_eq!(
        world.count(recorded).await as u64,
        checkpoint.size.div_ceil(256)
    );

    // An earlier tree is served too.
    let earlier = fetch(&replica, &tile_path("0", 2, 3)).await.unwrap();
    assert_eq!(earlier, leaves[512..515].concat());
    for absent in [
        "0/009",
        "7/000",
        "entries/009",
        "0/000.p/0",
        "x",
        "0/",
        "data/000",
    ] {
        assert_eq!(
            fetch(&replica, &format!("/audit/log/tile/{absent}")).await,
            None,
            "{absent}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_a_proof() {
    let world = World::new().await;
    let replica = world.replica_with(&[FAST]).await;
    seed(&world, &replica, 300).await;
    let exported = export(&replica).await;
    wait_for_size(&replica, exported.len() as u64).await;
    for (index, line) in exported.iter().enumerate().step_by(37) {
        let event: Value = serde_json::from_slice(line).unwrap();
        let path = format!("/audit/events/{}/proof", event["id"].as_str().unwrap());
        let proof = replica.get(&path).await;
        assert_eq!(proof.status, 200, "{proof:?}");
        assert_eq!(proof.body["leafIndex"], index);
        assert_eq!(proof.text("entry").as_bytes(), line);
        let hashes = proof.body["proof"].as_array().unwrap().iter();
        let hashes: Vec<_> = hashes
            .map(|hash| BASE64_STANDARD.decode(hash.as_str().unwrap()).unwrap())
            .collect();
        let checkpoint = parse_checkpoint(proof.text("checkpoint"));
        let computed = root_of_proof(leaf_hash(line), index as u64, checkpoint.size, &hashes);
        assert_eq!(computed, checkpoint.root, "{index}");
    }
    let recorded =
        "SELECT count(*) FROM audit_events WHERE kind = 'audit.read' AND detail ? 'proof'";
    assert_eq!(world.count(recorded).await, 9);
    let unknown = "/audit/events/01a204ea-98b4-7d02-8f2e-3a9b1c64d57e/proof";
    replica.get(unknown).await.assert_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_sealed_before_an_earlier_one_can_still_appear() {
    let world = World::new().await;
    let mut transaction = world.db.begin().await.unwrap();
    let insert = "INSERT INTO audit_events (id, kind) VALUES (gen_random_uuid(), 'audit.read')";
    transaction.execute(insert).await.unwrap();
    let replica = world.replica_with(&[FAST]).await;
    seed(&world, &replica, 3).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let before = "SELECT count(*) FROM audit_events WHERE kind = 'client.created'";
    let sealed = checkpoint(&replica)
        .await
        .map_or(0, |checkpoint| checkpoint.size);
    assert!(
        sealed as i64 <= world.count(before).await,
        "{sealed} sealed"
    );
    transaction.commit().await.unwrap();
    let exported = export(&replica).await;
    let checkpoint = wait_for_size(&replica, exported.len() as u64).await;
    let entries = read_entries(&replica, checkpoint.size).await;
    assert!(entries.starts_with(&exported));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sealers_make_one_log() {
    let world = World::new().await;
    let replicas = [
        world.replica_with(&[FAST]).await,
        world.replica_with(&[FAST]).await,
    ];
    for _ in 0..5 {
        let issue = (0..200).map(|n| replicas[n % 2].issue(json!({"userId": "u"})));
        join_all(issue).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let exported = export(&replicas[0]).await;
    let checkpoint = wait_for_size(&replicas[1], exported.len() as u64).await;
    let entries = read_entries(&replicas[1], checkpoint.size).await;
    assert!(entries.starts_with(&exported));
    let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    assert_eq!(root(&leaves), checkpoint.root);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_event_has_no_proof() {
    let world = World::new().await;
    let replica = world.replica_with(&[FAST]).await;
    seed(&world, &replica, 3).await;
    let exported = export(&replica).await;
    wait_for_size(&replica, exported.len() as u64).await;
    let change = "ALTER TABLE audit_events DISABLE TRIGGER USER;
                  UPDATE audit_events SET client = 'nobody' WHERE kind = 'token.minted'";
    sqlx::raw_sql(change).execute(&world.db).await.unwrap();
    let minted = replica.get("/audit/events?kind=token.minted").await;
    let path = format!(
        "/audit/events/{}/proof",
        minted.body["items"][0]["id"].as_str().unwrap()
    );
    let refused = replica.get(&path).await;
    refused.assert_problem(404, "not-found");
    assert!(
        refused.text("detail").contains("another entry"),
        "{refused:?}"
    );
    // A bundle has the changed event, and the hashes of the tile show that.
    let entries = fetch(&replica, "/audit/log/tile/entries/000.p/3")
        .await
        .unwrap();
    let hashes = fetch(&replica, "/audit/log/tile/0/000.p/3").await.unwrap();
    assert!(entries.windows(8).any(|window| window == b"\"nobody\""));
    let exported: Vec<_> = exported[..3]
        .iter()
        .flat_map(|line| leaf_hash(line))
        .collect();
    assert_eq!(hashes, exported);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_makes_keys_of_the_origin() {
    let world = World::new().await;
    let origin = "example.com/audit";
    let made = run(&["seal", "keys"], &[("SEAL_ORIGIN".into(), origin.into())]).await;
    assert_eq!(made.code, 0, "{made:?}");
    let (signing, verifier) = made.out.trim_end().split_once('\n').unwrap();
    assert!(
        signing.starts_with("PRIVATE+KEY+example.com/audit+"),
        "{made:?}"
    );
    assert!(verifier.starts_with("example.com/audit+"), "{made:?}");
    let variables =
        |origin, key| world.variables(&[("SEAL_ORIGIN", origin), ("SEAL_SIGNING_KEY", key)]);
    run(&["check"], &variables("other", signing))
        .await
        .refused(2, "SEAL_SIGNING_KEY");
    run(&["check"], &variables(origin, verifier))
        .await
        .refused(2, "SEAL_SIGNING_KEY");
    run(&["check"], &variables("a b", ""))
        .await
        .refused(2, "SEAL_ORIGIN");

    let settings = [FAST, ("SEAL_ORIGIN", origin), ("SEAL_SIGNING_KEY", signing)];
    let replica = world.replica_with(&settings).await;
    seed(&world, &replica, 1).await;
    wait_for_size(&replica, 1).await;
    let text = fetch(&replica, "/audit/log/checkpoint").await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\n\n— example.com/audit "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_anchor_command_receives_each_checkpoint() {
    let world = World::new().await;
    let file = std::env::temp_dir().join(format!("anchor-{}", std::process::id()));
    let command = format!("tee -a {}", file.display());
    let settings = [FAST, ("SEAL_ANCHOR_COMMAND", &*command)];
    let replica = world.replica_with(&settings).await;
    seed(&world, &replica, 2).await;
    let checkpoint = wait_for_size(&replica, 2).await;
    eventually("the command has run", async || {
        let anchored = std::fs::read_to_string(&file).unwrap_or_default();
        anchored.contains(&format!("token-vendor\n{}\n", checkpoint.size))
    })
    .await;
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_needs_the_audit_scope() {
    let world = World::new().await;
    let replica = world.replica().await;
    world.add_client(("k", "s"), &[]).await;
    let id = uuid::Uuid::new_v4();
    for path in [
        "/audit/log/checkpoint".to_owned(),
        "/audit/log/tile/0/000".to_owned(),
        format!("/audit/events/{id}/proof"),
    ] {
        let anonymous = send(replica.anonymous(Method::GET, &path)).await;
        anonymous.assert_problem(401, "unauthenticated");
        let request = replica
            .anonymous(Method::GET, &path)
            .basic_auth("k", Some("s"));
        send(request).await.assert_problem(403, "forbidden");
        let queried = format!("{path}?x=1");
        let refused = send(replica.request(Method::GET, &queried)).await;
        refused.assert_problem(400, "validation");
    }
}

/// Verifies the log and returns the number of its entries.
async fn assert_intact(world: &World) -> u64 {
    let verified = run(&["audit", "verify"], &world.variables(&[])).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    let verified: Value = serde_json::from_str(&verified.out).unwrap();
    assert_eq!(verified["compared"], verified["size"]);
    verified["size"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sealers_that_are_killed_leave_no_gap() {
    let world = World::new().await;
    let mut sealed = 0;
    for _ in 0..5 {
        let process = Process::serve(&world.variables(&[FAST])).await;
        let api = Api::at(process.base.clone());
        seed(&world, &api, 100).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..3_000))).await;
        process.signal(Signal::SIGKILL);
        let size = world.count("SELECT size FROM audit_log").await;
        assert!(size >= sealed);
        sealed = size;
    }
    let replica = world.replica_with(&[FAST]).await;
    let events = world.count("SELECT count(*) FROM audit_events").await;
    wait_for_size(&replica, events as u64).await;
    assert!(assert_intact(&world).await >= 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealers_that_lose_their_connection_in_a_transaction_leave_no_gap() {
    let world = World::new().await;
    let replicas = [
        world.replica_with(&[FAST]).await,
        world.replica_with(&[FAST]).await,
    ];
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
                       AND query ~ 'audit_log|audit_tiles'";
    let mut terminated = 0;
    for round in 0..200 {
        if round % 10 == 0 {
            replicas[round / 10 % 2].issue(json!({"userId": "u"})).await;
        }
        terminated += world.count(terminate).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(terminated > 0, "no transaction of a sealer was hit");
    let events = world.count("SELECT count(*) FROM audit_events").await;
    wait_for_size(&replicas[0], events as u64).await;
    assert_intact(&world).await;
}

/// Runs a program that verifies the log, and returns its output.
async fn run_verifier(program: &str, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", std::env::temp_dir().join("token-vendor-go"))
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[ignore = "needs Go and Python: run make e2e CHECKS=transparency"]
#[tokio::test(flavor = "multi_thread")]
async fn independent_programs_verify_the_log() {
    let world = World::new().await;
    let origin = "example.com/audit";
    let made = run(&["seal", "keys"], &[("SEAL_ORIGIN".into(), origin.into())]).await;
    let (signing, verifier) = made.out.trim_end().split_once('\n').unwrap();
    let settings = [FAST, ("SEAL_ORIGIN", origin), ("SEAL_SIGNING_KEY", signing)];
    let replica = world.replica_with(&settings).await;
    let folder = std::env::temp_dir().join(format!("token-vendor-log-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let root = env!("CARGO_MANIFEST_DIR");

    seed(&world, &replica, 300).await;
    wait_for_size(&replica, 300).await;
    let earlier = fetch(&replica, "/audit/log/checkpoint").await.unwrap();
    std::fs::write(file("earlier"), &earlier).unwrap();
    seed_more(&replica, 300).await;
    wait_for_size(&replica, 600).await;
    let go = format!("{root}/tests/e2e/transparency/verify.go");
    let arguments = [
        "run",
        &go,
        &replica.base,
        ADMIN.0,
        ADMIN.1,
        verifier,
        &file("earlier"),
    ];
    let verified = run_verifier("go", &arguments).await;
    assert!(verified.starts_with("verified 6"), "{verified}");

    // The Python of the documentation.
    let docs = std::fs::read_to_string(format!("{root}/docs/audit.md")).unwrap();
    let (_, script) = docs.split_once("verify.py <<'PY'\n").unwrap();
    let (script, _) = script.split_once("\nPY\n").unwrap();
    std::fs::write(file("verify.py"), script).unwrap();
    let minted = replica.get("/audit/events?kind=token.minted").await;
    let id = minted.body["items"][0]["id"].as_str().unwrap();
    let proof = fetch(&replica, &format!("/audit/events/{id}/proof"))
        .await
        .unwrap();
    std::fs::write(file("proof.json"), &proof).unwrap();
    let arguments = [&*file("verify.py"), &file("proof.json"), verifier];
    let verified = run_verifier("python3", &arguments).await;
    assert!(verified.contains("token.minted"), "{verified}");
    let other = String::from_utf8(proof)
        .unwrap()
        .replace("token.minted", "token.reused");
    std::fs::write(file("proof.json"), other).unwrap();
    let refused = tokio::process::Command::new("python3")
        .args(arguments)
        .output()
        .await
        .unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("the log does not contain the entry"),
        "{error}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}
