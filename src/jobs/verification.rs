//! Verifies the sealed audit log: every event against its hash, the hashes against the root, and the root against the
//! checkpoints that somebody kept.

use std::collections::HashSet;
use std::io::BufRead;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::audit_log::{
    LogState, Position, TileRow, compare_mints, compare_tokens, find_log, find_tile_of_event,
    just_before, list_erasures, list_log_events, list_tiles_of_events, list_upper_tiles,
};
use crate::db::clock::service_time;
use crate::db::{Checkout, Database, DbError, Lane};
use crate::jobs::sealing::hash_event;
use crate::model::{EventKind, EventRef};
use crate::seal::checkpoint::{Head, open_checkpoint};
use crate::seal::tree::{Edge, Hash, Tile, WIDTH, hash_entry};

/// The number of tiles that one piece of work verifies: 16,384 events.
const TILES: i64 = 64;

/// The number of tokens or mints that one statement compares.
const PAGE: i64 = 5_000;

const HASH: usize = size_of::<Hash>();

/// The reason why the log is not intact, or why nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Something was changed after it was sealed.
    #[error("{0}")]
    Changed(String),
    /// The database could not be read.
    #[error(transparent)]
    Database(#[from] DbError),
    /// There is nothing to verify, or the export could not be read.
    #[error("{0}")]
    CannotTell(String),
}

fn changed<T>(what: String) -> Result<T, VerifyError> {
    Err(VerifyError::Changed(what))
}

/// What a verification compares the log with.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Checkpoints that were kept, with the name of their source.
    pub checkpoints: Vec<(String, Head)>,
    /// The key that verifies the checkpoint of the database.
    pub verifier_key: Option<String>,
    /// The retention of tokens. The mint of a younger event has its token.
    pub token_retention: Option<Duration>,
}

/// The result for a log that is intact.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// The number of entries in the log.
    pub size: u64,
    /// The first entry that was compared with its event. Retention deleted the events before it.
    pub first: u64,
    /// The number of entries that were compared with their events.
    pub compared: u64,
    /// The number of kept checkpoints that the log continues.
    pub checkpoints: usize,
    /// The number of entries whose events were redacted. A sealed `user.erased` event covers each.
    pub redacted: usize,
    /// True if the signature of the checkpoint was verified.
    pub is_signed: bool,
}

/// Verifies the log. Compares the hashes with the lines of `export`, or with the events of the database without one.
/// Calls `progress` with the numbers of entries that are done and of all.
///
/// # Errors
/// Returns [`VerifyError::Changed`] with the first difference.
pub async fn verify_log(
    db: &Database,
    evidence: &Evidence,
    export: Option<Box<dyn BufRead>>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified, VerifyError> {
    let log = db.run(Lane::Reads, async |mut connection: Checkout| {
        find_log(&mut connection).await
    });
    let log = Arc::new(log.await?);
    let size = log.size as u64;
    let head = check_head(&log, evidence)?;
    let (mut compared, mut redacted) = (0..0, Vec::new());
    let first = match export {
        Some(lines) => {
            (compared, redacted) = compare_export(db, &log, lines).await?;
            None
        }
        None => Some(find_first_entry(db, &log).await?),
    };

    let mut tree = Rebuilt::new(evidence);
    let mut pruned = HashSet::new();
    let indexes = (0..).step_by(TILES as usize);
    let indexes = indexes.take_while(|n| (*n as u64) * WIDTH < size);
    let chunks = indexes.map(|n| read_chunk(db.clone(), log.clone(), n, first));
    let mut chunks = stream::iter(chunks.map(tokio::spawn)).buffered(parallelism());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| DbError::ShuttingDown)??;
        pruned.extend(chunk.pruned);
        redacted.extend(chunk.redacted);
        for hashes in &chunk.tiles {
            tree.push(hashes)?;
        }
        progress(tree.edge.size(), size);
    }
    drop(chunks);
    if tree.edge.root() != head.root {
        return changed(format!(
            "the hashes of the {size} entries lead to another root than the checkpoint has"
        ));
    }
    tree.compare_upper_tiles(db).await?;
    check_erasures(db, &log, &redacted).await?;
    if let Some(first) = first {
        pruned.extend(list_latest_drops(db, &log).await?);
        if first > 0 && !pruned.contains(&first) {
            return changed(format!(
                "the events of the first {first} entries are missing, and no sealed event records that retention \
                 deleted them"
            ));
        }
        compared = first..size;
        compare_records(db, evidence).await?;
    }
    Ok(Verified {
        size,
        first: compared.start,
        compared: compared.end - compared.start,
        checkpoints: evidence.checkpoints.len(),
        redacted: redacted.len(),
        is_signed: evidence.verifier_key.is_some(),
    })
}

fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Checks the checkpoint of the database, and that the log is not shorter than a kept one.
fn check_head(log: &LogState, evidence: &Evidence) -> Result<Head, VerifyError> {
    for (name, kept) in &evidence.checkpoints {
        if kept.size > log.size as u64 {
            return changed(format!(
                "the checkpoint {name} has {} entries, the log has only {}",
                kept.size, log.size
            ));
        }
    }
    let Some(checkpoint) = &log.checkpoint else {
        return Err(VerifyError::CannotTell("no event is sealed yet".into()));
    };
    let head = open_checkpoint(checkpoint, evidence.verifier_key.as_deref())
        .map_err(|why| VerifyError::Changed(format!("the checkpoint of the database: {why}")))?;
    if head.size != log.size as u64 {
        return changed(format!(
            "the checkpoint of the database has {} entries, the log has {}",
            head.size, log.size
        ));
    }
    Ok(head)
}

/// Finds the entry of the oldest event.
async fn find_first_entry(db: &Database, log: &LogState) -> Result<u64, VerifyError> {
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
    let entry = events.iter().enumerate().find_map(|(index, (_, hash))| {
        let offset = tile.hashes.chunks(HASH).position(|leaf| leaf == hash)?;
        Some(tile.n as u64 * WIDTH + offset.checked_sub(index)? as u64)
    });
    match entry {
        Some(entry) => Ok(entry),
        None if tile.first_at.zip(tile.first_id) == Some(position) => Ok(tile.n as u64 * WIDTH),
        None if tile.n == 0 => Ok(0),
        None => changed(format!("the oldest event {} has no entry", position.1)),
    }
}

/// The verified hashes of consecutive tiles.
struct Chunk {
    tiles: Vec<Vec<u8>>,
    /// The numbers of entries that retention deleted, as sealed events record them.
    pruned: Vec<u64>,
    /// The entries whose events were redacted.
    redacted: Vec<u64>,
}

/// What a verification needs of an event.
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
async fn read_chunk(
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
                    "entry {index} differs: event {id} of {at} is another one, or was changed"
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
async fn list_latest_drops(db: &Database, log: &LogState) -> Result<Vec<u64>, VerifyError> {
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

/// The tree that the hashes of all entries make.
struct Rebuilt<'a> {
    edge: Edge,
    /// The full tiles above level 0.
    upper: Vec<Tile>,
    /// The kept checkpoints, the smallest last.
    checkpoints: Vec<&'a (String, Head)>,
}

impl<'a> Rebuilt<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut checkpoints: Vec<_> = evidence.checkpoints.iter().collect();
        checkpoints.sort_by_key(|(_, head)| std::cmp::Reverse(head.size));
        Rebuilt {
            edge: Edge::new(0, []).expect("an empty tree has no tiles"),
            upper: Vec::new(),
            checkpoints,
        }
    }

    /// Appends the next tile of entries. Compares the kept checkpoints that end in it.
    fn push(&mut self, hashes: &[u8]) -> Result<(), VerifyError> {
        let start = self.edge.size();
        let end = start + (hashes.len() / HASH) as u64;
        while let Some((name, head)) = self.checkpoints.last()
            && head.size <= end
        {
            let mut edge = self.edge.clone();
            let part = hashes.chunks(HASH).take((head.size - start) as usize);
            push_each(&mut edge, part, &mut Vec::new());
            if edge.root() != head.root {
                return changed(format!(
                    "the log does not continue the checkpoint {name}: its first {} entries have another root",
                    head.size
                ));
            }
            self.checkpoints.pop();
        }
        if end - start == WIDTH {
            self.edge.push_tile(hashes, &mut self.upper);
        } else {
            push_each(&mut self.edge, hashes.chunks(HASH), &mut self.upper);
        }
        Ok(())
    }

    /// Compares the tiles above level 0 with the stored ones, which can have grown meanwhile.
    async fn compare_upper_tiles(&self, db: &Database) -> Result<(), VerifyError> {
        let stored = db.run(Lane::Reads, async |mut connection: Checkout| {
            list_upper_tiles(&mut connection).await
        });
        let stored = stored.await?;
        let partial: Vec<_> = self.edge.partial_tiles().collect();
        let rebuilt = self.upper.iter().chain(&partial);
        for tile in rebuilt.filter(|tile| tile.level > 0) {
            let key = (i16::from(tile.level), tile.n as i64);
            let found = stored.iter().find(|stored| (stored.level, stored.n) == key);
            if !found.is_some_and(|found| found.hashes.starts_with(&tile.hashes)) {
                return changed(format!("tile {} of level {} differs", tile.n, tile.level));
            }
        }
        Ok(())
    }
}

