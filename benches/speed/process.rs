//! Starts the programs of a measurement and ends them after it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, User, geteuid, sysconf};

/// The longest time for a program to start or to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server process on a local port. Dropping it ends the process.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
    /// A folder that is deleted when the server ends.
    pub home: Option<PathBuf>,
}

/// Returns a command that ends when this process ends. On Linux this includes a kill -9.
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

/// Returns the user `nobody` if this process runs as root.
pub fn unprivileged_user() -> Option<User> {
    let nobody = || User::from_name("nobody").ok().flatten();
    geteuid().is_root().then(nobody).flatten()
}

/// Returns a local address whose port is free.
pub fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Returns the seconds of CPU of a process and of its children, including those that have ended, from `/proc`.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        // A process may end meanwhile.
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        let Some((id, fields)) = stat.split_once(" (").zip(stat.rsplit_once(") ")) else {
            continue;
        };
        let fields: Vec<_> = fields.1.split(' ').collect();
        // The fields 14 to 17 of proc(5): user and system time of the process and of its children that have ended.
        let times = fields[11..15].iter().map(|time| time.parse::<u64>());
        let times = times.collect::<Result<Vec<_>, _>>()?;
        if id.0 == pid.to_string() {
            ticks += times.iter().sum::<u64>();
        } else if fields[1] == pid.to_string() {
            ticks += times[0] + times[1];
        }
    }
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(ticks as f64 / per_second as f64)
}

impl Server {
    /// Starts the process and waits until it accepts connections. Its output goes to the file `log`.
    pub fn start(command: Command, addr: SocketAddr, log: &Path) -> Result<Server> {
        let mut server = Server::spawn(command, addr, log)?;
        let began = Instant::now();
        while TcpStream::connect(addr).is_err() {
            if let Some(status) = server.child.try_wait()? {
                let text = fs::read_to_string(log).unwrap_or_default();
                bail!("the server ended with {status}:\n{text}");
            }
            if began.elapsed() > TIMEOUT {
                bail!(
                    "nothing listens on {addr} after {TIMEOUT:?}; the log is {}",
                    log.display()
                );
            }
            sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Starts the process without waiting.
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

    /// Returns `http://` and the address.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the resident memory in bytes, from `/proc`.
    pub fn resident_memory(&self) -> Result<u64> {
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
            if began.elapsed() > TIMEOUT {
                let _ = self.child.kill();
            }
            sleep(Duration::from_millis(5));
        }
        if let Some(home) = &self.home {
            let _ = fs::remove_dir_all(home);
        }
    }
}
