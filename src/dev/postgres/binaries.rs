//! The search for installed Postgres server binaries.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

/// The oldest supported Postgres.
const MIN_MAJOR: u32 = 15;

/// Returns the folder that contains `postgres` and `initdb`. With `wanted`, only that major version matches.
///
/// `PG_BIN` alone is searched if it is set. Otherwise the order is: Debian's folders (highest version first),
/// `pg_config`, `PATH`, Homebrew, Red Hat's packages. `scripts/find-postgres` searches in the same order.
pub(super) fn find(wanted: Option<u32>) -> anyhow::Result<PathBuf> {
    let dirs = match env::var_os("PG_BIN").filter(|dir| !dir.is_empty()) {
        Some(dir) => vec![dir.into()],
        None => candidates(),
    };
    let matches = |dir: &&PathBuf| {
        read_major(dir).is_some_and(|major| wanted.map_or(major >= MIN_MAJOR, |w| w == major))
    };
    if let Some(dir) = dirs.iter().find(matches) {
        return Ok(dir.clone());
    }
    let version = match wanted {
        Some(major) => format!("version {major}, which created the data,"),
        None => format!("version {MIN_MAJOR} or later"),
    };
    bail!(
        "no Postgres server binaries of {version} found in {dirs:?}: install Debian's `postgresql` \
         or Homebrew's `postgresql@17`, or set PG_BIN to their folder"
    )
}

fn candidates() -> Vec<PathBuf> {
    let mut dirs = versions("/usr/lib/postgresql", "");
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        dirs.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    dirs.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    for (parent, prefix) in [
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/usr", "pgsql-"),
    ] {
        dirs.extend(versions(parent, prefix));
    }
    dirs.retain(|dir| dir.is_absolute() && dir.join("initdb").is_file());
    dirs.dedup();
    dirs
}

/// Returns the `bin` folders of `parent/PREFIX<number>`, highest number first.
fn versions(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = Path::new(parent).read_dir().into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn read_major(dir: &Path) -> Option<u32> {
    let postgres = dir.join("postgres");
    let output = Command::new(postgres).arg("--version").output().ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

/// Parses the major version: 15 from `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`, 18 from `… 18beta2`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL) ").nth(1)?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_release_and_beta_versions() {
        for (text, major) in [
            (
                "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta2\n", Some(18)),
            ("postgres (PostgreSQL) 9.6.24\n", Some(9)),
            ("command not found", None),
        ] {
            assert_eq!(parse_major(text), major);
        }
    }
}
