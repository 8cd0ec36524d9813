//! The event descriptors a front-end passes for kicks and calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{Errno, FdFlags, fcntl_setfd, write};

/// An eventfd from a front-end, checked to be one and made non-blocking.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Takes `fd` if it is an eventfd. Anything else (a pipe, a socket, a regular file) could block the data path or
    /// never become ready.
    pub fn new(fd: OwnedFd) -> Result<Self, Errno> {
        // The vhost crate receives descriptors without close-on-exec.
        fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        // Anonymous inodes have no type.
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::Unknown {
            return Err(Errno::INVAL);
        }
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // Of the anonymous inodes only an eventfd accepts eight bytes; adding 0 changes nothing.
        match write(&fd, &0u64.to_ne_bytes()) {
            Ok(8) | Err(Errno::AGAIN) => Ok(Self(fd)),
            Ok(_) => Err(Errno::INVAL),
            Err(e) => Err(e),
        }
    }

    /// A second descriptor for the same eventfd.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Signals it. A full counter means that it is signalled already.
    ///
    /// # Errors
    /// The front-end, which shares the descriptor, has made it block, so that only a signal ended the call.
    pub fn signal(&self) -> Result<(), Blocks> {
        match write(&self.0, &1u64.to_ne_bytes()) {
            Err(Errno::INTR) => Err(Blocks),
            // Nothing can be done for a front-end that broke its own descriptor.
            _ => Ok(()),
        }
    }
}

/// A descriptor blocks although it was made not to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks;

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn only_eventfds_are_taken() {
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        let copy = event.try_clone().unwrap();
        EventFd::new(event).unwrap().signal().unwrap();
        let mut count = [0; 8];
        rustix::io::read(&copy, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);

        let (read, write) = std::io::pipe().unwrap();
        assert!(EventFd::new(read.into()).is_err());
        assert!(EventFd::new(write.into()).is_err());
        assert!(
            EventFd::new(
                rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()).unwrap()
            )
            .is_err()
        );
        assert!(EventFd::new(tempfile::tempfile().unwrap().into()).is_err());
    }

    #[test]
    fn a_full_counter_does_not_block() {
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        EventFd::new(event).unwrap().signal().unwrap();
    }
}
