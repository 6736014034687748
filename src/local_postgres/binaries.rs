//! Finding the server binaries.

use std::collections::HashSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LocalPostgresError, OLDEST_MAJOR};

/// A folder with `postgres` and `initdb` of one version.
pub(super) struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

/// The folder of the server binaries: `PG_BIN`, else the highest version under
/// `/usr/lib/postgresql`, else what `pg_config` says, `PATH`, Homebrew.
///
/// # Errors
/// None of version 15 or later there, or `PG_BIN` names none.
pub fn find_binaries() -> Result<PathBuf, LocalPostgresError> {
    find(None).map(|found| found.dir)
}

/// As [`find_binaries`], but of the version `major` if there is one.
pub(super) fn find(major: Option<u32>) -> Result<Binaries, LocalPostgresError> {
    if let Some(path) = env::var_os("PG_BIN").filter(|path| !path.is_empty()) {
        let dir = PathBuf::from(path);
        return check(&dir)
            .map(|major| Binaries {
                dir: dir.clone(),
                major,
            })
            .map_err(|problem| LocalPostgresError::BadPgBin { path: dir, problem });
    }
    let mut looked_in = Vec::new();
    let mut seen = HashSet::new();
    let mut first = None;
    for dir in candidates() {
        looked_in.push(dir.display().to_string());
        if !seen.insert(dir.canonicalize().unwrap_or_else(|_| dir.clone())) {
            continue;
        }
        let Ok(found) = check(&dir) else { continue };
        if major.is_none_or(|wanted| wanted == found) {
            return Ok(Binaries { dir, major: found });
        }
        first.get_or_insert(Binaries { dir, major: found });
    }
    first.ok_or_else(|| LocalPostgresError::NoBinaries {
        looked_in: match looked_in.is_empty() {
            true => "/usr/lib/postgresql, pg_config, PATH, Homebrew".into(),
            false => looked_in.join(", "),
        },
    })
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let from_pg_config = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        let dir = String::from_utf8(output.stdout).ok()?;
        Some(PathBuf::from(dir.trim())).filter(|dir| dir.is_absolute())
    };
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).find(|dir| dir.is_absolute() && dir.join("postgres").is_file())
    };
    // Lazily: on Debian the first one is it, and no process is started to ask for more.
    versions("/usr/lib/postgresql", "")
        .chain(std::iter::once_with(from_pg_config).flatten())
        .chain(std::iter::once_with(on_path).flatten())
        .chain(versions("/opt/homebrew/opt", "postgresql@"))
        .chain(versions("/usr/local/opt", "postgresql@"))
        .chain(versions("/usr", "pgsql-"))
}

/// The `bin` folders of `parent/PREFIX<number>`, highest first.
fn versions(parent: &'static str, prefix: &'static str) -> impl Iterator<Item = PathBuf> {
    std::iter::once_with(move || {
        let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
                Some((number, entry.path().join("bin")))
            })
            .collect();
        found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        found.into_iter().map(|(_, dir)| dir)
    })
    .flatten()
}

/// The major version of the binaries in the folder, or why they will not do.
fn check(dir: &Path) -> Result<u32, String> {
    if !dir.join("initdb").is_file() {
        return Err("there is no `initdb`".into());
    }
    let output = Command::new(dir.join("postgres"))
        .arg("--version")
        .output()
        .map_err(|error| format!("`postgres` does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match major(&text) {
        Some(major) if major >= OLDEST_MAJOR => Ok(major),
        Some(major) => Err(format!(
            "it is Postgres {major}, and {OLDEST_MAJOR} or later is needed"
        )),
        None => Err(format!("`postgres --version` says {:?}", text.trim())),
    }
}

/// Of `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`, or `… 18beta2`, the 15 or the 18.
pub(super) fn major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL) ").nth(1)?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}
