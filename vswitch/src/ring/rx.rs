//! The ring on which a guest receives.

use std::ptr;

use super::chain::{Chain, advance, gather};
use super::split::{Access, SplitRing, Violation};
use crate::memory::Segment;
use crate::net_header::Layout;

/// The most buffers one frame is spread over; 64 KiB in buffers of 1536 bytes need 43.
const MAX_BUFFERS: u16 = 64;

/// A receive ring.
#[derive(Debug)]
pub struct RxRing {
    ring: SplitRing,
    header: Layout,
    mergeable: bool,
}

/// Buffers set aside for one frame, not yet shown to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    first: u16,
    count: u16,
}

impl Reservation {
    /// How many buffers.
    pub fn count(self) -> u16 {
        self.count
    }
}

/// Why there is no room for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoBuffer {
    /// The guest has posted no (more) buffers.
    Empty,
    /// What it posts is too small for the frame.
    TooSmall,
    /// It broke the rules.
    Violation(Violation),
}

impl RxRing {
    /// A ring whose frames go behind a header of the given layout, spread over several buffers if `mergeable`.
    pub fn new(ring: SplitRing, header: Layout, mergeable: bool) -> Self {
        Self {
            ring,
            header,
            mergeable,
        }
    }

    /// The ring below.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// Sets buffers for a frame of `len` bytes aside. On failure nothing is taken.
    #[inline]
    pub fn reserve(&mut self, len: u32) -> Result<Reservation, NoBuffer> {
        let needed = self.header.bytes() as u64 + u64::from(len);
        let mut room = 0u64;
        let mut first = 0;
        let mut last = 0;
        let mut count = 0;
        let failure = loop {
            let head = match self.ring.pop(Access::Write) {
                Ok(Some(head)) => head,
                Ok(None) => break NoBuffer::Empty,
                Err(v) => break NoBuffer::Violation(v),
            };
            let bytes = self.ring.chains[usize::from(head)].bytes;
            if count == 0 {
                first = head;
            } else {
                self.ring.chains[usize::from(last)].next = head;
            }
            last = head;
            count += 1;
            if (bytes as usize) < self.header.bytes() && count == 1 {
                break NoBuffer::Violation(Violation::ShortHeader);
            }
            room += u64::from(bytes);
            if room >= needed {
                return Ok(Reservation { first, count });
            }
            if !self.mergeable || count == MAX_BUFFERS {
                break NoBuffer::TooSmall;
            }
        };
        self.ring.unpop(count);
        Err(failure)
    }

    /// Writes a frame into its buffers: `start`, then `pieces` without their first `start.len()` bytes. Together they
    /// have the length the buffers were reserved for.
    pub fn fill(&mut self, reservation: Reservation, start: &[u8], pieces: &[Segment]) {
        let header = self.header.receive(reservation.count);
        let mut writer = Writer::new(&mut self.ring.chains, reservation);
        writer.bytes(&header[..self.header.bytes()]);
        writer.bytes(start);
        let mut skip = start.len();
        for piece in pieces {
            let len = piece.len as usize;
            if skip >= len {
                skip -= len;
                continue;
            }
            writer.segment(advance_or_same(*piece, skip as u32));
            skip = 0;
        }
    }

    /// Changes one byte of a frame in its buffers by `change`; returns what it was, or `None` if the frame is not so long.
    pub fn update(
        &mut self,
        reservation: Reservation,
        offset: u32,
        change: impl FnOnce(u8) -> u8,
    ) -> Option<u8> {
        let mut skip = self.header.bytes() as u32 + offset;
        let mut head = reservation.first;
        for _ in 0..reservation.count {
            let chain = &self.ring.chains[usize::from(head)];
            if skip >= chain.written {
                skip -= chain.written;
                head = chain.next;
                continue;
            }
            for segment in &chain.segments {
                if skip >= segment.len {
                    skip -= segment.len;
                    continue;
                }
                let at = advance_or_same(*segment, skip).ptr;
                // SAFETY: `skip` is less than the length of the segment, so this is a byte of a live mapping that can be read and
                // written (`Segment`'s contract). The guest may change it at the same time, which changes only what it
                // itself sees.
                let before = unsafe { at.read_volatile() };
                // SAFETY: as above.
                unsafe { at.write_volatile(change(before)) };
                return Some(before);
            }
        }
        None
    }

