//! Seals the audit log: appends its events to a Merkle tree and signs the head of the tree.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::db::audit_log::{Sealed, TileRow, Unsealed, seal_events};
use crate::db::{Database, DbError, Lane};
use crate::model::EventRef;
use crate::model::event_format::push_json;
use crate::seal::checkpoint::CheckpointWriter;
use crate::seal::tree::{Edge, Hash, Tile, WIDTH, hash_entry};

/// The maximum number of events that one transaction seals. It takes about 0.1 s.
const BATCH: i64 = 8_192;

/// The time limit of the anchor command.
const ANCHOR_TIMEOUT: Duration = Duration::from_secs(5);

/// Seals the audit log in this process. Several replicas may run one each.
#[derive(Debug)]
pub struct Sealer {
    db: Database,
    writer: CheckpointWriter,
    anchor_command: Option<String>,
}

impl Sealer {
    /// Creates a sealer. `anchor_command` is a program and its arguments, separated by white space.
    pub fn new(db: Database, writer: CheckpointWriter, anchor_command: Option<String>) -> Self {
        Sealer {
            db,
            writer,
            anchor_command,
        }
    }

    /// Seals all complete events at each tick until `stop` is cancelled.
    pub async fn run(self, every: Duration, stop: CancellationToken) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_failed = false;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let sealed = self.seal_all(&stop).await;
            match &sealed {
                // The lag is a metric and a readiness warning.
                Err(error) if !has_failed && !stop.is_cancelled() => {
                    tracing::error!(%error, "sealing the audit log failed; trying again")
                }
                Ok(()) if has_failed => tracing::info!("sealing the audit log works again"),
                _ => {}
            }
            has_failed = sealed.is_err();
        }
    }

    /// Seals batches until no complete event is left.
    async fn seal_all(&self, stop: &CancellationToken) -> Result<(), DbError> {
        while !stop.is_cancelled() {
            let writer = self.writer.clone();
            let sealed = self.db.run(Lane::Upkeep, async move |mut connection| {
                let seal = |unsealed| append(unsealed, &writer);
                seal_events(&mut connection, BATCH, hash_event, seal).await
            });
            let Some((checkpoint, has_more)) = sealed.await? else {
                break;
            };
            self.publish(&checkpoint).await;
            if !has_more {
                break;
            }
        }
        Ok(())
    }

    /// Writes the checkpoint to the log output and passes it to the anchor command, so that a copy exists elsewhere.
    async fn publish(&self, checkpoint: &str) {
        tracing::info!(checkpoint, "sealed the audit log");
        let Some(command) = &self.anchor_command else {
            return;
        };
        let anchored = timeout(ANCHOR_TIMEOUT, anchor(command, checkpoint)).await;
        if let Err(error) = anchored.unwrap_or_else(|_| bail_timeout()) {
            tracing::error!(%error, "SEAL_ANCHOR_COMMAND failed for a checkpoint");
        }
    }
}

fn bail_timeout() -> anyhow::Result<()> {
    bail!("it did not end within {ANCHOR_TIMEOUT:?}")
}

async fn anchor(command: &str, checkpoint: &str) -> anyhow::Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().context("it is empty")?;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("it has no input")?;
    input.write_all(checkpoint.as_bytes()).await?;
    drop(input);
    let status = child.wait().await?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// Returns the hash of the entry of an event: the line of an export without its line end.
pub fn hash_event(event: &EventRef<'_>) -> Hash {
    let mut entry = Vec::with_capacity(512);
    push_json(&mut entry, event);
    hash_entry(&entry)
}

/// Appends the events to the tree.
fn append(unsealed: Unsealed<Hash>, writer: &CheckpointWriter) -> Result<Sealed, DbError> {
    let edge = unsealed.edge.into_iter().map(Tile::from);
    let mut edge = Edge::new(unsealed.size as u64, edge).ok_or_else(|| DbError::Unreadable {
        table: "audit_tiles",
        what: format!("the last tiles are not those of {} events", unsealed.size),
    })?;
    let (mut tiles, mut firsts) = (Vec::new(), Vec::new());
    for (position, hash) in unsealed.events {
        if edge.size().is_multiple_of(WIDTH) {
            firsts.push((edge.size() / WIDTH, position));
        }
        edge.push(hash, &mut tiles);
    }
    tiles.extend(edge.partial_tiles());
    let tiles = tiles.into_iter().map(|tile| {
        let first = firsts.iter().find(|(n, _)| tile.level == 0 && *n == tile.n);
        let first = first.map(|(_, position)| *position);
        TileRow {
            level: tile.level.into(),
            n: tile.n as i64,
            hashes: tile.hashes,
            first_at: first.map(|(at, _)| at),
            first_id: first.map(|(_, id)| id),
        }
    });
    Ok(Sealed {
        tiles: tiles.collect(),
        size: edge.size() as i64,
        checkpoint: writer.write(edge.size(), edge.root()),
    })
}

impl From<TileRow> for Tile {
    fn from(row: TileRow) -> Self {
        Tile {
            level: row.level as u8,
            n: row.n as u64,
            hashes: row.hashes,
        }
    }
}
