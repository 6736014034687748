//! The data folder: made, marked, locked, removed.

use std::env;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::unistd::{User, geteuid};
use sha2::{Digest, Sha256};

const MARKER: &str = ".token-vendor";

/// How long one that is to be joined is given to start.
const STARTING: Duration = Duration::from_secs(60);
/// How long one that is being stopped is waited for.
const STOPPING: Duration = Duration::from_secs(10);

/// Where the data called `name` is kept: `/var/lib/token-vendor/NAME` for root, else under
/// `$XDG_DATA_HOME` or `~/.local/share`.
pub fn default_data_dir(name: &str) -> PathBuf {
    let base = match env::var_os("XDG_DATA_HOME").map(PathBuf::from) {
        _ if geteuid().is_root() => "/var/lib".into(),
        Some(base) if base.is_absolute() => base,
        _ => env::home_dir().unwrap_or_default().join(".local/share"),
    };
    base.join("token-vendor").join(name)
}

/// Deletes the data folder. One that does not exist is fine.
///
/// # Errors
/// It was not made here, or something runs in it: then nothing is deleted.
pub fn remove(data_dir: &Path) -> anyhow::Result<()> {
    if !data_dir.exists() {
        return Ok(());
    }
    let is_ours = data_dir.join(MARKER).is_file();
    ensure!(
        is_ours,
        "{} was not made by token-vendor",
        data_dir.display()
    );
    let folder = Folder::open(data_dir)?;
    let _lock = folder.claim(false, Duration::from_millis(200))?;
    let (pgdata, unfinished) = (folder.pgdata(), folder.unfinished_pgdata());
    // In steps that can be interrupted: never half a cluster in place, the marker last.
    let delete = || {
        clear(&unfinished)?;
        if pgdata.exists() {
            fs::rename(&pgdata, &unfinished)?;
            clear(&unfinished)?;
        }
        clear(&folder.path)
    };
    delete().with_context(|| format!("removing {}", folder.path.display()))
}

/// Removes a folder. None there is as good.
fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whose a folder is.
pub(super) enum Claim {
    /// Ours, while this file or a copy of its descriptor is open.
    Ours(File),
    /// Somebody else's, whose postmaster this is.
    Theirs(u32),
}

/// A data folder that exists and is ours.
pub(super) struct Folder {
    /// Absolute, without symbolic links.
    pub path: PathBuf,
    /// Whom Postgres runs as, where that is not the user of this process.
    server_user: Option<User>,
}

impl Folder {
    /// Makes the folder, or takes one that is marked as made here, or empty.
    pub fn open(data_dir: &Path) -> anyhow::Result<Folder> {
        let server_user = match geteuid().is_root() {
            false => None,
            true => Some(
                ["postgres", "nobody"]
                    .into_iter()
                    .find_map(|name| User::from_name(name).ok().flatten())
                    .context("Postgres refuses to run as root, and there is no user `postgres` or `nobody`: run as another user")?,
            ),
        };
        // The server's user passes through, and owns only what lies inside.
        let mode = if server_user.is_some() { 0o711 } else { 0o700 };
        let make = || {
            fs::create_dir_all(data_dir)?;
            let path = data_dir.canonicalize()?;
            let marker = path.join(MARKER);
            if !marker.is_file() {
                if fs::read_dir(&path)?.next().is_some() {
                    return Err(io::Error::other(
                        "it was not made by token-vendor and is not empty: choose another folder, or empty it yourself",
                    ));
                }
                fs::write(marker, "Made by token-vendor, which may delete it.\n")?;
            }
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            Ok(path)
        };
        let path = make().with_context(|| format!("the folder {}", data_dir.display()))?;
        Ok(Folder { path, server_user })
    }

    /// The cluster.
    pub fn pgdata(&self) -> PathBuf {
        self.path.join("pgdata")
    }

    /// A cluster that is being made or removed.
    pub fn unfinished_pgdata(&self) -> PathBuf {
        self.path.join("pgdata.new")
    }

    /// Follows from the data folder, and is short: the address of a unix socket has 104 bytes on
    /// macOS and 108 on Linux.
    pub fn socket_dir(&self) -> PathBuf {
        let digest = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
        format!("/tmp/token-vendor-{}", hex::encode(&digest[..8])).into()
    }

    /// Takes the lock. One that is held is waited for, since its server may be stopping; with
    /// `join`, until that server is ready. One whose owner was killed looks as if it had an owner
    /// until its supervisor notices, which it is given the time `noticing` for.
    pub fn claim(&self, join: bool, noticing: Duration) -> anyhow::Result<Claim> {
        let lock = File::create(self.path.join("lock")).context("the lock of the data folder")?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Claim::Ours(lock)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => bail!(error),
            }
            let max_wait = match self.ready_postmaster() {
                Some(postmaster) if join => return Ok(Claim::Theirs(postmaster)),
                Some(_) => noticing,
                None if join => STARTING,
                None => STOPPING,
            };
            ensure!(
                began.elapsed() < max_wait,
                "another `token-vendor dev`, or its Postgres, is running on {}: stop it first",
                self.path.display()
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// The process id of a postmaster that takes connections: lines 1 and 8 of the file that it
    /// keeps (`miscadmin.h`).
    pub fn ready_postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.pgdata().join("postmaster.pid")).ok()?;
        let is_ready = text.lines().nth(7)?.trim() == "ready";
        text.lines().next()?.parse().ok().filter(|_| is_ready)
    }

    /// Makes an empty folder for the server's user alone.
    pub fn make_private_dir(&self, path: &Path) -> io::Result<()> {
        clear(path)?;
        // An error where somebody else was faster: /tmp is everybody's.
        DirBuilder::new().mode(0o700).create(path)?;
        match &self.server_user {
            Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
            None => Ok(()),
        }
    }

    /// A command of the user whom Postgres accepts, with an environment in which no `PG…` variable
    /// changes anything and no secret of ours lies about.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .current_dir(&self.path)
            .env_clear()
            .env("LC_ALL", "C");
        command.envs(env::var_os("PATH").map(|path| ("PATH", path)));
        if let Some(user) = &self.server_user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// What a user needs to know where the server's user cannot do something.
    pub fn describe(&self) -> String {
        let folder = self.path.display();
        match &self.server_user {
            Some(user) => format!("{folder} as the user `{}`, who must reach it", user.name),
            None => folder.to_string(),
        }
    }
}
