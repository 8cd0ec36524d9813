//! Listening Unix sockets with a path that has one owner.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

/// Why a socket cannot be listened on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody answers.
    #[error("the socket {} is in use: another process listens on it; end that one or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is not a socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("cannot listen on the socket {}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
}

/// A listening socket. Its path is removed in the end, unless somebody else has taken it meanwhile.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Listens on `path`. A socket left behind by a process that has ended is replaced; the folder is locked meanwhile,
    /// so that of two that try at once one is refused.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |e: io::Error| SocketError::Io(path.to_owned(), e);
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let folder = File::open(folder).map_err(failed)?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
            Ok(m) if !m.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match probe(path) {
                Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed)?,
                // A full backlog is a sign of life, too.
                Ok(()) | Err(Errno::AGAIN) => return Err(SocketError::InUse(path.to_owned())),
                Err(e) => return Err(failed(e.into())),
            },
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let m = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode: (m.dev(), m.ino()),
        })
    }

    /// The listener.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Makes every present and future `accept` fail, and removes it. Somebody who still serves a client may keep it from being dropped
    /// before the process ends.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.remove();
    }

    fn remove(&self) {
        if let Ok(m) = fs::symlink_metadata(&self.path)
            && (m.dev(), m.ino()) == self.inode
        {
            // If this fails the next owner replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
    }
}

fn probe(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let socket = Socket::listen(&path).unwrap();
        let refused = Socket::listen(&path).unwrap_err();
        assert!(matches!(refused, SocketError::InUse(_)));
        assert!(refused.to_string().contains("a.sock"), "{refused}");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_owner_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        // A listener that is closed without its path being removed, as after SIGKILL.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Socket::listen(&path).unwrap();
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::listen(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_taken_over_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = Socket::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Socket::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
