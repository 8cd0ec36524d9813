//! The processes of a lab: each is bound to the lab, and starts in namespaces of its own if it is to be jailed.
//!
//! Not `std::process`, which cannot make namespaces: a PID namespace begins with the process that is made, and a process in
//! between, for every node, would cost memory and hide the number of the one that matters.

mod clone;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use rustix::thread::CpuSet;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::lab::children::raw_pid;

/// Variables of the environment that a jailed process gets; what else there is (tokens, paths) is not its business.
const ENVIRONMENT: [&str; 6] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
];

/// A process that is to be started.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    arguments: Vec<OsString>,
    stdin: bool,
    jailed: Option<Namespaces>,
    processors: Option<CpuSet>,
    descriptors: Vec<OwnedFd>,
}

/// Whether a jailed process starts in namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them: users, mounts, processes, network, IPC, host name, cgroups.
    Own,
    /// All but those of users and of the network: for a switch with a way out of the lab. Takes root.
    OwnButNetwork,
    /// All but those of users: for a node that is a container. Takes root.
    OwnButUsers,
    /// None: where the host forbids them.
    Hosts,
}

/// A running process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its standard input, if it was asked for.
    pub stdin: Option<pipe::Sender>,
    /// Its standard output.
    pub stdout: Option<pipe::Receiver>,
    /// Its standard error.
    pub stderr: Option<pipe::Receiver>,
    pidfd: AsyncFd<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Command {
    /// Runs `program`, an absolute path, outside of any jail, in the environment of this process.
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            arguments: Vec::new(),
            stdin: false,
            jailed: None,
            processors: None,
            descriptors: Vec::new(),
        }
    }

    /// Its arguments.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Its standard input is a pipe, not `/dev/null`.
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// It will enter a jail, for which it gets these namespaces and little environment; `None` leaves it as it is.
    pub fn jailed(mut self, namespaces: Option<Namespaces>) -> Self {
        self.jailed = namespaces;
        self
    }

    /// It runs on these processors only.
    pub fn processors(mut self, processors: Option<CpuSet>) -> Self {
        self.processors = processors;
        self
    }

    /// It inherits these, as descriptors 3 and on.
    pub fn descriptors(mut self, descriptors: impl IntoIterator<Item = OwnedFd>) -> Self {
        self.descriptors.extend(descriptors);
        self
    }

    /// Starts it, on the main thread: it dies with the thread that starts it. It executes nothing before `admit`, which is told
    /// its number, has returned.
    pub fn start(self, admit: impl FnOnce(u32) -> io::Result<()>) -> io::Result<Process> {
        let null = || std::fs::File::open("/dev/null").map(OwnedFd::from);
        let (input, stdin) = if self.stdin {
            let (theirs, ours) = io::pipe()?;
            (OwnedFd::from(theirs), Some(OwnedFd::from(ours)))
        } else {
            (null()?, None)
        };
        let (stdout, output) = io::pipe()?;
        let (stderr, errors) = io::pipe()?;
        let environment = std::env::vars_os().filter(|(name, _)| {
            self.jailed.is_none() || ENVIRONMENT.iter().any(|kept| name == kept)
        });
        let mut descriptors = vec![input, output.into(), errors.into()];
        descriptors.extend(self.descriptors);
        let child = clone::Child::new(
            &self.program,
            &self.arguments,
            environment,
            descriptors,
            self.processors,
        )?;
        let pid = child.start(self.jailed, admit)?;
        let raw = raw_pid(pid).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` gives the same descriptor whenever it is asked, and closes it only when it is dropped.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        Ok(Process {
            pid,
            stdin: stdin.map(pipe::Sender::from_owned_fd).transpose()?,
            stdout: Some(pipe::Receiver::from_owned_fd(stdout.into())?),
            stderr: Some(pipe::Receiver::from_owned_fd(stderr.into())?),
            pidfd,
            status: None,
        })
    }
}

impl Process {
    /// Waits for its end.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            // Readable once it has ended.
            let _ = self.pidfd.readable().await?;
        }
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        use std::os::fd::AsFd;
        if self.status.is_none() {
            let id = WaitId::PidFd(self.pidfd.get_ref().as_fd());
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let ended = match waitid(id, options) {
                Ok(ended) => ended,
                Err(rustix::io::Errno::AGAIN) => None,
                Err(error) => return Err(error.into()),
            };
            // As wait(2) has it: the code in the second byte, or the signal in the first.
            self.status = ended.map(|ended| {
                let code = ended.exit_status().map(|code| (code & 0xff) << 8);
                ExitStatus::from_raw(code.or(ended.terminating_signal()).unwrap_or(0))
            });
        }
        Ok(self.status)
    }

    /// Sends a signal to it and to whatever it has started (it may be a wrapper), unless it was waited for.
    pub fn signal(&self, signal: Signal) {
        if let (None, Some(pid)) = (self.status, raw_pid(self.pid)) {
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn sh(script: &str) -> Command {
        Command::new(Path::new("/bin/sh")).arguments(["-c", script])
    }

    async fn output(process: &mut Process) -> String {
        let mut text = String::new();
        let mut stdout = process.stdout.take().unwrap();
        stdout.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn input_output_and_status_are_those_of_the_program() {
        let mut process = sh("read line; echo \"$line\" there; exit 3")
            .with_stdin()
            .start(|_| Ok(()))
            .unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        assert_eq!(output(&mut process).await, "hello there\n");
        assert_eq!(process.wait().await.unwrap().code(), Some(3));
        let mut killed = sh("kill -9 $$").start(|_| Ok(())).unwrap();
        assert_eq!(killed.wait().await.unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error() {
        let missing = Command::new(Path::new("/nonexistent/program"));
        let error = missing.start(|_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn nothing_is_executed_that_was_not_admitted() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let refused = sh(&format!("touch {}", mark.display()))
            .start(|_| Err(io::ErrorKind::QuotaExceeded.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        assert!(!mark.exists());
    }

    #[tokio::test]
    async fn a_process_dies_with_its_handle_and_inherits_no_descriptor() {
        let mut process = sh("ls /proc/self/fd | wc -w; exec sleep 1000")
            .start(|_| Ok(()))
            .unwrap();
        let mut first = [0; 2];
        process
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .await
            .unwrap();
        // Those of a shell's pipe: three, and the folder that is listed.
        assert_eq!(&first, b"4\n");
        let pidfd = pidfd_open(raw_pid(process.pid).unwrap(), PidfdFlags::empty()).unwrap();
        drop(process);
        assert!(crate::lab::children::ends_within(
            &pidfd,
            Duration::from_secs(10)
        ));
    }

    #[tokio::test]
    async fn a_jailed_process_is_the_first_of_its_world() {
        let jailed = sh("echo $$ $(id -u) $(ls /sys/class/net 2>&1 | wc -w) ${SECRET:-none}")
            .jailed(Some(Namespaces::Own))
            .start(|_| Ok(()));
        let Ok(mut process) = jailed else {
            eprintln!("skipped: no user namespaces here");
            return;
        };
        let said = output(&mut process).await;
        assert!(
            said.starts_with("1 0 ") && said.ends_with("none\n"),
            "{said}"
        );
    }
}
