//! The Merkle tree of the sealed audit log, stored in tiles (c2sp.org/tlog-tiles).

use std::cell::RefCell;

use tlog_tiles::tile::Tile as Coordinates;
use tlog_tiles::tlog::{self, Error, HASH_SIZE, HashReader};

/// A hash of the tree: SHA-256.
pub type Hash = [u8; HASH_SIZE];

/// The height of a tile. A full tile has 2⁸ hashes.
const HEIGHT: u8 = 8;

/// The number of hashes in a full tile.
pub const WIDTH: u64 = 1 << HEIGHT;

/// A tile: consecutive hashes of one level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tile {
    /// The level of tiles, 0 for the hashes of entries.
    pub level: u8,
    /// The index within the level.
    pub n: u64,
    /// The hashes, 1 to 256.
    pub hashes: Vec<u8>,
}

/// Returns the hash of an entry (RFC 6962, section 2.1).
pub fn hash_entry(entry: &[u8]) -> Hash {
    tlog::record_hash(entry).0
}

/// The right edge of a tree: the partial tile of each level. A tree grows only there.
#[derive(Clone, Debug)]
pub struct Edge {
    size: u64,
    /// The hashes of the partial tile of each level, fewer than 256 each.
    levels: Vec<Vec<u8>>,
}

impl Edge {
    /// Creates the edge of a tree from its partial tiles. Returns `None` if they are not those of a tree of this size.
    pub fn new(size: u64, tiles: impl IntoIterator<Item = Tile>) -> Option<Self> {
        let mut levels = Vec::new();
        while size >> (HEIGHT * levels.len() as u8) > 0 {
            levels.push(Vec::new());
        }
        let mut edge = Edge { size, levels };
        for tile in tiles {
            let level = usize::from(tile.level);
            if level >= edge.levels.len() || tile.n != edge.partial_index(level) {
                return None;
            }
            edge.levels[level] = tile.hashes;
        }
        let is_complete = (0..edge.levels.len()).all(|level| {
            let width = (size >> (usize::from(HEIGHT) * level)) % WIDTH;
            edge.levels[level].len() as u64 == width * HASH_SIZE as u64
        });
        is_complete.then_some(edge)
    }

    /// Returns the index of the partial tile of a level.
    fn partial_index(&self, level: usize) -> u64 {
        self.size >> (usize::from(HEIGHT) * (level + 1))
    }

    /// Returns the number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends the hash of an entry. Adds the tiles that it fills to `full`.
    pub fn push(&mut self, entry: Hash, full: &mut Vec<Tile>) {
        self.size += 1;
        self.push_at(0, entry, full);
    }

    /// Appends a full tile of entries to a tree without a partial one. Adds the tiles that it fills on higher levels to
    /// `full`.
    pub fn push_tile(&mut self, hashes: &[u8], full: &mut Vec<Tile>) {
        self.size += WIDTH;
        if self.levels.is_empty() {
            self.levels.push(Vec::new());
        }
        self.push_at(1, Coordinates::subtree_hash(hashes).0, full);
    }

    fn push_at(&mut self, first_level: usize, mut hash: Hash, full: &mut Vec<Tile>) {
        for level in first_level.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let hashes = &mut self.levels[level];
            hashes.extend(hash);
            if hashes.len() < WIDTH as usize * HASH_SIZE {
                return;
            }
            let hashes = std::mem::take(hashes);
            hash = Coordinates::subtree_hash(&hashes).0;
            full.push(Tile {
                level: level as u8,
                n: self.partial_index(level) - 1,
                hashes,
            });
        }
    }

    /// Returns the partial tiles.
    pub fn partial_tiles(&self) -> impl Iterator<Item = Tile> {
        let filled = self.levels.iter().enumerate();
        filled
            .filter(|(_, hashes)| !hashes.is_empty())
            .map(|(level, hashes)| Tile {
                level: level as u8,
                n: self.partial_index(level),
                hashes: hashes.clone(),
            })
    }

    /// Returns the root of the tree.
    pub fn root(&self) -> Hash {
        tlog::tree_hash(self.size, self)
            .expect("the edge has every complete subtree")
            .0
    }
}

impl HashReader for Edge {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, Error> {
        let read = |index: &u64| {
            let tile = tile_of(*index);
            tile.hash_at_index(&self.levels[usize::from(tile.level())], *index)
        };
        indexes.iter().map(read).collect()
    }
}

