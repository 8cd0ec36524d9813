//! What the switch holds of a frame: not its bytes, but where they are.

use crate::l2::Addresses;
use crate::ring::Reservation;
use crate::shard::Slot;

/// The least an Ethernet frame can have: two addresses and a type. Padding to 60 bytes is the sender's affair; virtual
/// interfaces do not do it.
pub const MIN_LEN: u32 = 14;
/// The most a frame may have: an IP packet of 65535 bytes behind Ethernet with two VLAN tags.
pub const MAX_LEN: u32 = 65_535 + 14 + 8;

/// What is known of a frame without looking at it again.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// Bytes.
    pub len: u32,
    /// The addresses, read once; `None` on the way from machine to machine, where nobody asks for them.
    /// Whoever copies the frame writes these and not what the guest may have put there since, so that a frame is delivered
    /// with the addresses by which it was forwarded.
    pub addresses: Option<Addresses>,
}

/// Where the bytes of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the sender's buffers; its descriptor is still to be completed.
    Sender(SenderRef),
    /// In buffers of the receiver that it has not been shown yet.
    Receiver {
        /// The start of the receiver's ring they belong to.
        generation: u32,
        /// Which.
        reservation: Reservation,
    },
    /// In the switch's own memory.
    Pool(Slot),
    /// Nowhere: the frame will be lost, and only takes its time on the wire.
    Nowhere,
}

/// A chain of a transmit ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderRef {
    /// Index of the port in the shard.
    pub port: usize,
    /// Which start of the port's ring it was taken from; a ring that was stopped has taken its chains with it.
    pub generation: u32,
    /// The head.
    pub head: u16,
}

/// A frame inside a direction of a link.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// What is known of it.
    pub info: Info,
    /// Where it is.
    pub place: Place,
    /// It will not arrive.
    pub lost: bool,
}
