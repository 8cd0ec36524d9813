//! The ring on which a guest receives.

use std::ptr;

use smallvec::SmallVec;

use super::chain::{Chain, Part, advance, advance_or_same, gather};
use super::checksum::Sum;
use super::split::{Access, SplitRing};
use super::tx::{BATCH, Taken};
use super::violation::Violation;
use crate::memory::Segment;
use crate::net_header::Layout;
use crate::offload::{Checksum, Offload};

/// The most buffers one frame is spread over; 64 KiB in buffers of 1536 bytes need 43.
const MAX_BUFFERS: u16 = 64;

/// A receive ring.
#[derive(Debug)]
pub struct RxRing {
    ring: SplitRing,
    header: Layout,
    mergeable: bool,
    /// The last failure, so that the same buffers are not looked at again for each frame that does not fit them.
    shortage: Option<Shortage>,
}

/// What is known of the buffers that come next, after a frame did not fit them.
#[derive(Debug, Clone, Copy)]
struct Shortage {
    position: u16,
    available: u16,
    room: u64,
    failure: NoBuffer,
}

/// Buffers set aside for one frame, not yet shown to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    first: u16,
    count: u16,
}

impl Reservation {
    /// The buffer `head` alone.
    pub fn of(head: u16) -> Self {
        Self {
            first: head,
            count: 1,
        }
    }

    /// The buffer, if it is only one.
    #[inline]
    pub fn single(self) -> Option<u16> {
        (self.count == 1).then_some(self.first)
    }

    /// How many buffers.
    pub fn count(self) -> u16 {
        self.count
    }
}

/// What is written for a frame: `start`, then `rest`.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// Private bytes it begins with.
    pub start: &'a [u8],
    /// What follows.
    pub rest: Part<'a>,
    /// What is left to do to it.
    pub offload: Offload,
}

