//! How control threads talk to a shard.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

use super::{Queue, Rewire};
use crate::capture::Tap;
use crate::config::LinkChange;
use crate::external::Device;
use crate::ring::{EventFd, RxRing, TxRing};

/// A request to a shard. Rings are made and freed by the control thread, so the shard allocates nothing for them.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug)]
pub enum Message {
    /// Serve this ring and say so; look at it whenever `kick` is signalled.
    AddTx {
        port: usize,
        ring: Box<TxRing>,
        kick: EventFd,
        done: Sender<()>,
    },
    /// Serve this ring and say so.
    AddRx {
        port: usize,
        ring: Box<RxRing>,
        done: Sender<()>,
    },
    /// Let go of a ring and answer with it, if it was served. After the answer the shard touches neither the ring nor
    /// anything it leads to.
    Remove {
        port: usize,
        queue: Queue,
        ack: Sender<Option<Returned>>,
    },
    /// Interrupt the guest by this from now on.
    SetCall {
        port: usize,
        queue: Queue,
        call: Option<EventFd>,
    },
    /// Carry frames in and out by this device.
    AddExternal {
        external: usize,
        device: Box<Device>,
    },
    /// Set new attributes of a link, then say so.
    Change {
        change: Box<LinkChange>,
        done: Sender<()>,
    },
    /// Change what there is, then give back what is left over.
    Rewire {
        rewire: Box<Rewire>,
        done: Sender<Box<Rewire>>,
    },
    /// Let a capture look at frames. Taps are made and freed by the one who captures.
    Tap { tap: Box<Tap>, done: Sender<()> },
    /// Let go of the tap of a capture and answer with it, if it was there.
    Untap {
        capture: u64,
        ack: Sender<Option<Tap>>,
    },
    /// End.
    Stop,
}

/// A ring a shard has let go of.
#[derive(Debug)]
pub enum Returned {
    /// A transmit ring.
    Tx(Box<TxRing>),
    /// A receive ring.
    Rx(Box<RxRing>),
}

impl Returned {
    /// The position from which the next owner goes on.
    pub fn base(&mut self) -> u16 {
        match self {
            Self::Tx(ring) => ring.ring().base(),
            Self::Rx(ring) => ring.ring().base(),
        }
    }
}

/// The shard's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the thread that serves this interface has ended")]
pub struct Gone;

#[derive(Debug)]
struct Bell {
    /// Set before the bell rings, so that a polling shard needs no system call to see it.
    pending: AtomicBool,
    fd: OwnedFd,
}

/// The control threads' end.
#[derive(Debug, Clone)]
pub struct Handle {
    sender: Sender<Message>,
    bell: Arc<Bell>,
}

impl Handle {
    /// Sends a request.
    pub fn send(&self, message: Message) -> Result<(), Gone> {
        self.sender.send(message).map_err(|_| Gone)?;
        self.bell.pending.store(true, Ordering::Release);
        // Cannot fail but for a full counter, which wakes the shard as well.
        let _ = rustix::io::write(&self.bell.fd, &1u64.to_ne_bytes());
        Ok(())
    }

    /// Changes a link and waits until that is done.
    pub fn change(&self, change: LinkChange) -> Result<(), Gone> {
        let (done, answer) = mpsc::channel();
        let change = Box::new(change);
        self.send(Message::Change { change, done })?;
        answer.recv().map_err(|_| Gone)
    }

    /// Changes what there is and waits until that is done.
    pub fn rewire(&self, rewire: Rewire) -> Result<(), Gone> {
        let (done, answer) = mpsc::channel();
        let rewire = Box::new(rewire);
        self.send(Message::Rewire { rewire, done })?;
        // What is left over is freed here.
        answer.recv().map(drop).map_err(|_| Gone)
    }

