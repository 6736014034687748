//! A small disk in memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::Command;

use super::cluster::own_folder;

/// A mounted tmpfs. It is unmounted when this is dropped.
pub struct Tmpfs {
    pub path: PathBuf,
}

impl Tmpfs {
    /// Mounts a disk of this size, such as `200m`. Returns `None` if this process may not mount.
    pub fn mount(size: &str) -> Option<Tmpfs> {
        let path = own_folder();
        fs::create_dir(&path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&path)
            .output();
        let is_mounted = mount.is_ok_and(|output| output.status.success());
        if !is_mounted {
            fs::remove_dir(&path).unwrap();
        }
        is_mounted.then_some(Tmpfs { path })
    }

    /// Fills the disk up to a number of free bytes.
    pub fn fill(&self, free: u64) {
        let disk = nix::sys::statvfs::statvfs(&self.path).unwrap();
        let available = disk.blocks_available() * disk.fragment_size();
        let mut zeros = io::repeat(0).take(available.saturating_sub(free));
        let mut filler = File::create(self.path.join("filler")).unwrap();
        // The disk may become full meanwhile.
        let _ = io::copy(&mut zeros, &mut filler);
    }

    /// Frees the space that [`fill`](Self::fill) takes.
    pub fn free(&self) {
        let _ = fs::remove_file(self.path.join("filler"));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Detaches the disk even if a process still uses it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_dir(&self.path);
    }
}