/// Lists the levels and indexes of the tiles that [`prove_inclusion`] needs. Returns `None` if the tree has no such entry.
pub fn list_tiles_of_proof(size: u64, leaf: u64) -> Option<Vec<(u8, u64)>> {
    let needed = RefCell::new(Vec::new());
    let collect = ReadWith(|indexes: &[u64]| {
        let tiles = indexes.iter().map(|index| tile_of(*index));
        needed
            .borrow_mut()
            .extend(tiles.map(|tile| (tile.level(), tile.level_index())));
        Ok(vec![tlog::EMPTY_HASH; indexes.len()])
    });
    tlog::prove_record(size, leaf, &collect).ok()?;
    let mut needed = needed.into_inner();
    needed.sort_unstable();
    needed.dedup();
    Some(needed)
}

/// Computes the inclusion proof of an entry in a tree of this size (RFC 6962, section 2.1.1). Returns `None` if the tree
/// has no such entry, or a tile is missing.
pub fn prove_inclusion(size: u64, leaf: u64, tiles: &[Tile]) -> Option<Vec<Hash>> {
    let look_up = ReadWith(|indexes: &[u64]| {
        let read = |index: &u64| {
            let key = tile_of(*index);
            let tile = tiles
                .iter()
                .find(|tile| (tile.level, tile.n) == (key.level(), key.level_index()))
                .filter(|tile| tile.hashes.len() >= key.width() as usize * HASH_SIZE);
            key.hash_at_index(&tile.ok_or(Error::InvalidTile)?.hashes, *index)
        };
        indexes.iter().map(read).collect()
    });
    let proof = tlog::prove_record(size, leaf, &look_up).ok()?;
    Some(proof.into_iter().map(|hash| hash.0).collect())
}

/// Returns true if an inclusion proof leads from the hash of an entry to the root of a tree of this size.
pub fn check_inclusion(proof: &[Hash], size: u64, root: Hash, leaf: u64, entry: Hash) -> bool {
    let proof = proof.iter().copied().map(tlog::Hash).collect();
    tlog::check_record(&proof, size, tlog::Hash(root), leaf, tlog::Hash(entry)).is_ok()
}

/// Returns the smallest tile that has a stored hash.
fn tile_of(index: u64) -> Coordinates {
    Coordinates::from_index(HEIGHT, index)
}

/// A reader of hashes that calls a function.
struct ReadWith<F>(F);

impl<F: Fn(&[u64]) -> Result<Vec<tlog::Hash>, Error>> HashReader for ReadWith<F> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, Error> {
        (self.0)(indexes)
    }
}

/// A tile that a caller of the tlog-tiles interface requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TilePath {
    /// The level, or `None` for a bundle of entries.
    pub level: Option<u8>,
    /// The index within the level.
    pub n: u64,
    /// The number of hashes or entries, 1 to 256.
    pub width: u64,
}

