//! What a lab process and its janitor tell each other: a JSON object a datagram (`SOCK_SEQPACKET`, unix(7)), descriptors with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// More than any message has: names have 32 bytes.
const LONGEST: usize = 4096;
/// The most descriptors that come with a message: a process, and its standard input, output and error.
const DESCRIPTORS: usize = 4;

/// What is told. The lab process starts with the first three, whoever comes after it with the next two; the last is the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// A process of the lab is about to run; with what leads to it, for whoever takes it over. To the one who takes over, a descriptor of
    /// the process comes first.
    Watch(Part),
    /// It has ended, and was waited for.
    Forget {
        /// Its number.
        pid: u32,
    },
    /// The lab ends: from now on nothing goes on without its process.
    Ending,
    /// Hand the lab over.
    Adopt,
    /// End the lab.
    End,
    /// That was all of it; with its lock.
    Lock,
}

/// A process of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its number.
    pub pid: u32,
    /// What it does.
    pub role: Role,
}

/// What a process does in a lab.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It is the switch of this zone.
    Switch(String),
    /// It runs the node of this name.
    Node(String),
}

/// Sends a message; waits for room.
pub fn send(to: impl AsFd, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(to, &[IoSlice::new(&text)], &mut ancillary, flags)?;
    Ok(())
}

/// Waits for a message; `None` if there comes no more. One that makes no sense is an error.
pub fn receive(from: impl AsFd) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut text = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut into = [IoSliceMut::new(&mut text)];
        match recvmsg(&from, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // It has ended before it has read all that it was told.
            Err(Errno::CONNRESET) => return Ok(None),
            result => break result?.bytes,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    Ok(Some((
        serde_json::from_slice(&text[..length])?,
        descriptors,
    )))
}
