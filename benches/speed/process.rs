//! The programs that a measurement starts, and their end with it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

/// How long a program may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server on a port of its own on this machine; dropping it ends it.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
    /// A folder that goes with it.
    pub home: Option<PathBuf>,
}

/// A program that this one's end ends too, a kill -9 included where the system can do that.
pub fn command(program: &Path, run_as: Option<&User>) -> Command {
    if !cfg!(target_os = "linux") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]);
    if let Some(user) = run_as {
        command.args(["--clear-groups", "--reuid", &user.name]);
        command.arg(format!("--regid={}", user.gid));
    }
    command.arg("--").arg(program);
    command
}

/// Whom a server that should not be root runs as, where this program is.
pub fn unprivileged() -> Option<User> {
    let nobody = || User::from_name("nobody").ok().flatten();
    geteuid().is_root().then(nobody).flatten()
}

/// A port that was free a moment ago.
pub fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Server {
    /// Starts it and waits until it takes connections; what it says goes to the log.
    pub fn start(command: Command, addr: SocketAddr, log: &Path) -> Result<Server> {
        let mut server = Server::spawn(command, addr, log)?;
        let began = Instant::now();
        while TcpStream::connect(addr).is_err() {
            if let Some(status) = server.child.try_wait()? {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("it ended with {status}:\n{said}");
            }
            if began.elapsed() > PATIENCE {
                bail!(
                    "nothing listens on {addr} after {PATIENCE:?}: {}",
                    log.display()
                );
            }
            sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Starts it and waits for nothing.
    pub fn spawn(mut command: Command, addr: SocketAddr, log: &Path) -> Result<Server> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?);
        let child = command.stderr(file).spawn();
        let child = child.with_context(|| format!("{command:?}"))?;
        Ok(Server {
            child,
            addr,
            home: None,
        })
    }

    /// `http://` and its address.
    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its resident memory in bytes, as Linux tells it.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("no VmRSS")? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            sleep(Duration::from_millis(5));
        }
        if let Some(home) = &self.home {
            let _ = fs::remove_dir_all(home);
        }
    }
}
