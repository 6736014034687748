//! The processes between a server and its owner.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeWriter, pipe};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::cluster::as_server_user;
use super::folder::Folder;

/// A supervised server. Dropped, the server is stopped, or once `also_until` is gone.
#[derive(Debug)]
pub(super) struct Supervisor {
    process: Child,
    outlast: Option<Child>,
    /// Never written to: its end is what the other side waits for.
    alive: Option<PipeWriter>,
}

impl Supervisor {
    /// Starts the supervisor, and it the server: `arguments` are those of `supervise.sh`. From its
    /// first moment on, the end of this process is the end of its input, so that there is no time
    /// between in which we could die and the server stay.
    pub fn start(
        arguments: Vec<OsString>,
        also_until: Option<u32>,
        folder: &Folder,
        lock: &File,
    ) -> io::Result<Supervisor> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(folder.log())?;
        log.set_len(0)?;
        let mut command = shell(include_str!("supervise.sh"), "supervise");
        as_server_user(&mut command, folder);
        let (input, alive) = pipe()?;
        command
            .args(arguments)
            .stdin(input)
            .stdout(lock.try_clone()?)
            .stderr(log);
        let process = command.spawn()?;
        let Some(pid) = also_until else {
            return Ok(Supervisor {
                process,
                outlast: None,
                alive: Some(alive),
            });
        };
        let (input, our_end) = pipe()?;
        let outlast = shell(include_str!("outlast.sh"), "outlast")
            .arg(pid.to_string())
            .current_dir("/")
            .stdin(input)
            .stdout(alive)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Supervisor {
            process,
            outlast: Some(outlast),
            alive: Some(our_end),
        })
    }

    /// The server's exit status, once it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Leaves no process behind, the server having ended.
    pub fn finish(&mut self) -> io::Result<()> {
        self.alive.take();
        match &mut self.outlast {
            Some(outlast) => outlast.wait().map(|_| ()),
            None => Ok(()),
        }
    }
}

fn shell(script: &str, name: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    // In a group of its own: Ctrl-C in the terminal is for the owner, who stops the server when it
    // is done with it.
    command.args(["-c", script, name]).process_group(0);
    command
}
