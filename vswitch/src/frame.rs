//! What the switch holds of a frame: not its bytes, but where they are.

use crate::classify::Class;
use crate::l2::Addresses;
use crate::link::Header;
use crate::ring::Reservation;
use crate::shard::Slot;

/// The least an Ethernet frame can have: two addresses and a type. Padding to 60 bytes is the sender's affair; virtual
/// interfaces do not do it.
pub const MIN_LEN: u32 = 14;
/// The most a frame may have: an IP packet of 65535 bytes behind Ethernet with two VLAN tags.
pub const MAX_LEN: u32 = 65_535 + 14 + 8;

/// What is known of a frame without looking at it again, and what is to be done to it on delivery.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// Bytes.
    pub len: u32,
    /// What its headers say, if a link asks.
    pub class: Class,
    /// It is to arrive marked as having met congestion.
    pub marked: bool,
    /// The bit that is to arrive flipped, counted from the first. A second link that flips one before the frame is copied has no
    /// effect.
    pub flipped: Option<u32>,
    /// The addresses, read once; `None` on the way from machine to machine, where nobody asks for them.
    /// Whoever copies the frame writes these and not what the guest may have put there since, so that a frame is delivered
    /// with the addresses by which it was forwarded.
    pub addresses: Option<Addresses>,
}

impl Info {
    /// What queue disciplines may know.
    pub fn header(&self) -> Header {
        Header {
            len: self.len,
            flow: self.class.flow,
            ecn_capable: self.class.ecn.is_some(),
        }
    }

    /// The addresses as they will arrive.
    pub fn addresses_on_arrival(&self) -> Option<Addresses> {
        let mut addresses = self.addresses?;
        if let Some(bit) = self.flipped
            && let Some(byte) = addresses.get_mut(bit as usize / 8)
        {
            *byte ^= 1 << (bit % 8);
        }
        Some(addresses)
    }
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
}
