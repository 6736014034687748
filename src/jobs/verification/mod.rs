//! Verifies the sealed audit log: every event against its hash, the hashes against the root, and the root against the
//! checkpoints that somebody kept.

mod events;
mod export;
mod records;
mod tree;

use std::collections::HashSet;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::db::audit_log::{LogState, find_log};
use crate::db::{Checkout, Database, DbError, Lane};
use crate::seal::checkpoint::{Head, open_checkpoint};
use crate::seal::tree::{Hash, WIDTH};
use events::{TILES, find_first_entry, list_latest_drops, read_chunk};
use export::compare_export;
use records::{check_erasures, compare_records};
use tree::Rebuilt;

/// The length of a hash in bytes.
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

/// The evidence that the log is compared with.
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
/// Reads `parallelism` pieces of the log at the same time. Calls `progress` with the numbers of entries that are done and
/// of all.
///
/// # Errors
/// Returns [`VerifyError::Changed`] with the first difference.
pub async fn verify_log(
    db: &Database,
    evidence: &Evidence,
    export: Option<Box<dyn BufRead>>,
    parallelism: usize,
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
    let mut chunks = stream::iter(chunks.map(tokio::spawn)).buffered(parallelism);
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
        return Err(VerifyError::CannotTell("no event is sealed".into()));
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