    /// Reads a frame back from its buffers. What the guest has done to it in the meantime harms only itself.
    pub fn read(&self, reservation: Reservation, out: &mut [u8]) {
        let mut skip = self.header.bytes();
        let mut done = 0;
        let mut head = reservation.first;
        for _ in 0..reservation.count {
            let chain = &self.ring.chains[usize::from(head)];
            for segment in &chain.segments {
                let len = segment.len as usize;
                if skip >= len {
                    skip -= len;
                    continue;
                }
                let piece = advance_or_same(*segment, skip as u32);
                done += gather(&[piece], &mut out[done..]);
                skip = 0;
            }
            head = chain.next;
        }
    }

    /// Takes the last `count` buffers that were set aside back, as if that had not been done. None of them has been delivered.
    pub fn unreserve(&mut self, count: u16) {
        self.ring.unpop(count);
    }

    /// Returns the buffers of a frame to the guest, all at once.
    #[inline]
    pub fn deliver(&mut self, reservation: Reservation) {
        let mut head = reservation.first;
        for _ in 0..reservation.count {
            let next = self.ring.chains[usize::from(head)].next;
            self.ring.done(head);
            head = next;
        }
    }
}

fn advance_or_same(segment: Segment, n: u32) -> Segment {
    if n == 0 { segment } else { advance(segment, n) }
}

/// Writes into the buffers of a reservation, front to back.
struct Writer<'a> {
    chains: &'a mut [Chain],
    head: u16,
    /// Chains behind `head`.
    left: u16,
    index: usize,
    offset: u32,
}

impl<'a> Writer<'a> {
    fn new(chains: &'a mut [Chain], reservation: Reservation) -> Self {
        Self {
            chains,
            head: reservation.first,
            left: reservation.count - 1,
            index: 0,
            offset: 0,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(room) = self.room() else { return };
            let n = (room.len as usize).min(rest.len());
            // SAFETY: `room` is `len >= n` writable bytes of a live mapping (`Segment`'s contract); `rest` has `n`
            // bytes and is private memory, which cannot overlap a mapping.
            unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), room.ptr.as_ptr(), n) };
            self.wrote(n as u32);
            rest = &rest[n..];
        }
    }

    fn segment(&mut self, segment: Segment) {
        let mut rest = segment;
        loop {
            let Some(room) = self.room() else { return };
            let n = room.len.min(rest.len);
            // SAFETY: both are at least `n` bytes of live mappings or private memory (`Segment`'s contract). They may
            // overlap when a loop in the lab brings a guest's frame back to it, which `copy` allows. Guests may access
            // either at the same time, which changes only what they themselves see.
            unsafe { ptr::copy(rest.ptr.as_ptr(), room.ptr.as_ptr(), n as usize) };
            self.wrote(n);
            if n == rest.len {
                return;
            }
            rest = advance(rest, n);
        }
    }

    /// The free rest of the current segment. `None` when the buffers are full, which a reservation of the right length
    /// rules out.
    #[inline]
    fn room(&mut self) -> Option<Segment> {
        loop {
            let chain = &self.chains[usize::from(self.head)];
            if let Some(segment) = chain.segments.get(self.index) {
                return Some(advance_or_same(*segment, self.offset));
            }
            if self.left == 0 {
                return None;
            }
            self.left -= 1;
            self.head = chain.next;
            self.index = 0;
        }
    }

    #[inline]
    fn wrote(&mut self, n: u32) {
        let chain = &mut self.chains[usize::from(self.head)];
        chain.written += n;
        self.offset += n;
        if self.offset == chain.segments[self.index].len {
            self.index += 1;
            self.offset = 0;
        }
    }
}
