//! A primary with a synchronous standby, and the loss of the primary.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::Executor;
use token_vendor::dev::postgres::remove;
use tokio::process::Command;

use super::cluster::own_folder;
use super::eventually;
use super::server::Server;

/// A primary and its synchronous standby.
pub struct Pair {
    pub primary: Server,
    pub standby: Server,
}

impl Pair {
    /// Starts both servers. Returns `None` if this Postgres has no `pg_basebackup`.
    pub async fn start() -> Option<Pair> {
        let primary = Server::start(&[]).await;
        if primary.program("pg_basebackup").is_none() {
            primary.stop().await;
            return None;
        }
        Some(Pair::complete(primary, own_folder()).await)
    }

    /// Returns the folders of the sockets of both servers. The promotion does not change them.
    pub fn socket_dirs(&self) -> [&Path; 2] {
        [&self.primary, &self.standby].map(|server| server.postgres.socket_dir())
    }

    /// Kills all processes of the primary and promotes the standby. The new primary has no standby yet.
    ///
    /// No commit reaches the standby in the time `silence` before the kill. So none of them may be acknowledged.
    pub async fn promote(self, silence: Duration) -> Promoted {
        let Pair { primary, standby } = self;
        let sender = "SELECT pid::bigint FROM pg_stat_replication";
        let sender = i32::try_from(primary.count(sender).await).unwrap();
        kill(Pid::from_raw(sender), Signal::SIGSTOP).unwrap();
        tokio::time::sleep(silence).await;
        kill_processes(primary.postgres.pid());
        let Server { postgres, data_dir } = primary;
        postgres.stop().await.unwrap();

        // A primary that waits for the standby that it was itself would answer nothing.
        standby.set("synchronous_standby_names", "").await;
        let mut admin = standby.admin().await;
        admin.execute("SELECT pg_promote()").await.unwrap();
        Promoted {
            primary: standby,
            lost: data_dir,
        }
    }

    /// Stops both servers and removes their data.
    pub async fn stop(self) {
        self.standby.stop().await;
        self.primary.stop().await;
    }

    /// Copies the primary to a folder, starts a standby there, and makes the commits wait for it.
    async fn complete(primary: Server, data_dir: PathBuf) -> Pair {
        let owner = fs::metadata(primary.data_dir.join("pgdata")).unwrap();
        let pgdata = data_dir.join("pgdata");
        fs::create_dir(&data_dir).unwrap();
        DirBuilder::new().mode(0o700).create(&pgdata).unwrap();
        fs::copy(
            primary.data_dir.join(".token-vendor"),
            data_dir.join(".token-vendor"),
        )
        .unwrap();
        chown(&pgdata, Some(owner.uid()), Some(owner.gid())).unwrap();
        let copied = Command::new(primary.program("pg_basebackup").expect("pg_basebackup"))
            .arg("-D")
            .arg(&pgdata)
            .args(["-d", &primary.postgres.url("postgres")])
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .uid(owner.uid())
            .gid(owner.gid())
            .current_dir("/")
            .output()
            .await
            .unwrap();
        assert!(copied.status.success(), "{copied:?}");
        let retry = [("wal_retrieve_retry_interval", "100ms")];
        let standby = Server::start_in(data_dir, &retry).await;
        primary.set("synchronous_standby_names", "'*'").await;
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'";
        eventually("the standby is synchronous", async || {
            primary.count(synchronous).await == 1
        })
        .await;
        Pair { primary, standby }
    }
}

/// A promoted standby, and the folder of the lost primary.
pub struct Promoted {
    pub primary: Server,
    lost: PathBuf,
}

impl Promoted {
    /// Replaces the lost primary by a standby with the same socket.
    pub async fn add_standby(self) -> Pair {
        remove(&self.lost).unwrap();
        Pair::complete(self.primary, self.lost).await
    }
}

/// Kills a server. The postmaster is stopped first, so that it neither restarts nor warns its other processes.
pub fn kill_processes(postmaster: u32) {
    let pid = Pid::from_raw(postmaster.cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    for child in children(pid) {
        let _ = kill(child, Signal::SIGKILL);
    }
    kill(pid, Signal::SIGKILL).unwrap();
}

/// Returns the child processes of a process that forks with its first thread.
pub fn children(pid: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(Pid::from_raw).collect()
}
