//! Compares the events of the database with the hashes of the log.

use std::sync::Arc;

use serde::Deserialize;

use super::{HASH, VerifyError, changed};
use crate::db::audit_log::{
    LogState, TileRow, find_tile_of_event, just_before, list_log_events, list_tiles_of_events,
};
use crate::db::{Checkout, Database, Lane};
use crate::jobs::sealing::hash_event;
use crate::model::{EventKind, EventRef};
use crate::seal::tree::{Hash, WIDTH};

/// The number of tiles that one piece of work verifies: 4,096 events.
pub const TILES: i64 = 16;

/// Finds the entry of the oldest event.
pub async fn find_first_entry(db: &Database, log: &LogState) -> Result<u64, VerifyError> {
    let found = db.run(Lane::Reads, async |mut connection: Checkout| {
        let events = list_log_events(&mut connection, None, WIDTH as i64, hash_event).await?;
        let Some((position, _)) = events.first().copied() else {
            return Ok(None);
        };
        let tile = find_tile_of_event(&mut connection, position).await?;
        Ok(Some((position, events, tile)))
    });
    let Some((position, events, tile)) = found.await? else {
        return changed("all events are missing".into());
    };
    if position > (log.last_at, log.last_id) {
        return changed("the events of all entries are missing".into());
    }
    // An event before the first tile is reported with entry 0.
    let Some(tile) = tile else { return Ok(0) };
    // The oldest events may be redacted. The first one with an entry tells where they belong.
    let entry = events
        .iter()
        .enumerate()
        .find_map(|(index, (_, hash))| tile.find_entry(hash)?.checked_sub(index as u64));
    match entry {
        Some(entry) => Ok(entry),
        None if tile.first_at.zip(tile.first_id) == Some(position) => Ok(tile.n as u64 * WIDTH),
        None if tile.n == 0 => Ok(0),
        None => changed(format!("the oldest event {} has no entry", position.1)),
    }
}

/// The verified hashes of consecutive tiles.
pub struct Chunk {
    /// The hashes of each tile.
    pub tiles: Vec<Vec<u8>>,
    /// The numbers of entries that retention deleted, as sealed events record them.
    pub pruned: Vec<u64>,
    /// The entries whose events were redacted.
    pub redacted: Vec<u64>,
}

/// The parts of an event that are compared.
struct Leaf {
    hash: Hash,
    is_redacted: bool,
    pruned: Option<u64>,
}

/// The detail of a redacted event.
const REDACTED: &str = r#"{"redacted": true}"#;

fn leaf(event: &EventRef<'_>) -> Leaf {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Drop {
        sealed_events: Option<u64>,
    }
    let detail = event
        .detail
        .filter(|_| event.kind == EventKind::CleanupRan.name());
    let drop = detail.and_then(|detail| serde_json::from_str::<Drop>(detail.get()).ok());
    Leaf {
        hash: hash_event(event),
        is_redacted: event.detail.is_some_and(|detail| detail.get() == REDACTED),
        pruned: drop.and_then(|drop| drop.sealed_events),
    }
}

