//! The data folder: creation, marker file, lock and removal.

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

/// The longest wait for a server that another process is starting.
const MAX_START_WAIT: Duration = Duration::from_secs(60);
/// The longest wait for a server that is stopping.
const MAX_STOP_WAIT: Duration = Duration::from_secs(10);

/// Returns `/var/lib/token-vendor/NAME` for root. Other users get a folder under `$XDG_DATA_HOME` or
/// `~/.local/share`.
pub fn default_data_dir(name: &str) -> PathBuf {
    let base = match env::var_os("XDG_DATA_HOME").map(PathBuf::from) {
        _ if geteuid().is_root() => "/var/lib".into(),
        Some(base) if base.is_absolute() => base,
        _ => env::home_dir().unwrap_or_default().join(".local/share"),
    };
    base.join("token-vendor").join(name)
}

/// Deletes the data folder. Succeeds if it does not exist.
///
/// # Errors
/// Fails without deleting anything if the folder has no marker file or a server runs on it.
pub fn remove(data_dir: &Path) -> anyhow::Result<()> {
    if !data_dir.exists() {
        return Ok(());
    }
    ensure!(
        data_dir.join(MARKER).is_file(),
        "{} was not created by token-vendor, so it was not deleted: choose another folder, or delete it yourself",
        data_dir.display()
    );
    let folder = Folder::open(data_dir)?;
    let _lock = folder.claim(false, Duration::from_millis(200))?;
    let (pgdata, unfinished) = (folder.pgdata(), folder.unfinished_pgdata());
    // Every step can be interrupted: `pgdata` is always complete or absent, and the marker is deleted last.
    let delete = || {
        remove_dir(&unfinished)?;
        if pgdata.exists() {
            fs::rename(&pgdata, &unfinished)?;
            remove_dir(&unfinished)?;
        }
        remove_dir(&folder.path)
    };
    delete().with_context(|| format!("removing {}", folder.path.display()))
}

/// Removes a folder and its contents. Succeeds if it does not exist.
fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The result of [`Folder::claim`].
pub(super) enum Claim {
    /// This process holds the lock, until this file and every copy of its descriptor are closed.
    Owned(File),
    /// Another process holds the lock. Contains the process id of its postmaster.
    Shared(u32),
}

/// An existing data folder with a marker file.
pub(super) struct Folder {
    /// The absolute path without symbolic links.
    pub path: PathBuf,
    /// The user that runs Postgres, if it differs from the user of this process.
    server_user: Option<User>,
}

impl Folder {
    /// Opens a marked or empty folder, and creates a missing one. Rejects any other folder.
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
        // The server's user needs to pass through this folder. It owns only `pgdata` inside.
        let mode = if server_user.is_some() { 0o711 } else { 0o700 };
        let create = || {
            fs::create_dir_all(data_dir)?;
            let path = data_dir.canonicalize()?;
            let marker = path.join(MARKER);
            if !marker.is_file() {
                if fs::read_dir(&path)?.next().is_some() {
                    return Err(io::Error::other(
                        "the folder was not created by token-vendor and is not empty: choose another folder, or empty it yourself",
                    ));
                }
                fs::write(
                    marker,
                    "Created by token-vendor, which may delete this folder.\n",
                )?;
            }
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            Ok(path)
        };
        let path =
            create().with_context(|| format!("opening the folder {}", data_dir.display()))?;
        Ok(Folder { path, server_user })
    }

    /// Returns the folder of the cluster.
    pub fn pgdata(&self) -> PathBuf {
        self.path.join("pgdata")
    }

    /// Returns the folder of a cluster that is being created or removed.
    pub fn unfinished_pgdata(&self) -> PathBuf {
        self.path.join("pgdata.new")
    }

    /// Returns the folder of the unix socket, derived from the path of the data folder.
    ///
    /// A hash keeps it short: a socket address has at most 104 bytes on macOS and 108 on Linux.
    pub fn socket_dir(&self) -> PathBuf {
        let digest = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
        format!("/tmp/token-vendor-{}", hex::encode(&digest[..8])).into()
    }

    /// Takes the lock. Waits if another process holds it, because its server may be stopping.
    ///
    /// With `join`, returns the running server as soon as it is ready. Without it, waits up to `grace` for a ready
    /// server to stop: after a kill -9 of the owner, the supervisor needs a moment to notice.
    pub fn claim(&self, join: bool, grace: Duration) -> anyhow::Result<Claim> {
        let lock =
            File::create(self.path.join("lock")).context("opening the lock of the data folder")?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Claim::Owned(lock)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => bail!(error),
            }
            let max_wait = match self.ready_postmaster() {
                Some(postmaster) if join => return Ok(Claim::Shared(postmaster)),
                Some(_) => grace,
                None if join => MAX_START_WAIT,
                None => MAX_STOP_WAIT,
            };
            ensure!(
                began.elapsed() < max_wait,
                "another `token-vendor dev`, or its Postgres, is running on {}: stop it first",
                self.path.display()
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Returns the process id of the postmaster if it accepts connections.
    ///
    /// Reads lines 1 and 8 of `postmaster.pid`, which Postgres documents in `miscadmin.h`.
    pub fn ready_postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.pgdata().join("postmaster.pid")).ok()?;
        let is_ready = text.lines().nth(7)?.trim() == "ready";
        text.lines().next()?.parse().ok().filter(|_| is_ready)
    }

    /// Creates an empty folder that only the server's user can enter. Replaces an existing one.
    pub fn create_private_dir(&self, path: &Path) -> io::Result<()> {
        remove_dir(path)?;
        // `create` fails if another user creates the folder in between, which is possible in /tmp.
        DirBuilder::new().mode(0o700).create(path)?;
        match &self.server_user {
            Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
            None => Ok(()),
        }
    }

    /// Returns a command that runs as the server's user.
    ///
    /// The environment has only `PATH` and `LC_ALL`: no `PG…` variable has an effect, and no secret is passed on.
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

    /// Describes the folder for error messages. Names the server's user, who may lack access to a parent folder.
    pub fn describe(&self) -> String {
        let folder = self.path.display();
        match &self.server_user {
            Some(user) => format!(
                "{folder} as the user `{}`, who needs access to it",
                user.name
            ),
            None => folder.to_string(),
        }
    }
}
