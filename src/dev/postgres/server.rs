//! Creates the cluster, starts the server and waits until it is ready.

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

/// The longest wait for the server, including crash recovery.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the server. With `join`, shares a server that already runs.
pub(super) fn start(options: &LocalPostgresOptions, join: bool) -> anyhow::Result<LocalPostgres> {
    let folder = Folder::open(&options.data_dir)?;
    let (pid, supervisor) = match folder.claim(join, Duration::from_secs(1))? {
        Claim::Shared(pid) => (pid, None),
        Claim::Owned(lock) => {
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
    // A killed server leaves this file. The free lock proves that no process of that server is left. Postgres
    // would refuse to start if another process now has the process id in the file.
    let _ = fs::remove_file(folder.pgdata().join("postmaster.pid"));
    let binaries = init(folder, &lock)?;
    let starting = || format!("starting Postgres in {}", folder.describe());
    let socket_dir = folder.socket_dir();
    folder
        .create_private_dir(&socket_dir)
        .with_context(starting)?;
    let log_path = folder.path.join("postgres.log");
    let mut log = OpenOptions::new();
    log.create(true).write(true).truncate(true).mode(0o600);
    let log = log.open(&log_path).with_context(starting)?;

    let keep_alive_pid = options.keep_alive_pid.map(|pid| pid.to_string());
    let temporary_dir = options.is_temporary.then(|| folder.pgdata());
    let private = [
        ("listen_addresses", ""),
        ("port", "5432"),
        ("unix_socket_directories", &socket_dir.to_string_lossy()),
        ("unix_socket_permissions", "0700"),
    ];
    // Postgres uses the last of several values for one setting.
    let given = options.settings.iter().map(|(n, value)| (&**n, &**value));
    let settings = given.chain(private);
    let mut supervisor = folder
        .command("/bin/sh")
        .args(["-c", include_str!("supervise.sh"), "supervise"])
        .arg(&socket_dir)
        .arg(temporary_dir.unwrap_or_default())
        .arg(keep_alive_pid.unwrap_or_default())
        .arg(binaries.join("postgres"))
        .arg("-D")
        .arg(folder.pgdata())
        .args(settings.flat_map(|(name, value)| ["-c".into(), format!("{name}={value}")]))
        .stdin(Stdio::piped())
        .stdout(lock)
        .stderr(log)
        // Ctrl-C in the terminal must reach only the owner, which stops the server last.
        .process_group(0)
        .spawn()
        .with_context(starting)?;

    let deadline = Instant::now() + START_TIMEOUT;
    while supervisor.try_wait()?.is_none() && Instant::now() < deadline {
        if let Some(pid) = folder.ready_postmaster() {
            return Ok((pid, supervisor));
        }
        sleep(Duration::from_millis(3));
    }
    let log_text = fs::read_to_string(&log_path).unwrap_or_default();
    bail!(
        "Postgres did not start; its log {}:\n{log_text}",
        log_path.display()
    )
}

/// Creates the cluster if it does not exist, and returns the folder of the binaries for its version.
fn init(folder: &Folder, lock: &File) -> anyhow::Result<PathBuf> {
    let pgdata = folder.pgdata();
    if let Ok(version) = fs::read_to_string(pgdata.join("PG_VERSION")) {
        return binaries::find(Some(version.trim().parse()?));
    }
    let binaries = binaries::find(None)?;
    let running_initdb = || format!("running initdb in {}", folder.describe());
    // The rename at the end keeps an interrupted initdb out of `pgdata`.
    let unfinished = folder.unfinished_pgdata();
    folder
        .create_private_dir(&unfinished)
        .with_context(running_initdb)?;
    let output = folder
        .command(binaries.join("initdb"))
        .args(["--auth=trust", "--no-sync", "--no-instructions"])
        .args(["--encoding=UTF8", "--locale=C", "--username=postgres", "-D"])
        .arg(&unfinished)
        // initdb keeps the lock if this process is killed.
        .stdin(lock.try_clone()?)
        .output()
        .with_context(running_initdb)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed: {stderr}",
        running_initdb()
    );
    fs::rename(&unfinished, &pgdata).with_context(running_initdb)?;
    Ok(binaries)
}
