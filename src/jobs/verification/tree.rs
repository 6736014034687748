//! The tree that the hashes of the log make.

use super::{Evidence, HASH, VerifyError, changed};
use crate::db::audit_log::list_upper_tiles;
use crate::db::{Checkout, Database, Lane};
use crate::seal::checkpoint::Head;
use crate::seal::tree::{Edge, Tile, WIDTH};

/// The tree that the hashes of all entries make.
pub struct Rebuilt<'a> {
    /// The right edge of the tree so far.
    pub edge: Edge,
    /// The full tiles above level 0.
    upper: Vec<Tile>,
    /// The kept checkpoints, the smallest last.
    checkpoints: Vec<&'a (String, Head)>,
}

impl<'a> Rebuilt<'a> {
    /// Starts with an empty tree.
    pub fn new(evidence: &'a Evidence) -> Self {
        let mut checkpoints: Vec<_> = evidence.checkpoints.iter().collect();
        checkpoints.sort_by_key(|(_, head)| std::cmp::Reverse(head.size));
        Rebuilt {
            edge: Edge::new(0, []).expect("an empty tree has no tiles"),
            upper: Vec::new(),
            checkpoints,
        }
    }

    /// Appends the next tile of entries. Compares the kept checkpoints that end in it.
    pub fn push(&mut self, hashes: &[u8]) -> Result<(), VerifyError> {
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
    pub async fn compare_upper_tiles(&self, db: &Database) -> Result<(), VerifyError> {
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