fn push_each<'a>(edge: &mut Edge, hashes: impl Iterator<Item = &'a [u8]>, full: &mut Vec<Tile>) {
    for hash in hashes {
        edge.push(hash.try_into().expect("a chunk of 32 bytes"), full);
    }
}

/// Compares the lines of an export with the hashes of the log. Returns the indexes of the entries that it has, and of
/// the redacted ones.
async fn compare_export(
    db: &Database,
    log: &LogState,
    lines: Box<dyn BufRead>,
) -> Result<(Range<u64>, Vec<u64>), VerifyError> {
    let (mut range, mut hashes, mut redacted) = (0..0, Vec::new(), Vec::new());
    for (number, line) in (1..).zip(lines.split(b'\n')) {
        let line = line.map_err(|why| VerifyError::CannotTell(format!("the export: {why}")))?;
        if range.end >= log.size as u64 && range.end > 0 {
            // Later lines are not sealed yet.
            break;
        }
        if number == 1 {
            range.start = find_entry_of_line(db, &line).await?;
            range.end = range.start;
        }
        let n = (range.end / WIDTH) as i64;
        if hashes.is_empty() || range.end % WIDTH == 0 {
            let tile = db.run(Lane::Reads, async move |mut connection: Checkout| {
                list_tiles_of_events(&mut connection, n..n + 1).await
            });
            hashes = tile
                .await?
                .pop()
                .map(|tile| tile.hashes)
                .unwrap_or_default();
        }
        let offset = (range.end % WIDTH) as usize * HASH;
        let is_equal = hashes.get(offset..offset + HASH) == Some(&hash_entry(&line)[..]);
        if !is_equal && is_redacted(&line) {
            redacted.push(range.end);
        } else if !is_equal {
            return changed(format!(
                "entry {} differs: line {number} of the export is another one, or was changed",
                range.end
            ));
        }
        range.end += 1;
    }
    if range.is_empty() {
        return Err(VerifyError::CannotTell(
            "the export has no sealed event".into(),
        ));
    }
    Ok((range, redacted))
}

fn is_redacted(line: &[u8]) -> bool {
    let event = serde_json::from_slice::<serde_json::Value>(line).unwrap_or_default();
    event["detail"]["redacted"] == true && event["userId"].is_null()
}