    /// Lets a capture look at frames; when this returns it does.
    pub fn tap(&self, tap: Tap) -> Result<(), Gone> {
        let (done, answer) = mpsc::channel();
        let tap = Box::new(tap);
        self.send(Message::Tap { tap, done })?;
        answer.recv().map_err(|_| Gone)
    }

    /// Takes a tap away from the shard and waits until it has let go.
    pub fn untap(&self, capture: u64) -> Result<Option<Tap>, Gone> {
        let (ack, answer) = mpsc::channel();
        self.send(Message::Untap { capture, ack })?;
        answer.recv().map_err(|_| Gone)
    }

    /// Gives a receive ring to the shard and waits until it serves it: a frame sent to the guest after it has been told that its ring
    /// runs must not be lost.
    pub fn add_rx(&self, port: usize, ring: Box<RxRing>) -> Result<(), Gone> {
        let (done, answer) = mpsc::channel();
        self.send(Message::AddRx { port, ring, done })?;
        answer.recv().map_err(|_| Gone)
    }

    /// Gives a transmit ring to the shard and waits until it serves it.
    pub fn add_tx(&self, port: usize, ring: Box<TxRing>, kick: EventFd) -> Result<(), Gone> {
        let (done, answer) = mpsc::channel();
        self.send(Message::AddTx {
            port,
            ring,
            kick,
            done,
        })?;
        answer.recv().map_err(|_| Gone)
    }

    /// Takes a ring away from the shard and waits until it has let go.
    pub fn remove(&self, port: usize, queue: Queue) -> Result<Option<Returned>, Gone> {
        let (ack, answer) = mpsc::channel();
        self.send(Message::Remove { port, queue, ack })?;
        answer.recv().map_err(|_| Gone)
    }
}

/// The shard's end.
#[derive(Debug)]
pub struct Mailbox {
    receiver: Receiver<Message>,
    bell: Arc<Bell>,
}

impl Mailbox {
    /// A mailbox and the handle to it.
    pub fn new() -> std::io::Result<(Handle, Self)> {
        let (sender, receiver) = mpsc::channel();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell {
            pending: AtomicBool::new(false),
            fd,
        });
        Ok((
            Handle {
                sender,
                bell: Arc::clone(&bell),
            },
            Self { receiver, bell },
        ))
    }

    /// Whether there may be something.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.bell.pending.load(Ordering::Relaxed)
    }

    /// The bell was heard. It may ring after its message was taken, so that only clearing it again makes it silent.
    pub fn heard(&self) {
        self.bell.pending.store(true, Ordering::Relaxed);
    }

    /// To be called before the messages are taken out.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.bell.fd, &mut count);
        self.bell.pending.swap(false, Ordering::AcqRel);
    }

    /// The next message. When all handles are gone the shard has nobody to work for.
    pub fn next(&self) -> Option<Message> {
        match self.receiver.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Message::Stop),
        }
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(mailbox: &Mailbox) -> bool {
        rustix::io::read(mailbox, &mut [0; 8]).is_ok()
    }

    #[test]
    fn a_late_bell_is_silenced() {
        let (handle, mailbox) = Mailbox::new().unwrap();
        handle.send(Message::Stop).unwrap();
        assert!(mailbox.is_pending());
        mailbox.clear();
        assert!(matches!(mailbox.next(), Some(Message::Stop)));
        // The sender has put its message in and set the flag, the shard has seen both, and now the bell rings.
        rustix::io::write(&mailbox, &1u64.to_ne_bytes()).unwrap();
        assert!(!mailbox.is_pending());
        mailbox.heard();
        assert!(mailbox.is_pending());
        mailbox.clear();
        assert!(mailbox.next().is_none());
        assert!(!mailbox.is_pending() && !rings(&mailbox));
    }

    #[test]
    fn without_handles_there_is_nothing_to_do() {
        let (handle, mailbox) = Mailbox::new().unwrap();
        drop(handle);
        assert!(matches!(mailbox.next(), Some(Message::Stop)));
    }
}
