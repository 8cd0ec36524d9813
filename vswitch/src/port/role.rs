//! How a port and its front-end meet: either of them can be the one that listens.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::socket::{Socket, SocketError};

/// Where a port meets its front-ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plug {
    /// The port listens on this socket.
    Listen(PathBuf),
    /// The front-end listens on this socket, and the port connects to it: again and again, so that either can be restarted.
    Connect(PathBuf),
}

/// What a port is on its socket.
#[derive(Debug)]
pub enum Role {
    /// It listens.
    Server(Socket),
    /// It connects to who listens.
    Client(PathBuf),
}

impl Role {
    /// What [`Plug`] says; listens at once, if at all.
    pub fn new(plug: &Plug) -> Result<Self, SocketError> {
        Ok(match plug {
            Plug::Listen(path) => Self::Server(Socket::listen(path)?),
            Plug::Connect(path) => Self::Client(path.clone()),
        })
    }

    pub(super) fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// The next front-end. A server waits until there is one; a client finds one or not.
    pub(super) fn meet(&self) -> io::Result<UnixStream> {
        match self {
            Self::Server(socket) => socket.listener().accept().map(|(stream, _)| stream),
            Self::Client(path) => UnixStream::connect(path),
        }
    }

    /// What to tell people when [`Role::meet`] has failed.
    pub(super) fn failed(&self, error: &io::Error) -> String {
        match self {
            Self::Server(_) => format!("cannot accept a connection: {error}"),
            Self::Client(path) => nobody(path, error),
        }
    }

    /// Ends every present and future wait for a front-end.
    pub(super) fn close(&self) {
        if let Self::Server(socket) = self {
            socket.close();
        }
    }
}

fn nobody(path: &Path, error: &io::Error) -> String {
    use io::ErrorKind as K;
    let why = match error.kind() {
        K::NotFound | K::ConnectionRefused => "no front-end listens there yet".to_owned(),
        _ => error.to_string(),
    };
    format!(
        "cannot connect to {}: {why}; it is tried again",
        path.display()
    )
}
