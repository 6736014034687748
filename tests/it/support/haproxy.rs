//! haproxy in front of Postgres servers. It leads to those that are not in recovery.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sqlx::{Connection, PgConnection};
use tokio::process::{Child, Command};

use super::cluster::own_folder;
use super::eventually;

/// A running haproxy. The process ends when this is dropped.
pub struct Haproxy {
    folder: PathBuf,
    _process: Child,
}

impl Haproxy {
    /// Starts haproxy in front of servers with sockets in these folders, and waits until it leads to a primary. Returns
    /// `None` if it is not installed.
    pub async fn start(socket_dirs: &[&Path]) -> Option<Haproxy> {
        let folder = own_folder();
        let installed = Command::new("haproxy").arg("-v").output().await;
        installed.ok().filter(|output| output.status.success())?;
        fs::create_dir(&folder).unwrap();
        let file = folder.join("haproxy.cfg");
        fs::write(&file, configuration(&folder, socket_dirs)).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let haproxy = Haproxy {
            _process: command.kill_on_drop(true).spawn().unwrap(),
            folder,
        };
        // haproxy leads to every server until it has checked it.
        eventually("haproxy leads to primaries only", async || {
            for _ in 0..2 * socket_dirs.len() {
                if !haproxy.leads_to_primary().await.unwrap_or_default() {
                    return false;
                }
            }
            true
        })
        .await;
        Some(haproxy)
    }

    async fn leads_to_primary(&self) -> sqlx::Result<bool> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        sqlx::query_scalar("SELECT NOT pg_is_in_recovery()")
            .fetch_one(&mut connection)
            .await
    }

    /// Returns the URL of a database of the primary for the superuser.
    pub fn url(&self, database: &str) -> String {
        let host = self.folder.display();
        format!("postgresql:///{database}?host={host}&port=5432&user=postgres")
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Returns the configuration. The check asks each server by Postgres's protocol whether it is in recovery.
fn configuration(folder: &Path, socket_dirs: &[&Path]) -> String {
    // Each message has its length after its type. The start of a session has no type.
    let message = |kind: &str, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        hex::encode([kind.as_bytes(), &length, body].concat())
    };
    let start = message("", b"\0\x03\0\0user\0postgres\0database\0postgres\0\0");
    let query = message("Q", b"SELECT pg_is_in_recovery()\0");
    // One column, of one byte.
    let is_primary = message("D", b"\0\x01\0\0\0\x01f");
    let end = message("X", b"");
    let mut text = format!(
        "defaults
  mode tcp
  timeout connect 500ms
  timeout client 1h
  timeout server 1h
  timeout check 500ms
listen primary
  bind unix@{}/.s.PGSQL.5432
  option tcp-check
  tcp-check connect
  tcp-check send-binary {start}
  tcp-check send-binary {query}
  tcp-check expect binary {is_primary}
  tcp-check send-binary {end}
  default-server check inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
",
        folder.display()
    );
    for (n, socket_dir) in socket_dirs.iter().enumerate() {
        let path = socket_dir.display();
        writeln!(text, "  server server-{n} unix@{path}/.s.PGSQL.5432").unwrap();
    }
    text
}
