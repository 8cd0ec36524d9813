//! A descriptor chain as the switch remembers it while it owns it.

use std::ptr::{self, NonNull};

use super::split::Access;
use crate::memory::Segment;

/// Pieces for which memory is kept.
const KEPT: usize = 32;

/// Who has a head descriptor at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Owner {
    /// The guest.
    #[default]
    Guest,
    /// The switch, still in use.
    Switch,
    /// The switch, to be returned as soon as all taken before it are returned.
    Done,
}

/// The private copy of a chain; there is one for each possible head. It fills a cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Chain {
    /// The guest's buffers, if they are one piece; of length 0 if they are none.
    one: Segment,
    /// The pieces, if they are several; those before `first` are used up.
    more: Vec<Segment>,
    /// Bytes in all pieces.
    pub(super) bytes: u32,
    /// Receive: bytes written.
    pub(super) written: u32,
    first: u16,
    /// Receive: the head of the next chain of the same frame.
    pub(super) next: u16,
    /// Transmit: frames that still need it.
    pub(super) users: u16,
    pub(super) owner: Owner,
}

const _: () = assert!(size_of::<Chain>() == 64);

const NOTHING: Segment = Segment {
    ptr: NonNull::dangling(),
    len: 0,
};

impl Default for Chain {
    fn default() -> Self {
        Self {
            one: NOTHING,
            more: Vec::new(),
            bytes: 0,
            written: 0,
            first: 0,
            next: 0,
            users: 0,
            owner: Owner::Guest,
        }
    }
}

impl Chain {
    /// A new chain in this place, of one piece.
    #[inline]
    pub(super) fn set(&mut self, piece: Segment) {
        self.one = piece;
        self.more.clear();
        self.bytes = piece.len;
        self.written = 0;
    }

    /// A new chain in this place, of what `collect` adds. The caller sets `bytes`.
    pub(super) fn collect<E>(
        &mut self,
        collect: impl FnOnce(&mut Vec<Segment>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.one = NOTHING;
        self.more.clear();
        self.first = 0;
        self.written = 0;
        collect(&mut self.more)?;
        if let [piece] = self.more[..] {
            self.one = piece;
            self.more.clear();
        }
        Ok(())
    }

    /// Frees the memory that an uncommon number of pieces took. A guest could otherwise make the switch keep kilobytes for
    /// each of its descriptors.
    #[inline]
    pub(super) fn shrink(&mut self) {
        if self.more.capacity() > KEPT {
            self.more = Vec::new();
        }
    }

    /// The pieces that are left.
    #[inline]
    pub(super) fn pieces(&self) -> &[Segment] {
        if !self.more.is_empty() {
            &self.more[usize::from(self.first)..]
        } else if self.one.len > 0 {
            std::slice::from_ref(&self.one)
        } else {
            &[]
        }
    }

    /// The only piece that is left.
    #[inline]
    pub(super) fn single(&self) -> Option<Segment> {
        (self.more.is_empty() && self.one.len > 0).then_some(self.one)
    }

    /// Asks the processor to fetch the first bytes, to be read or written.
    #[inline]
    pub(super) fn prefetch(&self, access: Access) {
        match access {
            Access::Read => prefetch(self.one.ptr),
            Access::Write => prefetch_to_write(self.one.ptr),
        }
    }

    /// Moves the first `N` bytes to a copy, and `n` of them out of the chain, if they are in its only piece.
    #[inline]
    pub(super) fn pull_single<const N: usize>(&mut self, n: usize) -> Option<[u8; N]> {
        if !self.more.is_empty() || (self.one.len as usize) <= N || n > N {
            return None;
        }
        // SAFETY: the piece is more than `N` bytes of a live mapping (`Segment`'s contract, kept by the ring that owns this
        // chain and the `Memory`); bytes need no alignment. The guest may write at the same time; they are then
        // arbitrary, which every reader expects.
        let bytes = unsafe { ptr::read(self.one.ptr.as_ptr().cast()) };
        self.one = advance(self.one, n as u32);
        self.bytes -= n as u32;
        Some(bytes)
    }

    /// Moves the first `out.len()` bytes to `out`. The caller has checked that there are as many.
    pub(super) fn pull(&mut self, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let segment = if self.more.is_empty() {
                &mut self.one
            } else {
                &mut self.more[usize::from(self.first)]
            };
            let to = &mut out[done..];
            let n = (segment.len as usize).min(to.len());
            // SAFETY: as in `pull_single` for the segment's `len >= n` bytes; `to` has `n` bytes, and private memory
            // cannot overlap a mapping.
            unsafe { ptr::copy_nonoverlapping(segment.ptr.as_ptr(), to.as_mut_ptr(), n) };
            done += n;
            if n < segment.len as usize {
                *segment = advance(*segment, n as u32);
            } else if self.more.is_empty() {
                self.one = NOTHING;
            } else {
                self.first += 1;
            }
        }
        self.bytes -= out.len() as u32;
    }
}

/// Asks the processor to fetch what is at `at`, be it a valid address or not.
#[inline]
pub(super) fn prefetch(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction is there on every x86-64, and has no effect but on time, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast()) };
    }
}

/// As [`prefetch`], and to take it away from other processors, as writing does.
#[inline]
pub(super) fn prefetch_to_write(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: processors that do not know the instruction do nothing; the others nothing but what `prefetch` does.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at.as_ptr(), options(nostack, preserves_flags, readonly));
    };
}

/// `segment` without its first `n` bytes; `n` is less than its length.
#[inline]
pub(super) fn advance(segment: Segment, n: u32) -> Segment {
    debug_assert!(n < segment.len);
    // SAFETY: `n` is less than the length of the segment, so the sum stays inside the same mapping.
    let ptr: NonNull<u8> = unsafe { segment.ptr.add(n as usize) };
    Segment {
        ptr,
        len: segment.len - n,
    }
}

/// A part of what lies in `pieces`: `len` bytes, or as many as there are, behind the first `skip`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Part<'a> {
    /// The pieces.
    pub pieces: &'a [Segment],
    /// Bytes before it.
    pub skip: u32,
    /// Bytes of it.
    pub len: u32,
}

impl Part<'_> {
    /// Bytes of it that there are.
    pub fn present(self) -> u32 {
        let mut bytes = 0;
        self.each(|piece| bytes += piece.len);
        bytes
    }

    /// Its own pieces.
    #[inline]
    pub(super) fn each(self, mut visit: impl FnMut(Segment)) {
        let Self {
            pieces,
            mut skip,
            mut len,
        } = self;
        for piece in pieces {
            if len == 0 {
                return;
            }
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let mut piece = advance_or_same(*piece, skip);
            skip = 0;
            piece.len = piece.len.min(len);
            len -= piece.len;
            visit(piece);
        }
    }

    /// Copies it to `out`, which is private and has room for it; returns how many bytes there were.
    pub fn copy(self, out: &mut [u8]) -> usize {
        let mut done = 0;
        self.each(|piece| done += gather(&[piece], &mut out[done..]));
        done
    }
}

pub(super) fn advance_or_same(segment: Segment, n: u32) -> Segment {
    if n == 0 { segment } else { advance(segment, n) }
}

/// Copies the bytes of `pieces`, in order, to `out`, which has room for them all; returns how many there were.
pub fn gather(pieces: &[Segment], out: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        let to = &mut out[done..];
        let n = (piece.len as usize).min(to.len());
        // SAFETY: as in `Chain::pull`.
        unsafe { ptr::copy_nonoverlapping(piece.ptr.as_ptr(), to.as_mut_ptr(), n) };
        done += n;
    }
    done
}
