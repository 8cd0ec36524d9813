//! Ports to the outside world: a TAP device, an interface of the host, a tunnel in VXLAN format.
//!
//! A [`Device`] is opened by whoever starts the switch and handed to a shard, which reads frames into its pool and
//! writes them from wherever they are. Nothing the host does to a device ends the switch: what the kernel refuses is a
//! counted drop, and a device that has gone is looked for until it is back.

mod inbox;
mod netdev;
mod offload;
mod outbox;
mod packet;
mod tap;
mod vxlan;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use thiserror::Error;
use topology::model::External;

pub use inbox::{BATCH, Inbox, Received};
pub use offload::{Incomplete, segments};
pub use outbox::{MAX_PIECES, Outbox};

use crate::l2::HEAD_BYTES;
use crate::net_header::{Layout, Request};
use packet::Packet;
use tap::Tap;
use vxlan::Vxlan;

/// The most bytes a device puts before a frame.
const PREFIX: usize = 10;
/// The most bytes that stand before the pieces of a frame: what a device puts there, and the frame's own head.
const START: usize = PREFIX + HEAD_BYTES;

/// Why a device cannot be used.
#[derive(Debug, Error)]
#[error("cannot {what}: {error}{remedy}")]
pub struct OpenError {
    what: String,
    error: io::Error,
    remedy: Remedy,
}

/// What to do about it.
#[derive(Debug)]
struct Remedy(String);

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; {}", self.0)
    }
}

impl OpenError {
    fn new(what: impl Into<String>, error: Errno, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            error: error.into(),
            remedy: Remedy(remedy.into()),
        }
    }
}

/// What a frame that was received looks like in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// An Ethernet frame.
    Frame {
        /// Bytes in memory.
        len: usize,
        /// Its outermost tag, which the kernel has taken out.
        tag: Option<[u8; 4]>,
        /// What its sender left to whoever carries it.
        left: Left,
    },
    /// Not for this port, or cut off.
    Other,
}

/// What is left to do to a frame that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// This, before it enters the lab.
    Complete(Incomplete),
    /// This, which the lab's machines can take as it is; not yet compared with the frame.
    Asked(Request),
}

/// An open device.
#[derive(Debug)]
pub enum Device {
    /// A TAP device.
    Tap(Tap),
    /// An interface of the host.
    Packet(Packet),
    /// A tunnel.
    Vxlan(Vxlan),
}

impl Device {
    /// Opens what a node leads to.
    pub fn open(external: &External) -> Result<Self, OpenError> {
        match external {
            External::Tap { name, mtu } => Tap::open(name, *mtu).map(Self::Tap),
            External::Interface { name } => Packet::open(name).map(Self::Packet),
            External::Vxlan { vni, remote, local } => {
                Vxlan::open(*vni, *remote, *local).map(Self::Vxlan)
            }
        }
    }

    /// Whether it makes sense to open a device that was lost again.
    pub fn is_back(external: &External) -> bool {
        match external {
            External::Interface { name } => {
                netdev::Netdev::new().and_then(|netdev| netdev.is_up(name)) == Ok(true)
            }
            External::Tap { .. } | External::Vxlan { .. } => true,
        }
    }

    /// Receives frames into `inbox` without waiting for any; how many.
    pub fn receive(&self, inbox: &mut Inbox) -> Result<usize, Errno> {
        match self {
            Self::Tap(tap) => tap.receive(inbox),
            Self::Packet(packet) => packet.receive(inbox),
            Self::Vxlan(vxlan) => vxlan.receive(inbox),
        }
    }

    /// What the `n`-th frame received last is.
    pub fn arrival(&self, inbox: &Inbox, n: usize) -> Arrival {
        match self {
            Self::Tap(tap) => tap.arrival(inbox, n),
            Self::Packet(_) => packet::arrival(inbox, n),
            Self::Vxlan(vxlan) => vxlan.arrival(inbox, n),
        }
    }

    /// Sends what is in `outbox`, without waiting, and notes there what became of each frame.
    pub fn send(&self, outbox: &mut Outbox) {
        match self {
            Self::Tap(tap) => tap.send(outbox),
            Self::Packet(packet) => packet.send(outbox),
            Self::Vxlan(vxlan) => vxlan.send(outbox),
        }
    }

    /// What the header before each frame that is sent is like, if it says what is left to do to the frame.
    pub fn layout(&self) -> Option<Layout> {
        match self {
            Self::Tap(tap) => Some(tap.layout()),
            Self::Packet(_) | Self::Vxlan(_) => None,
        }
    }

    /// What stands before each frame that is sent, if it has no such header.
    pub fn prefix(&self) -> &[u8] {
        match self {
            Self::Tap(_) => &[],
            Self::Packet(_) => packet::PREFIX,
            Self::Vxlan(vxlan) => vxlan.prefix(),
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Packet(packet) => packet.as_fd(),
            Self::Vxlan(vxlan) => vxlan.as_fd(),
        }
    }
}

/// The result of a system call.
fn check(result: i64) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| {
        let error = io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

/// Asks for room for so many bytes in the kernel; as much as one may have is enough.
fn enlarge(socket: BorrowedFd<'_>) {
    const BYTES: usize = 4 << 20;
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BYTES).is_err() {
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(socket, BYTES);
    }
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, BYTES);
}
