//! Memory for Postgres in pages of 2 MB, as its manual advises for a server that matters.

use std::fs;

/// How many there are is written here.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages that the system was asked for; dropping them gives them back.
pub struct HugePages {
    /// What there were before.
    before: u64,
}

impl HugePages {
    /// Sees to so many that are free. None where there are, or where we may not ask for more.
    pub fn reserve(pages: u64) -> Option<HugePages> {
        let (before, free) = (told("HugePages_Total")?, told("HugePages_Free")?);
        let missing = pages.saturating_sub(free);
        if missing == 0 || told("Hugepagesize") != Some(2048) {
            return None;
        }
        fs::write(POOL, (before + missing).to_string()).ok()?;
        Some(HugePages { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Those still in use are given back when they no longer are.
        let _ = fs::write(POOL, self.before.to_string());
    }
}

/// Whether that many are in use, or promised to whoever will use them.
pub fn are_taken(pages: u64) -> bool {
    let taken = || {
        let (total, free) = (told("HugePages_Total")?, told("HugePages_Free")?);
        Some(total - free + told("HugePages_Rsvd")?)
    };
    taken().is_some_and(|taken| taken >= pages)
}

/// What Linux tells of its memory.
fn told(name: &str) -> Option<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    line.strip_prefix(':')?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}