impl TilePath {
    /// Parses the part of a path after `/tile/`: `0/x001/234`, `1/000.p/17` or `entries/000`.
    pub fn parse(path: &str) -> Option<Self> {
        let (level, index) = path.split_once('/')?;
        let level = match level {
            "entries" => None,
            text => {
                let level = text.parse::<u8>().ok();
                Some(level.filter(|level| *level < 64 && level.to_string() == text)?)
            }
        };
        // `from_path` panics for a width of 0.
        let width = index.rsplit_once(".p/").map(|(_, width)| width.parse());
        if width == Some(Ok(0u32)) {
            return None;
        }
        let path = match level {
            None => format!("tile/{HEIGHT}/data/{index}"),
            Some(level) => format!("tile/{HEIGHT}/{level}/{index}"),
        };
        let tile = Coordinates::from_path(&path).ok()?;
        Some(TilePath {
            level,
            n: tile.level_index(),
            width: tile.width().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tlog_tiles::tlog::stored_hashes_for_record_hash;

    use super::*;

    fn leaf(n: u64) -> Hash {
        hash_entry(&n.to_be_bytes())
    }

    /// Builds a tree from one entry after the other with the reference functions of `tlog_tiles`.
    fn reference_roots(sizes: u64) -> Vec<Hash> {
        let mut stored: Vec<tlog::Hash> = Vec::new();
        let mut roots = Vec::new();
        for n in 0..sizes {
            let reader = ReadWith(|indexes: &[u64]| {
                Ok(indexes
                    .iter()
                    .map(|index| stored[*index as usize])
                    .collect())
            });
            let hashes = stored_hashes_for_record_hash(n, tlog::Hash(leaf(n)), &reader).unwrap();
            stored.extend(hashes);
            let reader = ReadWith(|indexes: &[u64]| {
                Ok(indexes
                    .iter()
                    .map(|index| stored[*index as usize])
                    .collect())
            });
            roots.push(tlog::tree_hash(n + 1, &reader).unwrap().0);
        }
        roots
    }

    #[test]
    fn an_edge_that_is_stored_and_read_again_has_the_root_of_all_entries() {
        let mut edge = Edge::new(0, []).unwrap();
        let mut full = Vec::new();
        for (n, root) in reference_roots(1_000).into_iter().enumerate() {
            edge.push(leaf(n as u64), &mut full);
            edge = Edge::new(edge.size(), edge.partial_tiles()).unwrap();
            assert_eq!(edge.root(), root, "size {}", n + 1);
        }
        let complete = full.iter().map(|tile| (tile.level, tile.n));
        assert!(complete.eq([(0, 0), (0, 1), (0, 2)]));
    }

    #[test]
    fn an_edge_needs_the_tiles_of_its_size() {
        let mut edge = Edge::new(0, []).unwrap();
        let mut full = Vec::new();
        (0..300).for_each(|n| edge.push(leaf(n), &mut full));
        let tiles: Vec<_> = edge.partial_tiles().collect();
        assert!(Edge::new(300, tiles.clone()).is_some());
        assert!(Edge::new(301, tiles.clone()).is_none());
        assert!(Edge::new(44, tiles.clone()).is_none());
        assert!(Edge::new(300, tiles[1..].to_vec()).is_none());
    }

    #[test]
    fn each_entry_has_a_proof() {
        let size = 700;
        let mut edge = Edge::new(0, []).unwrap();
        let mut tiles = Vec::new();
        (0..size).for_each(|n| edge.push(leaf(n), &mut tiles));
        tiles.extend(edge.partial_tiles());
        let root = edge.root();
        for n in [0, 1, 255, 256, 511, 512, 698, 699] {
            let needed = list_tiles_of_proof(size, n).unwrap();
            let mut tiles = tiles.clone();
            tiles.retain(|tile| needed.contains(&(tile.level, tile.n)));
            let proof = prove_inclusion(size, n, &tiles).unwrap();
            assert!(check_inclusion(&proof, size, root, n, leaf(n)));
            for (proof, size, root, n, entry) in [
                (&proof[..], size, leaf(0), n, leaf(n)),
                (&proof, size, root, n, leaf(n + 1)),
                (&proof, size, root, (n + 1) % size, leaf(n)),
                (&proof, size + 1, root, size, leaf(n)),
                (&proof, size, root, size, leaf(n)),
                (&proof[1..], size, root, n, leaf(n)),
            ] {
                assert!(!check_inclusion(proof, size, root, n, entry));
            }
            assert_eq!(prove_inclusion(size, n, &[]), None);
        }
        assert_eq!(list_tiles_of_proof(size, 700), None);
    }

    #[test]
    fn paths_are_those_of_tlog_tiles() {
        let tile = |level, n, width| Some(TilePath { level, n, width });
        for (path, parsed) in [
            ("0/000", tile(Some(0), 0, 256)),
            ("1/x001/234.p/17", tile(Some(1), 1_234, 17)),
            ("entries/x001/x234/067", tile(None, 1_234_067, 256)),
            ("entries/000.p/255", tile(None, 0, 255)),
            ("data/000", None),
            ("00/000", None),
            ("0/000.p/00", None),
            ("0/000.p/-1", None),
            ("0/000.p", None),
            ("0/x000/x000", None),
            ("0/999/999/999/999/999/999/999/999/999", None),
            ("0/0", None),
            ("0/000.p/0", None),
            ("0/000.p/256", None),
            ("0/001/234", None),
            ("64/000", None),
            ("x/000", None),
            ("", None),
        ] {
            assert_eq!(TilePath::parse(path), parsed, "{path}");
        }
    }
}
