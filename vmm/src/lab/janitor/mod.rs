//! The janitor: a small process that outlives a killed lab process, and removes what it left, or keeps it for another.
//!
//! The lab process tells it of its children. When that connection ends the lab process is gone: whatever child is still there is killed, and
//! the run folder is removed; or, if the topology says so, the children go on, and what leads to them waits here for `vmm adopt`. The
//! janitor's standard output is the lab's lock, so that nobody takes the folder before that is done.

mod message;
mod process;
mod takeover;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::children;
use super::run_folder::RunFolder;
use crate::process::{Command, Process};
use message::{Message, Part, send};

pub use message::Role;
pub use process::{JanitorArgs, run};
pub use takeover::{Found, Takeover, end, take_over};

/// Before the second replacement of a janitor that was killed.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// The lab's side.
#[derive(Debug)]
pub struct Janitor {
    folder: PathBuf,
    lock: File,
    keep: bool,
    /// To the running janitor; `None` once it was dismissed.
    socket: Option<OwnedFd>,
    watched: Vec<Watched>,
    ending: bool,
}

/// A process of the lab.
#[derive(Debug)]
pub struct Watched {
    part: Part,
    /// What leads to it, if another lab process is to have that.
    pipes: Vec<OwnedFd>,
}

/// The lab's janitor, shared by all that start processes.
pub type SharedJanitor = Arc<Mutex<Janitor>>;

/// Starts the janitor of a lab, which keeps what it can if it is to `keep` it. The future keeps one running until [`Janitor::dismiss`].
pub fn start(
    folder: &RunFolder,
    keep: bool,
) -> io::Result<(SharedJanitor, impl Future<Output = ()> + use<>)> {
    let lock = folder.share_lock()?;
    let socket = spawn(folder.paths.folder(), &lock, keep)?;
    attend(Janitor {
        folder: folder.paths.folder().to_path_buf(),
        lock,
        keep,
        socket: Some(socket),
        watched: Vec::new(),
        ending: false,
    })
}

/// Goes on with the janitor of a lab that was taken over.
pub fn go_on(
    folder: &RunFolder,
    janitor: OwnedFd,
    watched: Vec<Watched>,
) -> io::Result<(SharedJanitor, impl Future<Output = ()> + use<>)> {
    attend(Janitor {
        folder: folder.paths.folder().to_path_buf(),
        lock: folder.share_lock()?,
        keep: true,
        socket: Some(janitor),
        watched,
        ending: false,
    })
}

/// Locks the janitor.
pub fn lock(janitor: &Mutex<Janitor>) -> MutexGuard<'_, Janitor> {
    janitor.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attend(janitor: Janitor) -> io::Result<(SharedJanitor, impl Future<Output = ()> + use<>)> {
    let end = janitor.end_of_it()?;
    let janitor = Arc::new(Mutex::new(janitor));
    Ok((Arc::clone(&janitor), keep_running(janitor, end)))
}

async fn keep_running(janitor: SharedJanitor, mut end: Option<AsyncFd<OwnedFd>>) {
    while let Some(ended) = end {
        let _ = ended.readable().await;
        let next = lock(&janitor).replace();
        end = match next {
            Ok(next) => next,
            Err(error) => {
                eprintln!(
                    "warning: the janitor of this lab was killed and cannot be started again: {error}"
                );
                return;
            }
        };
        // Whoever kills it again and again must not keep the lab busy.
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// The two ends of a connection between lab process and janitor.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

fn spawn(folder: &Path, lock: &File, keep: bool) -> io::Result<OwnedFd> {
    let (ours, theirs) = pair()?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command
        .arg("janitor")
        .arg("--folder")
        .arg(folder)
        .args(keep.then_some("--keep"))
        .stdin(theirs)
        .stdout(lock.try_clone()?)
        .stderr(Stdio::null())
        .current_dir("/");
    children::detach(&mut command);
    // Its end is the end of the connection; tokio waits for it then.
    tokio::process::Command::from(command).spawn()?;
    Ok(ours)
}

/// Starts a process of the lab: it dies with this one or, if the janitor keeps it, goes on. It executes nothing before the janitor knows it
/// and `admit` has agreed.
pub fn start_watched(
    command: Command,
    janitor: &Mutex<Janitor>,
    role: Role,
    admit: impl FnOnce(u32) -> io::Result<()>,
) -> io::Result<Process> {
    let mut watched = None;
    let keeps = lock(janitor).keeps();
    let started = command.outliving(keeps).start(|pid, pipes| {
        admit(pid)?;
        watched = Some(pid);
        lock(janitor).watch(pid, role, pipes)
    });
    if let (Err(_), Some(pid)) = (&started, watched) {
        lock(janitor).forget(pid);
    }
    started
}

impl Janitor {
    /// From now on the process `pid` dies with this one, or goes on for another lab process, which then has `pipes`.
    fn watch(&mut self, pid: u32, role: Role, pipes: &[BorrowedFd<'_>]) -> io::Result<()> {
        let part = Part { pid, role };
        let pipes = if self.keep { pipes } else { &[] };
        self.tell(&Message::Watch(part.clone()), pipes);
        let kept = pipes.iter().map(BorrowedFd::try_clone_to_owned);
        let pipes = kept.collect::<io::Result<_>>()?;
        self.watched.push(Watched { part, pipes });
        Ok(())
    }

    /// The process `pid` has ended and was waited for.
    pub fn forget(&mut self, pid: u32) {
        self.watched.retain(|watched| watched.part.pid != pid);
        self.tell(&Message::Forget { pid }, &[]);
    }

    /// From now on nothing goes on without this process.
    pub fn end(&mut self) {
        self.ending = true;
        self.tell(&Message::Ending, &[]);
    }

    /// Lets the janitor end, once the folder is removed.
    pub fn dismiss(&mut self) {
        if let Some(socket) = self.socket.take() {
            // For whoever waits for its end as well.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }

    /// Whether the lab goes on when this process is killed.
    pub fn keeps(&self) -> bool {
        self.keep
    }

    fn tell(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        if let Some(socket) = &self.socket {
            // One that was killed is replaced, and its successor told everything.
            let _ = send(socket, message, descriptors);
        }
    }

    /// Readable when the janitor, which says nothing, has ended; `None` if it was dismissed.
    fn end_of_it(&self) -> io::Result<Option<AsyncFd<OwnedFd>>> {
        let Some(socket) = &self.socket else {
            return Ok(None);
        };
        let socket = socket.try_clone()?;
        // SAFETY: an `OwnedFd` gives the same descriptor whenever it is asked, and closes it only when it is dropped.
        let end = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Some(end))
    }

    /// Another janitor in place of one that was killed, unless it was dismissed.
    fn replace(&mut self) -> io::Result<Option<AsyncFd<OwnedFd>>> {
        if self.socket.is_none() {
            return Ok(None);
        }
        let socket = spawn(&self.folder, &self.lock, self.keep)?;
        for Watched { part, pipes } in &self.watched {
            let pipes: Vec<_> = pipes.iter().map(AsFd::as_fd).collect();
            send(&socket, &Message::Watch(part.clone()), &pipes)?;
        }
        if self.ending {
            send(&socket, &Message::Ending, &[])?;
        }
        self.socket = Some(socket);
        self.end_of_it()
    }
}
