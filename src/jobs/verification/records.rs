//! Compares the log with other records: erasures and tokens.

use std::collections::HashSet;

use chrono::DateTime;
use serde::Deserialize;
use uuid::Uuid;

use super::{Evidence, VerifyError, changed};
use crate::db::audit_log::{
    LogState, Position, compare_mints, compare_tokens, find_tile_of_event, list_erasures,
};
use crate::db::clock::service_time;
use crate::db::{Checkout, Database, DbError, Lane};
use crate::jobs::sealing::hash_event;
use crate::model::EventRef;

/// The number of tokens or mints that one statement compares.
const PAGE: i64 = 5_000;

/// Checks that a sealed `user.erased` event, or one that is not sealed yet, names each redacted entry.
pub async fn check_erasures(
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
                let entry = tile.and_then(|tile| tile.find_entry(&hash));
                found.push((position, detail, entry.is_some()));
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
pub async fn compare_records(db: &Database, evidence: &Evidence) -> Result<(), VerifyError> {
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
