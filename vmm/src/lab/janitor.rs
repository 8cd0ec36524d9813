//! The janitor: a small process that outlives a killed lab process, and removes what it left.
//!
//! The lab process names its children on the janitor's standard input (`+PID`, `-PID`). End of file means
//! that the lab process is gone: whatever child is still there is killed, and the run folder is removed. The
//! janitor's standard output is the lab's lock, so that nobody takes the folder before that is done.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::children;
use super::run_folder::{LabPaths, RunFolder};
use crate::failure::{Code, Failure};

/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of the hidden verb.
#[derive(Debug, Args)]
pub struct JanitorArgs {
    /// The lab's run folder
    #[arg(long)]
    folder: PathBuf,
}

/// The lab's side: the janitor, started on demand and again if it was killed.
#[derive(Debug)]
pub struct Janitor {
    folder: PathBuf,
    lock: File,
    running: Option<(Child, ChildStdin)>,
    watched: Vec<u32>,
}

impl Janitor {
    /// Starts the janitor of a lab.
    pub fn start(folder: &RunFolder) -> io::Result<Self> {
        let mut janitor = Self {
            folder: folder.paths.folder().to_path_buf(),
            lock: folder.share_lock()?,
            running: None,
            watched: Vec::new(),
        };
        janitor.restart()?;
        Ok(janitor)
    }

    /// From now on the process `pid`, a child of this one, dies with this one.
    pub fn watch(&mut self, pid: u32) {
        self.watched.push(pid);
        self.tell(&format!("+{pid}\n"));
    }

    /// The process `pid` has ended and was waited for.
    pub fn forget(&mut self, pid: u32) {
        self.watched.retain(|&other| other != pid);
        self.tell(&format!("-{pid}\n"));
    }

    /// Ends the janitor, once the folder is removed.
    pub fn dismiss(self) {
        if let Some((mut child, stdin)) = self.running {
            drop(stdin);
            let _ = child.wait();
        }
    }

    fn tell(&mut self, line: &str) {
        let told = self
            .running
            .as_mut()
            .is_some_and(|(_, stdin)| stdin.write_all(line.as_bytes()).is_ok());
        if !told && let Err(error) = self.restart() {
            eprintln!(
                "warning: the janitor of this lab was killed and cannot be started again: {error}"
            );
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("janitor")
            .arg("--folder")
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(self.lock.try_clone()?)
            .stderr(Stdio::null())
            .current_dir("/");
        children::detach(&mut command);
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        for pid in &self.watched {
            writeln!(stdin, "+{pid}")?;
        }
        self.running = Some((child, stdin));
        Ok(())
    }
}

/// The janitor process itself.
pub fn run(args: &JanitorArgs) -> Result<ExitCode, Failure> {
    let lock = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Failure::new(Code::General, format!("janitor: no lock: {error}")))?;
    let left = wait_for_end_of(io::stdin().lock());
    kill(&left);
    if let Some(folder) = RunFolder::inherit(LabPaths::at(args.folder.clone()), lock.into()) {
        folder.remove().map_err(|error| {
            Failure::new(
                Code::General,
                format!("janitor: {}: {error}", args.folder.display()),
            )
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Follows the lab's children until the lab is gone; returns those that are left.
fn wait_for_end_of(lab: impl BufRead) -> HashMap<u32, OwnedFd> {
    let mut children = HashMap::new();
    for line in lab.lines() {
        let Ok(line) = line else { break };
        // The lab has not yet waited for a child it names here, so the number is still that child's.
        if let Some(pid) = line.strip_prefix('+').and_then(|pid| pid.parse().ok()) {
            if let Some(pidfd) = raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            {
                children.insert(pid, pidfd);
            }
        } else if let Some(pid) = line
            .strip_prefix('-')
            .and_then(|pid| pid.parse::<u32>().ok())
        {
            children.remove(&pid);
        }
    }
    children
}

fn kill(children: &HashMap<u32, OwnedFd>) {
    for (pid, pidfd) in children {
        // While the leader lives, its number names its process group and no other.
        if !has_ended(pidfd, Duration::ZERO)
            && let Some(pid) = raw(*pid)
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    let deadline = Instant::now() + KILL_PATIENCE;
    for pidfd in children.values() {
        has_ended(pidfd, deadline.saturating_duration_since(Instant::now()));
    }
}

fn has_ended(pidfd: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn children_that_are_left_are_killed_with_their_group() {
        let mut leader = Command::new("sh")
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufReader::new(leader.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild = raw(line.trim().parse().unwrap()).unwrap();
        let grandchild = pidfd_open(grandchild, PidfdFlags::empty()).unwrap();

        let told = format!("+{}\n", leader.id());
        let left = wait_for_end_of(told.as_bytes());
        assert_eq!(left.len(), 1);
        kill(&left);
        assert!(has_ended(&grandchild, Duration::from_secs(5)));
        assert!(!leader.wait().unwrap().success());
    }

    #[test]
    fn children_that_have_ended_are_left_alone() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .unwrap();
        let told = format!("+{0}\n-{0}\n", child.id());
        assert!(wait_for_end_of(told.as_bytes()).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
