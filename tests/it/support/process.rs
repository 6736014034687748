//! Runs the program as a child process.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

const PROGRAM: &str = env!("CARGO_BIN_EXE_token-vendor");

/// Builds a command that runs the program with these environment variables and `PATH` only.
pub fn program(arguments: &[&str], variables: &[(String, String)]) -> Command {
    program_at(PROGRAM, arguments, variables)
}

/// Builds a command like [`program`] for another release of the program.
fn program_at(path: &str, arguments: &[&str], variables: &[(String, String)]) -> Command {
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().cloned())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        // The program reads `.env` from its working directory. This one has none.
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A running server process.
pub struct Process {
    pub base: String,
    pub child: Child,
    /// The log lines up to the one with the address.
    pub early: Vec<String>,
    /// The later log lines. The channel closes when the process exits.
    pub logs: UnboundedReceiver<String>,
}

impl Process {
    /// Starts `serve` and waits until it logs its address.
    pub async fn serve(variables: &[(String, String)]) -> Process {
        Process::start(&["serve"], variables).await
    }

    /// Starts `serve` of the release of the program at this path.
    pub async fn serve_release(path: &str, variables: &[(String, String)]) -> Process {
        Process::spawn(program_at(path, &["serve"], variables)).await
    }

    /// Starts a command that serves and waits until it logs its address.
    pub async fn start(arguments: &[&str], variables: &[(String, String)]) -> Process {
        Process::spawn(program(arguments, variables)).await
    }

    async fn spawn(mut command: Command) -> Process {
        let mut child = command.spawn().unwrap();
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
            let line = line.unwrap_or_else(|| panic!("the process exited: {early:?}"));
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

    /// Waits for the next log line.
    pub async fn next_line(&mut self) -> String {
        // Some lines are logged once per minute.
        let line = timeout(Duration::from_secs(90), self.logs.recv()).await;
        line.expect("a log line within 90 s")
            .expect("the process exited")
    }

    /// Waits for a log line that contains the text.
    pub async fn logs_with(&mut self, text: &str) {
        while !self.next_line().await.contains(text) {}
    }

    /// Returns the address that the process serves.
    pub fn address(&self) -> SocketAddr {
        let (_, address) = self.base.rsplit_once('/').unwrap();
        address.parse().unwrap()
    }

    /// Returns the process id.
    pub fn pid(&self) -> i32 {
        pid(&self.child)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }
}

/// Sends a signal to a child process.
pub fn send_signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(pid(child)), signal).unwrap();
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id().unwrap()).unwrap()
}

/// Returns the address in the log line that announces it. Accepts the text and the JSON format.
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

/// The exit code and the output of a finished command.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Asserts that the command failed with this exit code and one error line that contains `naming`.
    #[track_caller]
    pub fn refused(&self, code: i32, naming: &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("error: "), "{self:?}");
        assert!(self.err.contains(naming), "{naming:?} in {self:?}");
    }
}

/// Runs a command until it exits.
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
