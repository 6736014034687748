//! Compares the lines of an export with the hashes of the log.

use std::io::BufRead;
use std::ops::Range;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use super::{HASH, VerifyError, changed};
use crate::db::audit_log::{LogState, find_tile_of_event, list_tiles_of_events};
use crate::db::{Checkout, Database, Lane};
use crate::seal::tree::{WIDTH, hash_entry};

/// Compares the lines of an export with the hashes of the log. Returns the indexes of the entries that it has, and of
/// the redacted ones.
pub async fn compare_export(
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
                "entry {} differs: line {number} of the export has other content",
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
    match tile.and_then(|tile| tile.find_entry(&hash)) {
        Some(entry) => Ok(entry),
        None => changed(format!(
            "line 1 of the export, event {}, has no entry",
            event.id
        )),
    }
}
