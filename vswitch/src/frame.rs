//! What the switch holds of a frame: not its bytes, but where they are.

use std::ops::RangeInclusive;

use crate::classify::Class;
use crate::l2::Head;
use crate::link::Header;
use crate::offload::{Gso, Offload};
use crate::ring::Reservation;
use crate::shard::Slot;

/// The least an Ethernet frame can have: two addresses and a type. Padding to 60 bytes is the sender's affair; virtual
/// interfaces do not do it.
pub const MIN_LEN: u32 = 14;
/// The most a frame, or superframe, may have: an IP packet of 65535 bytes behind Ethernet with two VLAN tags.
pub const MAX_LEN: u32 = 65_535 + 14 + 8;
/// All it may have.
pub const LENGTHS: RangeInclusive<u32> = MIN_LEN..=MAX_LEN;

/// What is known of a frame without looking at it again, and what is to be done to it on delivery.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// Bytes; of a superframe, before it is cut.
    pub len: u32,
    /// What its sender has left to do.
    pub offload: Offload,
    /// It is a segment of a superframe, and its bytes are only where that is.
    pub segment: Option<Segment>,
    /// What its headers say, if a link asks.
    pub class: Class,
    /// It is to arrive marked as having met congestion.
    pub marked: bool,
    /// The bit that is to arrive flipped, counted from the first. A second link that flips one before the frame is copied has no
    /// effect.
    pub flipped: Option<u32>,
    /// How it begins, read once; `None` on the way from machine to machine, where nobody asks for it. Whoever copies the frame to its
    /// receiver writes this and not what stands there.
    pub head: Option<Head>,
}

/// A part of a superframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Which, from 0.
    pub index: u16,
    /// Bytes of the superframe.
    pub whole: u32,
    /// There is none behind it.
    pub last: bool,
}

impl Info {
    /// A frame that has just come, of which nothing more is known.
    #[inline]
    pub fn new(len: u32, offload: Offload) -> Self {
        Self {
            len,
            offload,
            segment: None,
            class: Class::default(),
            marked: false,
            flipped: None,
            head: None,
        }
    }

    /// How it is to be cut, if it is a superframe.
    #[inline]
    pub fn superframe(&self) -> Option<&Gso> {
        self.offload.gso.as_ref().filter(|_| self.segment.is_none())
    }

    /// Frames on a wire.
    #[inline]
    pub fn frames(&self) -> u32 {
        self.superframe().map_or(1, |gso| gso.segments(self.len))
    }

    /// Bytes on a wire, where every segment has headers of its own.
    #[inline]
    pub fn bytes(&self) -> u64 {
        let more = |gso: &Gso| u64::from(self.frames() - 1) * u64::from(gso.headers);
        u64::from(self.len) + self.superframe().map_or(0, more)
    }

    /// A segment of a superframe; `index` is less than [`Info::frames`]. A frame that is none is its only segment.
    #[must_use]
    pub fn segment(&self, index: u32) -> Self {
        let Some(gso) = self.superframe() else {
            return *self;
        };
        let (_, payload) = gso.payload(self.len, index as u16);
        Self {
            len: u32::from(gso.headers) + payload,
            segment: Some(Segment {
                index: index as u16,
                whole: self.len,
                last: index + 1 == self.frames(),
            }),
            ..*self
        }
    }

    /// The same frame when its bytes are by themselves: a segment that has been copied out of its superframe, with its head.
    #[must_use]
    pub fn alone(&self) -> Self {
        let gso = self.offload.gso.filter(|_| self.segment.is_none());
        let written = |head: Head| match self.segment {
            Some(_) => head.written(),
            None => head,
        };
        Self {
            head: self.head.map(written),
            offload: Offload {
                gso,
                ..self.offload
            },
            segment: None,
            ..*self
        }
    }

    /// What queue disciplines may know.
    pub fn header(&self) -> Header {
        Header {
            len: self.len,
            flow: self.class.flow,
            ecn_capable: self.class.ecn.is_some(),
        }
    }

    /// Bytes of it that lie in memory; with a tag added or removed not those on the wire.
    pub fn stored_len(&self) -> u32 {
        match self.head {
            Some(head) => self.len - head.len() as u32 + head.stored() as u32,
            None => self.len,
        }
    }

    /// The same frame with a flipped bit in its head, if that is where it is, put there.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if let Some(head) = &mut self.head
            && let Some(bit) = self.flipped.filter(|bit| *bit < 8 * head.len() as u32)
        {
            *head = head.flip(bit);
            self.flipped = None;
        }
        self
    }

    /// The same frame beginning with `head`, which may have another tag than the one it has.
    #[must_use]
    #[inline]
    pub fn with_head(mut self, head: Head) -> Self {
        let before = self.head.map_or(head.stored(), |head| head.len()) as u32;
        let after = head.len() as u32;
        if after != before {
            self.len = self.len + after - before;
            self.class.ecn = self
                .class
                .ecn
                .map(|ecn| ecn.moved(before as u8, after as u8));
            self.flipped = self.flipped.map(|bit| bit + 8 * after - 8 * before);
            self.offload = self.offload.moved(before as u16, after as u16);
            if let Some(segment) = &mut self.segment {
                segment.whole = segment.whole + after - before;
            }
        }
        self.head = Some(head);
        self
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
