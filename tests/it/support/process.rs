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

/// A command of the program that serves.
pub struct Process {
    pub base: String,
    pub child: Child,
    /// What it logged until then.
    pub early: Vec<String>,
    /// What it logs from then on, line by line; its end is the end of the process.
    pub logs: UnboundedReceiver<String>,
}

impl Process {
    /// Starts `serve` and waits until it says where it serves.
    pub async fn serve(variables: &[(String, String)]) -> Process {
        Process::start(&["serve"], variables).await
    }

    /// Starts a command that serves and waits until it says where.
    pub async fn start(arguments: &[&str], variables: &[(String, String)]) -> Process {
        let mut child = program(arguments, variables).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, mut logs) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut early = Vec::new();
        let address = loop {
            let line = timeout(Duration::from_secs(60), logs.recv()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended: {early:?}"));
            let address = serving_address(&line);
            early.push(line);
            if let Some(address) = address {
                break address;
            }
        };
        Process {
            base: format!("http://{address}"),
            child,
            early,
            logs,
        }
    }

    /// The next line that it logs.
    pub async fn next_line(&mut self) -> String {
        // Longer than the minute that some of them come after.
        let line = timeout(Duration::from_secs(90), self.logs.recv()).await;
        line.expect("it logs").expect("it goes on")
    }

    /// Waits until it logs a line with this.
    pub async fn logs_with(&mut self, text: &str) {
        while !self.next_line().await.contains(text) {}
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id().unwrap()).unwrap()
    }
}

/// The address in the line that says where it serves, as text or JSON.
fn serving_address(line: &str) -> Option<String> {
    const SERVING: [&str; 2] = ["service started", "sandbox started"];
    if let Some((before, address)) = line.split_once(" address=") {
        let serves = SERVING.iter().any(|message| before.ends_with(message));
        return serves.then(|| address.trim().to_owned());
    }
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let serves = SERVING.iter().any(|message| line["message"] == *message);
    serves.then(|| line["address"].as_str().unwrap().to_owned())
}

/// What a command that ends leaves behind.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Checks that it refused in one clear line, which names this.
    #[track_caller]
    pub fn refused(&self, code: i32, naming: &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("error: "), "{self:?}");
        assert!(self.err.contains(naming), "{naming:?} in {self:?}");
    }
}

/// Runs a command to its end.
pub async fn run(arguments: &[&str], variables: &[(String, String)]) -> Ended {
    let output = program(arguments, variables).output();
    let output = timeout(Duration::from_secs(60), output).await.unwrap();
    let output = output.unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
