//! The program as a process of its own.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

/// The program, about to be run with nothing of this process's environment.
pub fn program(arguments: &[&str], variables: &[(String, String)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_token-vendor"));
    command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().cloned())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        // No `.env` of the checkout.
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A `token-vendor serve` that serves.
pub struct Process {
    pub base: String,
    pub child: Child,
    /// What it logs, line by line; its end is the end of the process.
    pub logs: UnboundedReceiver<String>,
}

impl Process {
    /// Starts it and waits until it says where it serves.
    pub async fn serve(variables: &[(String, String)]) -> Process {
        let mut child = program(&["serve"], variables).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, mut logs) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut seen = Vec::new();
        let address = loop {
            let line = timeout(Duration::from_secs(60), logs.recv()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended: {seen:?}"));
            if let Some((_, address)) = line.split_once("serving address=") {
                break address.trim().to_owned();
            }
            seen.push(line);
        };
        Process {
            base: format!("http://{address}"),
            child,
            logs,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id().unwrap()).unwrap()
    }
}