/// Finds the entry of the first line of an export.
async fn find_entry_of_line(db: &Database, line: &[u8]) -> Result<u64, VerifyError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Event {
        id: Uuid,
        occurred_at: DateTime<Utc>,
    }
    let Ok(event) = serde_json::from_slice::<Event>(line) else {
        return Err(VerifyError::CannotTell(
            "line 1 of the export is not an event in NDJSON".into(),
        ));
    };
    let position = (event.occurred_at, event.id);
    let tile = db.run(Lane::Reads, async move |mut connection: Checkout| {
        find_tile_of_event(&mut connection, position).await
    });
    let hash = hash_entry(line);
    let tile = tile.await?;
    let entry = tile.and_then(|tile| {
        let offset = tile.hashes.chunks(HASH).position(|leaf| *leaf == hash)?;
        Some(tile.n as u64 * WIDTH + offset as u64)
    });
    match entry {
        Some(entry) => Ok(entry),
        None => changed(format!(
            "line 1 of the export, event {}, has no entry",
            event.id
        )),
    }
}

/// Checks that a sealed `user.erased` event, or one that is not sealed yet, names each redacted entry.
async fn check_erasures(
    db: &Database,
    log: &LogState,
    redacted: &[u64],
) -> Result<(), VerifyError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Erasure {
        leaf_indexes: Vec<u64>,
    }
    let mut covered = HashSet::new();
    let mut after = None;
    while redacted.iter().any(|index| !covered.contains(index)) {
        let page = db.run(Lane::Reads, async move |mut connection: Checkout| {
            let erasure = |event: &EventRef<'_>| {
                let detail = event.detail.map(|detail| detail.get().to_owned());
                (hash_event(event), detail)
            };
            let events = list_erasures(&mut connection, after, erasure).await?;
            let mut found = Vec::new();
            for (position, (hash, detail)) in events {
                let tile = find_tile_of_event(&mut connection, position).await?;
                let is_in = |tile: &TileRow| tile.hashes.chunks(HASH).any(|leaf| *leaf == hash);
                found.push((position, detail, tile.as_ref().is_some_and(is_in)));
            }
            Ok(found)
        });
        let page = page.await?;
        let Some((last, ..)) = page.last() else { break };
        after = Some(*last);
        for (position, detail, is_sealed) in page {
            let erasure = detail.and_then(|detail| serde_json::from_str::<Erasure>(&detail).ok());
            if is_sealed || position > (log.last_at, log.last_id) {
                covered.extend(erasure.into_iter().flat_map(|erasure| erasure.leaf_indexes));
            }
        }
    }
    match redacted.iter().find(|index| !covered.contains(index)) {
        Some(index) => changed(format!(
            "entry {index} was redacted, and no sealed event records the erasure"
        )),
        None => Ok(()),
    }
}

/// Compares the tokens with the events of their mints.
async fn compare_records(db: &Database, evidence: &Evidence) -> Result<(), VerifyError> {
    let start = (DateTime::UNIX_EPOCH, Uuid::nil());
    let compare =
        async |mut connection: Checkout, after| compare_tokens(&mut connection, after, PAGE).await;
    if let Some((at, id)) = find_difference(db, start, compare).await? {
        return changed(format!(
            "the token {id} of {at} differs from the event of its mint, or has none"
        ));
    }
    // A token is deleted by retention no earlier than that after its mint.
    let oldest = evidence
        .token_retention
        .map(|retention| service_time() - retention);
    let start = (oldest.unwrap_or(DateTime::UNIX_EPOCH), Uuid::nil());
    let compare =
        async |mut connection: Checkout, after| compare_mints(&mut connection, after, PAGE).await;
    if let Some((at, id)) = find_difference(db, start, compare).await? {
        return changed(format!("the token of event {id} of {at} is missing"));
    }
    Ok(())
}

/// Reads pages of comparisons until one failed. Returns its position.
async fn find_difference<Fut>(
    db: &Database,
    mut after: Position,
    compare: impl Fn(Checkout, Position) -> Fut + Copy + Send + 'static,
) -> Result<Option<Position>, VerifyError>
where
    Fut: Future<Output = Result<Vec<(Position, bool)>, DbError>> + Send + 'static,
{
    loop {
        let page = db.run(Lane::Reads, move |connection| compare(connection, after));
        let page = page.await?;
        let Some((last, _)) = page.last() else {
            return Ok(None);
        };
        after = *last;
        if let Some((position, _)) = page.iter().find(|(_, is_equal)| !is_equal) {
            return Ok(Some(*position));
        }
    }
}
