//! The janitor: a small process that outlives a killed lab process, and removes what it left.
//!
//! The lab process names its children on the janitor's standard input (`+PID`, `-PID`). End of file means
//! that the lab process is gone: whatever child is still there is killed, and the run folder is removed. The
//! janitor's standard output is the lab's lock, so that nobody takes the folder before that is done.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};

use super::children;
use super::run_folder::{LabPaths, RunFolder};
use crate::failure::{Code, Failure};

/// Before the second replacement of a janitor that was killed.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of the hidden verb.
#[derive(Debug, Args)]
pub struct JanitorArgs {
    /// The lab's run folder
    #[arg(long)]
    folder: PathBuf,
}

/// The lab's side.
#[derive(Debug)]
pub struct Janitor {
    folder: PathBuf,
    lock: File,
    /// To the running janitor; `None` once it was dismissed.
    pipe: Option<PipeWriter>,
    watched: Vec<u32>,
}

/// The lab's janitor, shared by all that start processes.
pub type SharedJanitor = Arc<Mutex<Janitor>>;

/// Starts the janitor of a lab. The future keeps one running until [`Janitor::dismiss`].
pub fn start(folder: &RunFolder) -> io::Result<(SharedJanitor, impl Future<Output = ()> + use<>)> {
    let (pipe, child) = spawn(folder.paths.folder(), &folder.share_lock()?)?;
    let janitor = Arc::new(Mutex::new(Janitor {
        folder: folder.paths.folder().to_path_buf(),
        lock: folder.share_lock()?,
        pipe: Some(pipe),
        watched: Vec::new(),
    }));
    Ok((Arc::clone(&janitor), keep(janitor, child)))
}

/// Locks the janitor.
pub fn lock(janitor: &Mutex<Janitor>) -> MutexGuard<'_, Janitor> {
    janitor.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep(janitor: SharedJanitor, mut child: Child) {
    loop {
        let _ = child.wait().await;
        match lock(&janitor).replace() {
            Ok(Some(next)) => child = next,
            Ok(None) => return,
            Err(error) => {
                eprintln!(
                    "warning: the janitor of this lab was killed and cannot be started again: {error}"
                );
                return;
            }
        }
        // Whoever kills it again and again must not keep the lab busy.
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

fn spawn(folder: &Path, lock: &File) -> io::Result<(PipeWriter, Child)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("janitor")
        .arg("--folder")
        .arg(folder)
        .stdin(reader)
        .stdout(lock.try_clone()?)
        .stderr(Stdio::null())
        .current_dir("/");
    children::detach(command.as_std_mut());
    Ok((writer, command.spawn()?))
}

impl Janitor {
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

    /// Lets the janitor end, once the folder is removed.
    pub fn dismiss(&mut self) {
        self.pipe = None;
    }

    fn tell(&mut self, line: &str) {
        if let Some(pipe) = &mut self.pipe {
            // One that was killed is replaced, and its successor told everything.
            let _ = pipe.write_all(line.as_bytes());
        }
    }

    /// Another janitor in place of one that was killed, unless it was dismissed.
    fn replace(&mut self) -> io::Result<Option<Child>> {
        if self.pipe.is_none() {
            return Ok(None);
        }
        let (mut pipe, child) = spawn(&self.folder, &self.lock)?;
        for pid in &self.watched {
            writeln!(pipe, "+{pid}")?;
        }
        self.pipe = Some(pipe);
        Ok(Some(child))
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
            if let Some(pidfd) =
                children::raw_pid(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
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
        if !children::ends_within(pidfd, Duration::ZERO)
            && let Some(pid) = children::raw_pid(*pid)
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    let deadline = Instant::now() + KILL_PATIENCE;
    for pidfd in children.values() {
        children::ends_within(pidfd, deadline.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

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
        let grandchild = children::raw_pid(line.trim().parse().unwrap()).unwrap();
        let grandchild = pidfd_open(grandchild, PidfdFlags::empty()).unwrap();

        let told = format!("+{}\n", leader.id());
        let left = wait_for_end_of(told.as_bytes());
        assert_eq!(left.len(), 1);
        kill(&left);
        assert!(children::ends_within(&grandchild, Duration::from_secs(5)));
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
