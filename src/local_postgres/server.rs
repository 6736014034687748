//! The server: its start, how it is found ready, its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::binaries::Binaries;
use super::cluster;
use super::folder::{Claim, Folder, is_alive};
use super::pid_file::PidFile;
use super::supervisor::Supervisor;
use super::{LocalPostgres, LocalPostgresError, LocalPostgresOptions, While};

/// The socket's file name: Postgres makes it of the port.
pub(super) const SOCKET: &str = ".s.PGSQL.5432";

/// Long enough for the recovery of a large crash.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long what is left of a killed server is given to be gone.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(3);
/// Lines of the server's log in an error.
const LOG_TAIL: usize = 12;

const KEPT_IN_URLS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'/');

pub(super) fn url(socket_dir: &Path, database: &str) -> String {
    let encode = |text: &str| utf8_percent_encode(text, KEPT_IN_URLS).to_string();
    let host = encode(&socket_dir.to_string_lossy());
    let database = encode(database).replace('/', "%2F");
    format!("postgresql:///{database}?host={host}&port=5432&user=postgres")
}

/// What the owner of a server has.
#[derive(Debug)]
pub(super) struct Owned {
    supervisor: Supervisor,
    lock: File,
    data_dir: PathBuf,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // No owner any more: who starts next waits for the lock instead of giving up.
        let _ = self.lock.set_len(0);
    }
}

impl Owned {
    pub fn stop(mut self, postmaster: u32) -> Result<(), LocalPostgresError> {
        let doing = || "stopping Postgres".to_string();
        let given_up = Instant::now() + STOP_TIMEOUT;
        let mut is_told = false;
        while self.supervisor.try_wait().or_while(doing)?.is_none() {
            if !is_told {
                // The postmaster itself: the end of the pipe would stop it only after `also_until`.
                interrupt(postmaster.cast_signed());
                is_told = true;
            }
            if Instant::now() > given_up {
                return Err(LocalPostgresError::StillRunning {
                    data_dir: self.data_dir.clone(),
                });
            }
            sleep(POLL);
        }
        self.supervisor.finish().or_while(doing)
    }
}

/// Starts the server, or where `join` is set takes the one that runs.
pub(super) fn start(
    options: &LocalPostgresOptions,
    join: bool,
) -> Result<LocalPostgres, LocalPostgresError> {
    let folder = Folder::open(&options.data_dir)?;
    let (socket_dir, is_outside) = folder.socket_dir();
    let lock = match folder.claim(join)? {
        Claim::Ours(lock) => lock,
        Claim::Theirs(postmaster) => {
            return Ok(LocalPostgres {
                socket_dir,
                postmaster,
                owned: None,
            });
        }
    };
    let binaries = cluster::init(&folder, &lock)?;
    folder.private_dir(&socket_dir)?;
    let given_up = Instant::now() + LEFTOVERS_TIMEOUT;
    loop {
        let before = make_way(&folder)?;
        let mut arguments = Vec::new();
        arguments.push(match is_outside {
            true => socket_dir.clone().into_os_string(),
            false => OsString::new(),
        });
        arguments.extend(command_line(options, &folder, &binaries, &socket_dir));
        let mut supervisor = Supervisor::start(arguments, options.also_until, &folder, &lock)
            .or_while(|| "starting Postgres".into())?;
        match wait_until_ready(&folder, &mut supervisor, before.as_ref()) {
            Ok(postmaster) => {
                let owned = Some(Owned {
                    supervisor,
                    lock,
                    data_dir: folder.path,
                });
                return Ok(LocalPostgres {
                    socket_dir,
                    postmaster,
                    owned,
                });
            }
            // Children of a killed postmaster, on their way out.
            Err(LocalPostgresError::NotStarted { tail, .. })
                if tail.contains("is still in use") && Instant::now() < given_up =>
            {
                sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Clears away a server whose supervisor was killed, and a pid file that names a process of
/// somebody else, which Postgres would refuse to start beside. Returns the pid file that is left:
/// its server is no more, but children of it may be, which Postgres looks into.
fn make_way(folder: &Folder) -> Result<Option<PidFile>, LocalPostgresError> {
    let pgdata = folder.pgdata();
    let given_up = Instant::now() + LEFTOVERS_TIMEOUT;
    while let Some(found) = PidFile::read(&pgdata) {
        if !is_alive(found.pid) {
            return Ok(Some(found));
        }
        if !found.is_running(&pgdata) {
            let path = pgdata.join("postmaster.pid");
            fs::remove_file(&path).or_while(|| format!("removing {}", path.display()))?;
            return Ok(None);
        }
        if Instant::now() > given_up {
            return Err(LocalPostgresError::StillRunning {
                data_dir: folder.path.clone(),
            });
        }
        interrupt(found.pid);
        sleep(Duration::from_millis(50));
    }
    Ok(None)
}

fn command_line(
    options: &LocalPostgresOptions,
    folder: &Folder,
    binaries: &Binaries,
    socket_dir: &Path,
) -> Vec<OsString> {
    let mut command = vec![
        binaries.dir.join("postgres").into_os_string(),
        "-D".into(),
        folder.pgdata().into_os_string(),
    ];
    // A list, whose items are quoted as SQL's identifiers are.
    let directories = format!("\"{}\"", socket_dir.to_string_lossy().replace('"', "\"\""));
    let private = [
        ("listen_addresses", ""),
        ("port", "5432"),
        ("unix_socket_directories", &directories),
        ("unix_socket_permissions", "0700"),
    ];
    let settings = options
        .settings
        .iter()
        .map(|(name, value)| (&**name, &**value));
    // Of two for the same setting the later one counts.
    for (name, value) in settings.chain(private) {
        command.push("-c".into());
        command.push(format!("{name}={value}").into());
    }
    command
}

/// Returns the postmaster's process id.
fn wait_until_ready(
    folder: &Folder,
    supervisor: &mut Supervisor,
    before: Option<&PidFile>,
) -> Result<u32, LocalPostgresError> {
    let given_up = Instant::now() + START_TIMEOUT;
    let reason = loop {
        let ended = supervisor
            .try_wait()
            .or_while(|| "waiting for Postgres".into())?;
        if let Some(status) = ended {
            break status.to_string();
        }
        if Instant::now() > given_up {
            break format!("not ready within {START_TIMEOUT:?}");
        }
        match PidFile::read(&folder.pgdata()) {
            Some(now) if now.is_ready && !before.is_some_and(|old| old.is_of_same_server(&now)) => {
                return Ok(now.pid.unsigned_abs());
            }
            _ => sleep(POLL),
        }
    };
    let text = fs::read_to_string(folder.log()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    Err(LocalPostgresError::NotStarted {
        reason,
        log: folder.log(),
        tail: lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n"),
    })
}

fn interrupt(pid: i32) {
    // Gone already is as good.
    let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
}
