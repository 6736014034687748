//! `postmaster.pid`, which Postgres keeps in the cluster while it runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::folder::is_alive;

/// What the file says. It outlives a server that was killed.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct PidFile {
    pub pid: i32,
    /// Seconds since 1970: tells apart two servers that happened to get the same process id.
    started: String,
    pub is_ready: bool,
}

impl PidFile {
    pub fn read(pgdata: &Path) -> Option<PidFile> {
        parse(&fs::read_to_string(pgdata.join("postmaster.pid")).ok()?)
    }

    pub fn is_of_same_server(&self, other: &PidFile) -> bool {
        (self.pid, &self.started) == (other.pid, &other.started)
    }

    /// Whether its process is alive and is the server of this cluster, not one that the system has
    /// given the same id since (usual in containers, where ids begin anew).
    pub fn is_running(&self, pgdata: &Path) -> bool {
        if !is_alive(self.pid) {
            return false;
        }
        let pid = self.pid.to_string();
        let command_line = match fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(line) => line,
            Err(_) => match Command::new("ps")
                .args(["-o", "args=", "-p", &pid])
                .output()
            {
                Ok(output) => output.stdout,
                Err(_) => return true,
            },
        };
        String::from_utf8_lossy(&command_line).contains(&*pgdata.to_string_lossy())
    }
}

/// Lines 1, 3 and 8 of the file: pid, start time, status (from `miscadmin.h`).
pub(super) fn parse(text: &str) -> Option<PidFile> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    let started = lines.nth(1)?.to_string();
    let is_ready = lines.nth(4).is_some_and(|status| status.trim() == "ready");
    Some(PidFile {
        pid,
        started,
        is_ready,
    })
}
