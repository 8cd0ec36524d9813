//! The janitor's own process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use rustix::process::{PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::message::{Message, Part, receive, send};
use crate::failure::{Code, Failure};
use crate::lab::children;
use crate::lab::run_folder::{LabPaths, RunFolder};

/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long whoever comes for the lab may take to say what it wants, and to take it.
const CALLER_PATIENCE: Duration = Duration::from_secs(5);
/// Before another attempt to wait for one.
const PAUSE: Duration = Duration::from_secs(1);

/// Arguments of the hidden verb.
#[derive(Debug, Args)]
pub struct JanitorArgs {
    /// The lab's run folder
    #[arg(long)]
    folder: PathBuf,
    /// Keep the lab for whoever takes it over
    #[arg(long)]
    keep: bool,
}

/// A process of the lab.
#[derive(Debug)]
struct Child {
    part: Part,
    pidfd: OwnedFd,
    /// What leads to it.
    pipes: Vec<OwnedFd>,
}

/// What the janitor knows of its lab.
#[derive(Debug, Default)]
struct Charge {
    children: HashMap<u32, Child>,
    /// It was told that the lab ends.
    ending: bool,
}

/// Runs it: standard input is the lab process, standard output the lab's lock.
pub fn run(args: &JanitorArgs) -> Result<ExitCode, Failure> {
    let cannot = |error: io::Error| {
        Failure::new(Code::General, format!("janitor: no lock, no lab: {error}"))
    };
    let lock = io::stdout().as_fd().try_clone_to_owned().map_err(cannot)?;
    let mut lab = io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?;
    // What the lab process hears of this one's end.
    let null = File::open("/dev/null").map_err(cannot)?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| cannot(error.into()))?;
    let paths = LabPaths::at(args.folder.clone());
    let mut charge = Charge::default();
    loop {
        charge.follow(&lab);
        // One that has ended in good order has removed the folder.
        if !args.keep || charge.ending || !paths.saved().exists() {
            break;
        }
        match charge.wait_for_caller(&paths, &lock) {
            Some(successor) => lab = successor,
            None => break,
        }
    }
    charge.kill();
    if let Some(folder) = RunFolder::inherit(paths, lock.into()) {
        folder.remove().map_err(|error| {
            Failure::new(
                Code::General,
                format!("janitor: {}: {error}", args.folder.display()),
            )
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Charge {
    /// Follows what the lab process tells until it is gone.
    fn follow(&mut self, lab: &OwnedFd) {
        while let Ok(Some((message, pipes))) = receive(lab) {
            match message {
                // The lab has not yet waited for a child it names here, so the number is still that child's.
                Message::Watch(part) => {
                    let pid = children::raw_pid(part.pid);
                    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
                    if let Some(pidfd) = pidfd {
                        let pid = part.pid;
                        self.children.insert(pid, Child { part, pidfd, pipes });
                    }
                }
                Message::Forget { pid } => drop(self.children.remove(&pid)),
                Message::Ending => self.ending = true,
                Message::Adopt | Message::End | Message::Lock => {}
            }
        }
    }

    /// The lab process is gone. Waits for another, which takes over what there is, and returns the way to it; `None` if the lab is to end.
    fn wait_for_caller(&self, paths: &LabPaths, lock: &OwnedFd) -> Option<OwnedFd> {
        loop {
            match self.meet_caller(paths, lock) {
                Ok(end_or_successor) => return end_or_successor,
                // Of one caller, who may come again; or of this machine, which may have descriptors again later.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn meet_caller(&self, paths: &LabPaths, lock: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let path = paths.orphan();
        let _ = std::fs::remove_file(&path);
        let door = seqpacket()?;
        bind(&door, &SocketAddrUnix::new(&path)?)?;
        listen(&door, 8)?;
        loop {
            let caller = accept_with(&door, SocketFlags::CLOEXEC)?;
            for direction in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&caller, direction, Some(CALLER_PATIENCE))?;
            }
            match receive(&caller) {
                Ok(Some((Message::End, _))) => return Ok(None),
                Ok(Some((Message::Adopt, _))) => {}
                _ => continue,
            }
            // One that ends meanwhile has taken nothing: all of it is still here.
            self.hand_over(&caller, lock, &path)?;
            set_socket_timeout(&caller, Timeout::Recv, None)?;
            return Ok(Some(caller));
        }
    }

    fn hand_over(&self, to: &OwnedFd, lock: &OwnedFd, door: &Path) -> io::Result<()> {
        for Child { part, pidfd, pipes } in self.children.values() {
            let mut descriptors = vec![pidfd.as_fd()];
            descriptors.extend(pipes.iter().map(AsFd::as_fd));
            send(to, &Message::Watch(part.clone()), &descriptors)?;
        }
        // Whoever has the lock is the lab, and nobody is to take that for an orphan.
        std::fs::remove_file(door)?;
        send(to, &Message::Lock, &[lock.as_fd()])
    }

    fn kill(&self) {
        for Child { part, pidfd, .. } in self.children.values() {
            // While the leader lives, its number names its process group and no other.
            if !children::ends_within(pidfd, Duration::ZERO)
                && let Some(pid) = children::raw_pid(part.pid)
            {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        let deadline = Instant::now() + KILL_PATIENCE;
        for child in self.children.values() {
            let left = deadline.saturating_duration_since(Instant::now());
            children::ends_within(&child.pidfd, left);
        }
    }
}

/// A socket of the kind that janitors speak over.
pub fn seqpacket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::janitor::message::Role;
    use crate::lab::janitor::pair;
    use std::io::BufRead;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    fn watch(pid: u32) -> Message {
        let role = Role::Node("a".to_owned());
        Message::Watch(Part { pid, role })
    }

    /// What a janitor knows once the lab has told this and is gone.
    fn told(messages: &[Message]) -> Charge {
        let (lab, janitor) = pair().unwrap();
        for message in messages {
            send(&lab, message, &[]).unwrap();
        }
        drop(lab);
        let mut charge = Charge::default();
        charge.follow(&janitor);
        charge
    }

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

        let left = told(&[watch(leader.id())]);
        assert_eq!(left.children.len(), 1);
        left.kill();
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
        let pid = child.id();
        let left = told(&[watch(pid), Message::Forget { pid }, Message::Ending]);
        assert!(left.children.is_empty() && left.ending);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
