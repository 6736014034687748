//! The cluster: made by `initdb` when there is none yet.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::binaries::{self, Binaries};
use super::folder::Folder;
use super::{LocalPostgresError, While};

/// Makes the cluster where there is none yet, and finds the binaries that fit it.
pub(super) fn init(folder: &Folder, lock: &File) -> Result<Binaries, LocalPostgresError> {
    let pgdata = folder.pgdata();
    if let Ok(version) = fs::read_to_string(pgdata.join("PG_VERSION")) {
        let data = version.trim().parse().unwrap_or(0);
        let binaries = binaries::find(Some(data))?;
        if binaries.major != data {
            return Err(LocalPostgresError::OtherVersion {
                data_dir: folder.path.clone(),
                data,
                found: binaries.major,
            });
        }
        return Ok(binaries);
    }
    let binaries = binaries::find(None)?;
    // Beside its place and then renamed, so that what was interrupted is never taken for whole.
    let unfinished = folder.path.join("pgdata.new");
    let doing = || format!("making a cluster in {}", folder.path.display());
    let mut output = String::new();
    // Not every system has the first.
    for locale in ["C.UTF-8", "C"] {
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).or_while(doing)?;
        }
        folder.private_dir(&unfinished)?;
        let mut initdb = Command::new(binaries.dir.join("initdb"));
        initdb
            .args(["--auth=trust", "--no-sync", "--no-instructions"])
            .args(["--encoding=UTF8", "--username=postgres"])
            .arg(format!("--locale={locale}"))
            .arg("-D")
            .arg(&unfinished)
            // It holds the lock, should this process be killed meanwhile.
            .stdin(lock.try_clone().or_while(doing)?);
        as_server_user(&mut initdb, folder);
        let result = initdb.output().or_while(doing)?;
        if result.status.success() {
            fs::rename(&unfinished, &pgdata).or_while(doing)?;
            return Ok(binaries);
        }
        output = String::from_utf8_lossy(&result.stderr).trim().to_string();
    }
    Err(LocalPostgresError::InitFailed { output })
}

/// As the user whom Postgres accepts, in a folder that this user can enter, with an environment in
/// which no `PG…` variable changes anything and no secret of ours lies about.
pub(super) fn as_server_user(command: &mut Command, folder: &Folder) {
    const KEPT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "LOCALE_ARCHIVE", "TZ"];
    let kept = KEPT
        .iter()
        .filter_map(|name| Some((name, env::var_os(name)?)));
    command
        .env_clear()
        .envs(kept)
        .env("LC_ALL", "C")
        .current_dir(&folder.path);
    if let Some(user) = &folder.server_user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
}
