//! The cluster and its server: made, started, found ready.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::folder::{Claim, Folder};
use super::{LocalPostgres, LocalPostgresOptions, binaries};

/// Long enough for the recovery of a large crash.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the server, or where `join` is set takes the one that runs.
pub(super) fn start(options: &LocalPostgresOptions, join: bool) -> anyhow::Result<LocalPostgres> {
    let folder = Folder::open(&options.data_dir)?;
    let (pid, supervisor) = match folder.claim(join, Duration::from_secs(1))? {
        Claim::Theirs(pid) => (pid, None),
        Claim::Ours(lock) => {
            let (pid, supervisor) = start_claimed(options, &folder, lock)?;
            (pid, Some(supervisor))
        }
    };
    Ok(LocalPostgres {
        socket_dir: folder.socket_dir(),
        pid,
        supervisor,
    })
}

fn start_claimed(
    options: &LocalPostgresOptions,
    folder: &Folder,
    lock: File,
) -> anyhow::Result<(u32, std::process::Child)> {
    // Of a server that was killed: none of its processes is left, or they would hold the lock. The
    // system may have given its id to somebody else, beside whom Postgres would not start.
    let _ = fs::remove_file(folder.pgdata().join("postmaster.pid"));
    let binaries = init(folder, &lock)?;
    let starting = || format!("starting Postgres in {}", folder.describe());
    let socket_dir = folder.socket_dir();
    folder
        .make_private_dir(&socket_dir)
        .with_context(starting)?;
    let log_path = folder.path.join("postgres.log");
    let mut log = OpenOptions::new();
    log.create(true).write(true).truncate(true).mode(0o600);
    let log = log.open(&log_path).with_context(starting)?;

    let also_until = options.also_until.map(|pid| pid.to_string());
    let temporary = options.is_temporary.then(|| folder.pgdata());
    let private = [
        ("listen_addresses", ""),
        ("port", "5432"),
        ("unix_socket_directories", &socket_dir.to_string_lossy()),
        ("unix_socket_permissions", "0700"),
    ];
    // Of two for the same setting the later one counts.
    let given = options.settings.iter().map(|(n, value)| (&**n, &**value));
    let settings = given.chain(private);
    let mut supervisor = folder
        .command("/bin/sh")
        .args(["-c", include_str!("supervise.sh"), "supervise"])
        .arg(&socket_dir)
        .arg(temporary.unwrap_or_default())
        .arg(also_until.unwrap_or_default())
        .arg(binaries.join("postgres"))
        .arg("-D")
        .arg(folder.pgdata())
        .args(settings.flat_map(|(name, value)| ["-c".into(), format!("{name}={value}")]))
        .stdin(Stdio::piped())
        .stdout(lock)
        .stderr(log)
        // Ctrl-C in the terminal is for the owner, who stops the server when it is done with it.
        .process_group(0)
        .spawn()
        .with_context(starting)?;

    let given_up = Instant::now() + START_TIMEOUT;
    while supervisor.try_wait()?.is_none() && Instant::now() < given_up {
        if let Some(pid) = folder.ready_postmaster() {
            return Ok((pid, supervisor));
        }
        sleep(Duration::from_millis(3));
    }
    let said = fs::read_to_string(&log_path).unwrap_or_default();
    bail!(
        "Postgres did not start; its log {}:\n{said}",
        log_path.display()
    )
}

/// Makes the cluster where there is none yet, and finds the binaries that fit it.
fn init(folder: &Folder, lock: &File) -> anyhow::Result<PathBuf> {
    let pgdata = folder.pgdata();
    if let Ok(version) = fs::read_to_string(pgdata.join("PG_VERSION")) {
        return binaries::find(Some(version.trim().parse()?));
    }
    let binaries = binaries::find(None)?;
    let making = || format!("running initdb in {}", folder.describe());
    // Beside its place and then renamed, so that what was interrupted is never taken for whole.
    let unfinished = folder.unfinished_pgdata();
    folder.make_private_dir(&unfinished).with_context(making)?;
    let output = folder
        .command(binaries.join("initdb"))
        .args(["--auth=trust", "--no-sync", "--no-instructions"])
        .args(["--encoding=UTF8", "--locale=C", "--username=postgres", "-D"])
        .arg(&unfinished)
        // It holds the lock, should this process be killed meanwhile.
        .stdin(lock.try_clone()?)
        .output()
        .with_context(making)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {said}", making());
    fs::rename(&unfinished, &pgdata).with_context(making)?;
    Ok(binaries)
}