impl Content<'_> {
    /// Where its checksum goes and what it will be, if that is left to somebody.
    pub fn checksum(&self) -> Option<(u32, u16)> {
        let checksum = self.offload.checksum?;
        let start = usize::from(checksum.start);
        let mut sum = Sum::default();
        sum.bytes(self.start.get(start..).unwrap_or_default());
        let more = start.saturating_sub(self.start.len()) as u32;
        let rest = Part {
            skip: self.rest.skip + more,
            len: self.rest.len.saturating_sub(more),
            ..self.rest
        };
        rest.each(|piece| sum.segment(piece));
        Some((checksum.field(), sum.checksum()))
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
            shortage: None,
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
        if let Some(shortage) = &self.shortage
            && shortage.position == self.ring.position()
            && needed > shortage.room
            && (shortage.failure == NoBuffer::TooSmall
                || shortage.available == self.ring.available())
        {
            return Err(shortage.failure);
        }
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
            // With mergeable buffers this holds for each of them (virtio 1.2 §5.1.6.3.1).
            if (bytes as usize) < self.header.bytes() {
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
        self.shortage = (count > 0).then(|| Shortage {
            position: self.ring.position(),
            // All there was when none was left; what the guest has added since is not among it.
            available: self.ring.position().wrapping_add(count),
            room,
            failure,
        });
        Err(failure)
    }

    /// Sets one buffer for each of `frames` aside, from the first to the last for which there is one that is large enough; how many
    /// these are. Where they will be written is fetched.
    #[inline]
    pub fn reserve_batch(&mut self, frames: &[Taken], heads: &mut [u16; BATCH]) -> usize {
        let n = frames.len().min(BATCH);
        let n = self.ring.pop_singles(Access::Write, &mut heads[..n]);
        let header = self.header.bytes() as u64;
        let mut fitting = 0;
        for (frame, head) in frames.iter().zip(&heads[..n]) {
            let room = self.ring.chains[usize::from(*head)].bytes;
            if u64::from(room) < header + u64::from(frame.len) {
                break;
            }
            fitting += 1;
        }
        self.ring.unpop((n - fitting) as u16);
        fitting
    }

    /// The longest frame for which the buffer `head`, which is all of a reservation, has room.
    #[inline]
    pub fn room(&self, head: u16) -> u32 {
        let bytes = self.ring.chains[usize::from(head)].bytes;
        bytes.saturating_sub(self.header.bytes() as u32)
    }

    /// Returns buffers to the guest that [`RxRing::reserve_batch`] has set aside.
    #[inline]
    pub fn deliver_batch(&mut self, heads: &[u16]) {
        self.ring.done_batch(heads.iter().copied());
    }

    /// What was agreed on with the guest.
    pub fn layout(&self) -> Layout {
        self.header
    }

    /// Writes a frame into its buffers, which were reserved for as many bytes. A checksum that the guest does not complete itself
    /// is completed.
    #[inline]
    pub fn fill(&mut self, reservation: Reservation, content: Content<'_>) {
        if let Content {
            start: [],
            rest:
                Part {
                    pieces: [piece],
                    skip: 0,
                    len,
                },
            offload:
                Offload {
                    checksum: None,
                    gso: None,
                },
        } = content
            && piece.len == len
            && reservation.count == 1
            && self.fill_single(reservation.first, *piece)
        {
            return;
        }
        self.fill_any(reservation, content);
    }

    /// One piece into one buffer in one piece, with nothing left to do, which is nearly always so with small frames; `false` if the
    /// buffer is not like that. It was reserved for as many bytes.
    #[inline]
    pub fn fill_single(&mut self, head: u16, piece: Segment) -> bool {
        let header = self.header.receive(1, &Offload::default());
        let chain = &mut self.ring.chains[usize::from(head)];
        let Some(room) = chain.single() else {
            return false;
        };
        let n = self.header.bytes();
        let total = n as u32 + piece.len;
        if room.len < total.max(header.len() as u32) {
            return false;
        }
        // All of the longest header, as a number of bytes known beforehand is quicker to copy; the frame overwrites what is too
        // much.
        // SAFETY: `room` has as many writable bytes of a live mapping (`Segment`'s contract), which need no alignment.
        unsafe { ptr::write(room.ptr.as_ptr().cast(), header) };
        // SAFETY: `n` is no more than its length.
        let to = unsafe { room.ptr.add(n) };
        // SAFETY: as in `Writer::segment`; both have `piece.len` bytes.
        unsafe { ptr::copy(piece.ptr.as_ptr(), to.as_ptr(), piece.len as usize) };
        chain.written = total;
        true
    }

    fn fill_any(&mut self, reservation: Reservation, content: Content<'_>) {
        let mut offload = content.offload;
        let complete = offload.checksum.filter(|_| !self.header.takes_partial());
        if complete.is_some() {
            offload = Offload::default();
        }
        let header = self.header.receive(reservation.count, &offload);
        let mut writer = Writer::new(&mut self.ring.chains, reservation);
        writer.bytes(&header[..self.header.bytes()]);
        let Some(checksum) = complete else {
            writer.bytes(content.start);
            return content.rest.each(|piece| writer.segment(piece, None));
        };
        let mut sum = Sum::default();
        // Bytes that are not summed.
        let mut before = usize::from(checksum.start);
        let start = content.start;
        writer.bytes(start);
        sum.bytes(start.get(before..).unwrap_or_default());
        before = before.saturating_sub(start.len());
        content.rest.each(|piece| {
            let n = (piece.len as usize).min(before) as u32;
            before -= n as usize;
            if n > 0 {
                writer.segment(Segment { len: n, ..piece }, None);
            }
            if n < piece.len {
                writer.segment(advance_or_same(piece, n), Some(&mut sum));
            }
        });
        self.set_checksum(reservation, checksum, sum);
    }

    /// Completes the checksum of a frame that was written with its checksum left to the guest.
    pub fn complete_checksum(&mut self, reservation: Reservation, checksum: Checksum) {
        let mut sum = Sum::default();
        let mut skip = self.header.bytes() as u32 + u32::from(checksum.start);
        let mut head = reservation.first;
        for _ in 0..reservation.count {
            let chain = &self.ring.chains[usize::from(head)];
            let part = Part {
                pieces: chain.pieces(),
                skip,
                len: chain.written.saturating_sub(skip),
            };
            part.each(|piece| sum.segment(piece));
            skip = skip.saturating_sub(chain.written);
            head = chain.next;
        }
        self.set_checksum(reservation, checksum, sum);
        let header = self.header.receive(reservation.count, &Offload::default());
        for (at, byte) in (0..).zip(&header[..self.header.bytes()]) {
            self.change(reservation, at, |_| *byte);
        }
    }

    fn set_checksum(&mut self, reservation: Reservation, checksum: Checksum, sum: Sum) {
        for (at, byte) in (checksum.field()..).zip(sum.checksum().to_be_bytes()) {
            self.update(reservation, at, |_| byte);
        }
    }

    /// Changes one byte of a frame in its buffers by `change`; returns what it was, or `None` if the frame is not so long.
    pub fn update(
        &mut self,
        reservation: Reservation,
        offset: u32,
        change: impl FnOnce(u8) -> u8,
    ) -> Option<u8> {
        let at = self.header.bytes() as u32 + offset;
        self.change(reservation, at, change)
    }

    /// As [`RxRing::update`], counted from the first byte of the header.
    fn change(
        &mut self,
        reservation: Reservation,
        mut skip: u32,
        change: impl FnOnce(u8) -> u8,
    ) -> Option<u8> {
        let mut head = reservation.first;
        for _ in 0..reservation.count {
            let chain = &self.ring.chains[usize::from(head)];
            if skip >= chain.written {
                skip -= chain.written;
                head = chain.next;
                continue;
            }
            for segment in chain.pieces() {
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
            for segment in chain.pieces() {
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

    /// Where a frame lies that was written into its buffers.
    pub fn pieces(&self, reservation: Reservation) -> SmallVec<[Segment; 4]> {
        let mut pieces = SmallVec::new();
        let mut skip = self.header.bytes() as u32;
        let mut head = reservation.first;
        for _ in 0..reservation.count {
            let chain = &self.ring.chains[usize::from(head)];
            let mut left = chain.written;
            for segment in chain.pieces() {
                let len = segment.len.min(left);
                left -= len;
                if skip >= len {
                    skip -= len;
                    continue;
                }
                pieces.push(advance_or_same(Segment { len, ..*segment }, skip));
                skip = 0;
            }
            head = chain.next;
        }
        pieces
    }

    /// Takes the last `count` buffers that were set aside back, as if that had not been done. None of them has been delivered.
    pub fn unreserve(&mut self, count: u16) {
        self.ring.unpop(count);
    }

    /// Takes all buffers back that were set aside and are not delivered, as if that had not been done. Frames that later ones have overtaken
    /// are delivered as they are, because buffers are returned in order.
    pub fn take_back(&mut self) {
        self.ring.take_back();
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

    /// Copies `segment`, and adds what was copied to `sum` while it is in the cache.
    #[inline]
    fn segment(&mut self, segment: Segment, mut sum: Option<&mut Sum>) {
        let mut rest = segment;
        loop {
            let Some(room) = self.room() else { return };
            let n = room.len.min(rest.len);
            // SAFETY: both are at least `n` bytes of live mappings or private memory (`Segment`'s contract). They may
            // overlap when a loop in the lab brings a guest's frame back to it, which `copy` allows. Guests may access
            // either at the same time, which changes only what they themselves see.
            unsafe { ptr::copy(rest.ptr.as_ptr(), room.ptr.as_ptr(), n as usize) };
            if let Some(sum) = &mut sum {
                sum.segment(Segment { len: n, ..room });
            }
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
            if let Some(segment) = chain.pieces().get(self.index) {
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
        if self.offset == chain.pieces()[self.index].len {
            self.index += 1;
            self.offset = 0;
        }
    }
}
