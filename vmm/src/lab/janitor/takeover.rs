//! A lab whose process was killed, and who comes for it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketAddrUnix, connect};

use super::Watched;
use super::message::{Message, Part, Role, receive, send};
use super::process::seqpacket;
use crate::lab::run_folder::LabPaths;
use crate::process::Process;

/// How long the janitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a janitor has kept of a lab.
#[derive(Debug)]
pub struct Takeover {
    /// The way to the janitor.
    pub janitor: OwnedFd,
    /// The lab's lock.
    pub lock: File,
    /// Its processes, and what leads to them.
    pub watched: Vec<Watched>,
    /// The same, to be attended.
    pub found: HashMap<Role, Found>,
}

/// A process that nobody attends.
#[derive(Debug)]
pub struct Found {
    pid: u32,
    pidfd: OwnedFd,
    pipes: Vec<OwnedFd>,
}

impl Found {
    /// Attends it; from now on it ends with its handle.
    pub fn attend(self) -> io::Result<Process> {
        Process::adopt(self.pid, self.pidfd, self.pipes)
    }
}

/// Takes the lab over from its janitor.
pub fn take_over(paths: &LabPaths) -> io::Result<Takeover> {
    let janitor = call(paths, &Message::Adopt)?;
    let (mut watched, mut found) = (Vec::new(), HashMap::new());
    loop {
        let lost = || io::Error::new(io::ErrorKind::UnexpectedEof, "its janitor has ended");
        match receive(&janitor)?.ok_or_else(lost)? {
            (Message::Watch(part), mut descriptors) if descriptors.len() > 2 => {
                let pidfd = descriptors.remove(0);
                let pipes = descriptors;
                let Part { pid, role } = part.clone();
                let ours = pipes.iter().map(OwnedFd::try_clone);
                let ours = Found {
                    pid,
                    pidfd,
                    pipes: ours.collect::<io::Result<_>>()?,
                };
                found.insert(role, ours);
                watched.push(Watched { part, pipes });
            }
            (Message::Lock, mut descriptors) if descriptors.len() == 1 => {
                set_socket_timeout(&janitor, Timeout::Recv, None)?;
                set_socket_timeout(&janitor, Timeout::Send, None)?;
                return Ok(Takeover {
                    janitor,
                    lock: descriptors.remove(0).into(),
                    watched,
                    found,
                });
            }
            (message, _) => {
                let problem = format!("its janitor says {message:?}, which makes no sense");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
        }
    }
}

/// Has the janitor end the lab.
pub fn end(paths: &LabPaths) -> io::Result<()> {
    call(paths, &Message::End).map(drop)
}

fn call(paths: &LabPaths, message: &Message) -> io::Result<OwnedFd> {
    let janitor = seqpacket()?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&janitor, direction, Some(PATIENCE))?;
    }
    connect(&janitor, &SocketAddrUnix::new(paths.orphan())?)?;
    send(&janitor, message, &[])?;
    Ok(janitor)
}
