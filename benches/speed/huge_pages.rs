//! Reserves huge pages of 2 MB for Postgres, as its manual recommends.

use std::fs;

/// The file with the number of reserved huge pages.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Reserved huge pages. Dropping it releases them.
pub struct HugePages {
    /// The number of pages before the reservation.
    before: u64,
}

impl HugePages {
    /// Reserves pages until this many are free. Returns `None` if they already are, or without permission.
    pub fn reserve(pages: u64) -> Option<HugePages> {
        let before = read_meminfo("HugePages_Total")?;
        let missing = pages.saturating_sub(read_meminfo("HugePages_Free")?);
        if missing == 0 || read_meminfo("Hugepagesize") != Some(2048) {
            return None;
        }
        fs::write(POOL, (before + missing).to_string()).ok()?;
        Some(HugePages { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Linux releases pages that are in use as soon as they are free.
        let _ = fs::write(POOL, self.before.to_string());
    }
}

/// Returns true if at least this many pages are in use or promised to a process.
pub fn are_used(pages: u64) -> bool {
    let used = || {
        let (total, free) = (
            read_meminfo("HugePages_Total")?,
            read_meminfo("HugePages_Free")?,
        );
        Some(total - free + read_meminfo("HugePages_Rsvd")?)
    };
    used().is_some_and(|used| used >= pages)
}

/// Reads a number from `/proc/meminfo`.
fn read_meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.strip_prefix(':')?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}