/// Reads the tiles from index `n`, and compares their hashes with the events from entry `first`.
pub async fn read_chunk(
    db: Database,
    log: Arc<LogState>,
    n: i64,
    first: Option<u64>,
) -> Result<Chunk, VerifyError> {
    let size = log.size as u64;
    let read = db.run(Lane::Reads, async move |mut connection: Checkout| {
        let tiles = list_tiles_of_events(&mut connection, n..n + TILES + 1).await?;
        let skip = skipped(n, first, size);
        let wanted = count_entries(n, size).saturating_sub(skip);
        if wanted == 0 {
            return Ok((tiles, Vec::new()));
        }
        // The first piece starts at the oldest event, so that an event before the log is found.
        let after = tiles
            .first()
            .and_then(|tile| tile.first_at.zip(tile.first_id));
        let after = after.filter(|_| skip == 0 && n > 0).map(just_before);
        let events = list_log_events(&mut connection, after, wanted as i64 + 1, leaf).await?;
        Ok((tiles, events))
    });
    let (tiles, events) = read.await?;
    let mut chunk = Chunk {
        tiles: check_tiles(n, &tiles, size)?,
        pruned: Vec::new(),
        redacted: Vec::new(),
    };
    let skip = skipped(n, first, size);
    let hashes = chunk.tiles.iter().flat_map(|hashes| hashes.chunks(HASH));
    let mut events = events.into_iter();
    for (index, hash) in (n as u64 * WIDTH..).zip(hashes).skip(skip as usize) {
        match events.next() {
            Some((position, leaf)) if leaf.hash == hash || leaf.is_redacted => {
                let tile = &tiles[(index / WIDTH) as usize - n as usize];
                let first = tile.first_at.zip(tile.first_id);
                if index % WIDTH == 0 && first != Some(position) {
                    return changed(format!(
                        "tile {} of level 0 names another first event",
                        tile.n
                    ));
                }
                chunk.redacted.extend((leaf.hash != hash).then_some(index));
                chunk.pruned.extend(leaf.pruned);
            }
            Some(((at, id), _)) => {
                return changed(format!(
                    "entry {index} differs from the event in its place, {id} of {at}"
                ));
            }
            None => return changed(format!("entry {index} differs: its event is missing")),
        }
    }
    if let Some(((at, id), _)) = events.next() {
        let next = tiles
            .get(TILES as usize)
            .filter(|tile| (tile.n as u64) * WIDTH < size);
        let is_beyond = match next.and_then(|tile| tile.first_at.zip(tile.first_id)) {
            Some(next) => (at, id) >= next,
            None => (at, id) > (log.last_at, log.last_id),
        };
        if !is_beyond {
            return changed(format!("event {id} of {at} has no entry in the log"));
        }
    }
    Ok(chunk)
}

/// Lists what the events that are not sealed yet say about deletions by retention.
pub async fn list_latest_drops(db: &Database, log: &LogState) -> Result<Vec<u64>, VerifyError> {
    let last = (log.last_at, log.last_id);
    let limit = TILES * WIDTH as i64;
    let events = db.run(Lane::Reads, async move |mut connection: Checkout| {
        list_log_events(&mut connection, Some(last), limit, leaf).await
    });
    let events = events.await?.into_iter();
    Ok(events.filter_map(|(_, leaf)| leaf.pruned).collect())
}

/// Returns the number of entries of a piece.
fn count_entries(n: i64, size: u64) -> u64 {
    let start = n as u64 * WIDTH;
    size.saturating_sub(start).min(TILES as u64 * WIDTH)
}

/// Returns the number of entries of a piece whose events are not compared.
fn skipped(n: i64, first: Option<u64>, size: u64) -> u64 {
    let start = n as u64 * WIDTH;
    match first {
        Some(first) => first.saturating_sub(start).min(count_entries(n, size)),
        None => count_entries(n, size),
    }
}

/// Returns the hashes of the tiles of a piece, without entries that were sealed meanwhile.
fn check_tiles(n: i64, tiles: &[TileRow], size: u64) -> Result<Vec<Vec<u8>>, VerifyError> {
    let entries = count_entries(n, size);
    let mut checked = Vec::new();
    for (offset, start) in (0..entries).step_by(WIDTH as usize).enumerate() {
        let length = (entries - start).min(WIDTH) as usize * HASH;
        let index = n + offset as i64;
        let tile = tiles.get(offset).filter(|tile| tile.n == index);
        let hashes = tile.and_then(|tile| tile.hashes.get(..length));
        let Some(hashes) = hashes else {
            return changed(format!("tile {index} of level 0 is missing or too short"));
        };
        checked.push(hashes.to_vec());
    }
    Ok(checked)
}
