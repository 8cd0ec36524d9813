//! The byte stream to the launcher.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{Incoming, ProtocolError, Receiver, ToAgent, ToHost, encode_control};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::log;

/// Above this many bytes that the host has not taken, nothing is read that would make more.
const FULL: usize = 256 * 1024;
const CHUNK: usize = 16 * 1024;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("the host has closed it")]
    Closed,
    #[error("it fails: {0}")]
    Broken(Errno),
    #[error("the host does not keep to the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// An open port.
#[derive(Debug)]
pub struct Connection {
    port: OwnedFd,
    receiver: Receiver<ToAgent>,
    /// Bytes for the host.
    pub out: Vec<u8>,
    /// How much of `out` is sent.
    sent: usize,
    /// True once the host has said `Hello`.
    pub greeted: bool,
    /// True until something has come in.
    pub unused: bool,
    /// False if the port is of no use once the host has closed its end.
    outlives_host: bool,
}

impl Connection {
    pub fn new(port: OwnedFd) -> Self {
        // A virtio-serial port is a character device and waits for the next host; a socket does not.
        let outlives_host = rustix::fs::fstat(&port).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::CharacterDevice
        });
        Self {
            port,
            receiver: Receiver::new(),
            out: Vec::new(),
            sent: 0,
            greeted: false,
            unused: true,
            outlives_host,
        }
    }

    /// What the next host may be met with. After a clean end that is the open port: whoever closes it throws
    /// away what the next host may have sent already.
    pub fn after(self, lost: &Lost) -> Option<Self> {
        (self.outlives_host && matches!(lost, Lost::Closed)).then(|| Self::new(self.port))
    }

    /// True if the host has to take something before more may be made.
    pub fn is_full(&self) -> bool {
        self.out.len() - self.sent >= FULL
    }

    /// True if everything is sent.
    pub fn is_empty(&self) -> bool {
        self.sent == self.out.len()
    }

    /// What to wait for.
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        if !self.is_full() {
            flags |= PollFlags::IN;
        }
        if !self.is_empty() {
            flags |= PollFlags::OUT;
        }
        (self.port.as_fd(), flags)
    }

    /// Queues a message.
    pub fn send(&mut self, message: &ToHost) {
        if let Err(error) = encode_control(&mut self.out, message) {
            log::error(format_args!(
                "a message to the host cannot be sent: {error}"
            ));
        }
    }

    /// Reads once.
    pub fn read(&mut self) -> Result<(), Lost> {
        let mut buffer = [0; CHUNK];
        match rustix::io::read(&self.port, &mut buffer) {
            Ok(0) => Err(Lost::Closed),
            Ok(n) => {
                self.unused = false;
                self.receiver.push(&buffer[..n]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(Lost::Broken(error)),
        }
    }

    /// The next message that has come in whole.
    pub fn next(&mut self) -> Result<Option<Incoming<ToAgent>>, Lost> {
        Ok(self.receiver.next()?)
    }

    /// Writes what the host takes now.
    pub fn write(&mut self) -> Result<(), Lost> {
        while !self.is_empty() {
            match rustix::io::write(&self.port, &self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Lost::Broken(error)),
            }
        }
        if self.is_empty() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent >= FULL {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}
