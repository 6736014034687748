//! The data folder: made, marked, locked, removed.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, User, geteuid};
use sha2::{Digest, Sha256};

use super::pid_file::PidFile;
use super::{LocalPostgresError, While};

const MARKER: &str = ".token-vendor";

/// How long the Postgres of an owner that is gone is given to stop.
const STOPPING: Duration = Duration::from_secs(10);
/// How long one that is to be joined is given to start.
const STARTING: Duration = Duration::from_secs(60);

/// The address of a unix socket has 104 bytes on macOS and 108 on Linux, the final NUL included.
const SOCKET_PATH_MAX: usize = 103;

/// Where the data called `name` is kept: `/var/lib/token-vendor/NAME` for root, else under
/// `$XDG_DATA_HOME` or `~/.local/share`.
pub fn default_data_dir(name: &str) -> PathBuf {
    let base = if geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        let absolute = |variable| {
            env::var_os(variable)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        absolute("XDG_DATA_HOME").unwrap_or_else(|| {
            absolute("HOME")
                .or_else(|| Some(User::from_uid(geteuid()).ok()??.dir))
                .unwrap_or_else(env::temp_dir)
                .join(".local/share")
        })
    };
    base.join("token-vendor").join(name)
}

/// Deletes the data folder. One that does not exist is fine.
///
/// # Errors
/// It was not made here, or something runs in it: then nothing is deleted.
pub fn remove(data_dir: &Path) -> Result<(), LocalPostgresError> {
    if !data_dir.exists() {
        return Ok(());
    }
    if !data_dir.join(MARKER).is_file() {
        return Err(LocalPostgresError::NotOurs {
            path: data_dir.into(),
        });
    }
    let folder = Folder::open(data_dir)?;
    let _lock = folder.claim(false)?;
    // The marker last, so that an interrupted removal can be repeated.
    let delete = || {
        for entry in fs::read_dir(&folder.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        fs::remove_dir_all(&folder.path)
    };
    delete().or_while(|| format!("removing {}", folder.path.display()))
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
    pub server_user: Option<User>,
}

impl Folder {
    /// Makes the folder, or takes one that is marked as made here, or empty.
    pub fn open(data_dir: &Path) -> Result<Folder, LocalPostgresError> {
        let making = || format!("making {}", data_dir.display());
        let server_user = server_user()?;
        fs::create_dir_all(data_dir).or_while(making)?;
        let path = data_dir.canonicalize().or_while(making)?;
        if path.to_str().is_none() {
            return Err(LocalPostgresError::NotUtf8 { path });
        }
        let marker = path.join(MARKER);
        if !marker.is_file() {
            if fs::read_dir(&path).or_while(making)?.next().is_some() {
                return Err(LocalPostgresError::NotOurs { path });
            }
            fs::write(
                &marker,
                "Made by token-vendor, which may delete this folder.\n",
            )
            .or_while(making)?;
        }
        // The server's user passes through, and owns only what lies inside.
        let mode = if server_user.is_some() { 0o711 } else { 0o700 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).or_while(making)?;
        if let Some(user) = &server_user {
            check_reach(&path, user)?;
        }
        Ok(Folder { path, server_user })
    }

    /// The cluster.
    pub fn pgdata(&self) -> PathBuf {
        self.path.join("pgdata")
    }

    /// What the server says.
    pub fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// Takes the lock. One that a server without an owner still holds is waited for; one that has
    /// an owner is an error, or with `join` what we want.
    pub fn claim(&self, join: bool) -> Result<Claim, LocalPostgresError> {
        let path = self.path.join("lock");
        let locking = || format!("locking {}", path.display());
        let deadline = Instant::now() + if join { STARTING } else { STOPPING };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .or_while(locking)?;
            match file.try_lock() {
                // Else it was removed by another before we had it.
                Ok(()) if is_at(&file, &path) => {
                    file.set_len(0).or_while(locking)?;
                    writeln!(file, "{}", std::process::id()).or_while(locking)?;
                    return Ok(Claim::Ours(file));
                }
                Ok(()) => continue,
                Err(TryLockError::Error(error)) => return Err(error).or_while(locking),
                Err(TryLockError::WouldBlock) => {}
            }
            if join && let Some(postmaster) = self.ready_postmaster() {
                return Ok(Claim::Theirs(postmaster));
            }
            let mut owner = String::new();
            file.read_to_string(&mut owner).or_while(locking)?;
            let owner = owner.trim().parse().ok().filter(|pid| is_alive(*pid));
            let data_dir = self.path.clone();
            match owner {
                Some(pid) if !join => return Err(LocalPostgresError::InUse { data_dir, pid }),
                _ if Instant::now() > deadline => {
                    return Err(LocalPostgresError::StillRunning { data_dir });
                }
                _ => sleep(Duration::from_millis(10)),
            }
        }
    }

    fn ready_postmaster(&self) -> Option<u32> {
        let found = PidFile::read(&self.pgdata())?;
        let is_there = found.is_ready && found.is_running(&self.pgdata());
        is_there.then(|| found.pid.unsigned_abs())
    }

    /// Makes a folder for the server's user alone. One that somebody else put there is refused.
    pub fn private_dir(&self, path: &Path) -> Result<(), LocalPostgresError> {
        let making = || format!("making {}", path.display());
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).or_while(making);
            }
            _ => {}
        }
        let found = path.symlink_metadata().or_while(making)?;
        let server_uid = self.server_user.as_ref().map(|user| user.uid.as_raw());
        let is_ours = found.uid() == geteuid().as_raw() || Some(found.uid()) == server_uid;
        if !found.is_dir() || !is_ours {
            return Err(LocalPostgresError::NotOurs { path: path.into() });
        }
        fs::set_permissions(path, Permissions::from_mode(0o700)).or_while(making)?;
        match &self.server_user {
            Some(user) => {
                lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).or_while(making)
            }
            None => Ok(()),
        }
    }

    /// The folder of the socket: follows from the data folder alone. True where it lies outside.
    pub fn socket_dir(&self) -> (PathBuf, bool) {
        let inside = self.path.join("run");
        if inside.join(super::server::SOCKET).as_os_str().len() <= SOCKET_PATH_MAX {
            return (inside, false);
        }
        let digest = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
        let name: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        (PathBuf::from(format!("/tmp/token-vendor-{name}")), true)
    }
}

fn server_user() -> Result<Option<User>, LocalPostgresError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(Some)
        .ok_or(LocalPostgresError::NoUser)
}

fn check_reach(path: &Path, user: &User) -> Result<(), LocalPostgresError> {
    for folder in path.ancestors() {
        let found = folder
            .metadata()
            .or_while(|| format!("reading {}", folder.display()))?;
        let may_enter = match () {
            () if found.uid() == user.uid.as_raw() => found.mode() & 0o100,
            () if found.gid() == user.gid.as_raw() => found.mode() & 0o010,
            () => found.mode() & 0o001,
        };
        if may_enter == 0 {
            return Err(LocalPostgresError::OutOfReach {
                path: folder.into(),
                user: user.name.clone(),
            });
        }
    }
    Ok(())
}

/// Whether the open file is the one that lies at the path now.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Whether the process exists, whoever owns it.
pub(super) fn is_alive(pid: i32) -> bool {
    pid > 0 && matches!(kill(Pid::from_raw(pid), None), Ok(()) | Err(Errno::EPERM))
}
