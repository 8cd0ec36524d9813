//! The processes of a lab: each is bound to the lab, unless somebody else sees to its end, and starts in namespaces of its own if it is to be
//! jailed.
//!
//! Not `std::process`, which cannot make namespaces: a PID namespace begins with the process that is made, and a process in
//! between, for every node, would cost memory and hide the number of the one that matters.

mod clone;
mod users;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use rustix::thread::CpuSet;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::lab::children::{ends_within, raw_pid};

pub use users::Users;

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
    outlives: bool,
    users: Option<Users>,
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
    end: Option<Ended>,
    /// Its number stays its own until this process has waited for it.
    is_child: bool,
}

/// How a process has ended; `None` if that is known only to one that is no more: the process that had started it.
pub type Ended = Option<ExitStatus>;

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
            outlives: false,
            users: None,
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

    /// In a user namespace of its own there is a second user and group, one of these.
    pub fn users(mut self, users: Option<Users>) -> Self {
        self.users = users;
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

    /// It goes on when the process that starts it is killed: somebody else sees to its end.
    pub fn outliving(mut self, outlives: bool) -> Self {
        self.outlives = outlives;
        self
    }

    /// Starts it, on the main thread: it dies with the thread that starts it. It executes nothing before `admit` has returned, which is
    /// told its number and gets what leads to it, in the order that [`Process::adopt`] takes it.
    pub fn start(
        self,
        admit: impl FnOnce(u32, &[BorrowedFd<'_>]) -> io::Result<()>,
    ) -> io::Result<Process> {
        let null = || std::fs::File::open("/dev/null").map(OwnedFd::from);
        let (stdout, output) = io::pipe()?;
        let (stderr, errors) = io::pipe()?;
        let mut pipes = vec![OwnedFd::from(stdout), OwnedFd::from(stderr)];
        let input = if self.stdin {
            let (theirs, ours) = io::pipe()?;
            pipes.push(ours.into());
            theirs.into()
        } else {
            null()?
        };
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
            self.outlives,
        )?;
        let pid = {
            let pipes: Vec<_> = pipes.iter().map(AsFd::as_fd).collect();
            child.start(self.jailed, |pid| {
                if self.jailed == Some(Namespaces::Own) {
                    users::map(pid, self.users)?;
                }
                admit(pid, &pipes)
            })?
        };
        let raw = raw_pid(pid).ok_or(io::ErrorKind::NotFound)?;
        Process::new(pid, pidfd_open(raw, PidfdFlags::NONBLOCK)?, pipes, true)
    }
}

impl Process {
    /// One that another process has started: its `pidfd`, which does not block, and standard output, error and, if it has that, input.
    pub fn adopt(pid: u32, pidfd: OwnedFd, pipes: Vec<OwnedFd>) -> io::Result<Self> {
        Self::new(pid, pidfd, pipes, false)
    }

    fn new(pid: u32, pidfd: OwnedFd, pipes: Vec<OwnedFd>, is_child: bool) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` gives the same descriptor whenever it is asked, and closes it only when it is dropped.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        let mut pipes = pipes.into_iter();
        let mut output = || pipes.next().map(pipe::Receiver::from_owned_fd).transpose();
        let (stdout, stderr) = (output()?, output()?);
        Ok(Self {
            pid,
            stdin: pipes.next().map(pipe::Sender::from_owned_fd).transpose()?,
            stdout,
            stderr,
            pidfd,
            end: None,
            is_child,
        })
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(end) = self.try_wait()? {
                return Ok(end);
            }
            // Readable once it has ended.
            let _ = self.pidfd.readable().await?;
        }
    }

    fn try_wait(&mut self) -> io::Result<Option<Ended>> {
        if self.end.is_none() {
            let pidfd = self.pidfd.get_ref();
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            self.end = match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
                // As wait(2) has it: the code in the second byte, or the signal in the first.
                Ok(ended) => ended.map(|ended| {
                    let code = ended.exit_status().map(|code| (code & 0xff) << 8);
                    let status = code.or(ended.terminating_signal()).unwrap_or(0);
                    Some(ExitStatus::from_raw(status))
                }),
                Err(Errno::AGAIN) => None,
                // No child of this process.
                Err(Errno::CHILD) => ends_within(pidfd, Duration::ZERO).then_some(None),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.end)
    }

    /// Sends a signal to it and to whatever it has started (it may be a wrapper), unless it was waited for.
    pub fn signal(&self, signal: Signal) {
        let is_its_own = self.is_child || !ends_within(self.pidfd.get_ref(), Duration::ZERO);
        if let (None, true, Some(pid)) = (self.end, is_its_own, raw_pid(self.pid)) {
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
            .start(|_, _| Ok(()))
            .unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        assert_eq!(output(&mut process).await, "hello there\n");
        assert_eq!(process.wait().await.unwrap().unwrap().code(), Some(3));
        let mut killed = sh("kill -9 $$").start(|_, _| Ok(())).unwrap();
        assert_eq!(killed.wait().await.unwrap().unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error() {
        let missing = Command::new(Path::new("/nonexistent/program"));
        let error = missing.start(|_, _| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn nothing_is_executed_that_was_not_admitted() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let refused = sh(&format!("touch {}", mark.display()))
            .start(|_, _| Err(io::ErrorKind::QuotaExceeded.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        assert!(!mark.exists());
    }

    #[tokio::test]
    async fn a_process_dies_with_its_handle_and_inherits_no_descriptor() {
        let mut process = sh("ls /proc/self/fd | wc -w; exec sleep 1000")
            .start(|_, _| Ok(()))
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
        assert!(ends_within(&pidfd, Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn a_process_that_was_adopted_is_heard_and_its_end_is_noticed() {
        let mut kept = Vec::new();
        // A grandchild, which goes on when its parent has ended.
        let mut parent = sh("exec 3<&0; { read line; echo \"$line\" there; } <&3 & echo $!")
            .with_stdin()
            .start(|_, pipes| {
                kept.extend(pipes.iter().map(|pipe| pipe.try_clone_to_owned().unwrap()));
                Ok(())
            })
            .unwrap();
        let mut number = String::new();
        let mut byte = [0];
        let stdout = parent.stdout.as_mut().unwrap();
        while stdout.read_exact(&mut byte).await.is_ok() && byte != *b"\n" {
            number.push(char::from(byte[0]));
        }
        let pid = number.parse().unwrap();
        let pidfd = pidfd_open(raw_pid(pid).unwrap(), PidfdFlags::NONBLOCK).unwrap();
        assert!(parent.wait().await.unwrap().is_some());
        drop(parent);
        let mut adopted = Process::adopt(pid, pidfd, kept).unwrap();
        assert!(adopted.try_wait().unwrap().is_none());
        let mut stdin = adopted.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        assert_eq!(output(&mut adopted).await, "hello there\n");
        assert_eq!(adopted.wait().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_jailed_process_is_the_first_of_its_world() {
        let jailed = sh("echo $$ $(id -u) $(ls /sys/class/net 2>&1 | wc -w) ${SECRET:-none}")
            .jailed(Some(Namespaces::Own))
            .start(|_, _| Ok(()));
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
