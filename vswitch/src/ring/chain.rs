//! A descriptor chain as the switch remembers it while it owns it.

use std::ptr::{self, NonNull};

use smallvec::SmallVec;

use crate::memory::Segment;

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

/// The private copy of a chain; there is one for each possible head.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) owner: Owner,
    /// Pieces of the guest's buffers; those before `first` are used up.
    pub(super) segments: SmallVec<[Segment; 2]>,
    pub(super) first: usize,
    /// Bytes in all pieces.
    pub(super) bytes: u32,
    /// Receive: bytes written.
    pub(super) written: u32,
    /// Receive: the head of the next chain of the same frame.
    pub(super) next: u16,
}

impl Chain {
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.first = 0;
        self.bytes = 0;
        self.written = 0;
    }

    /// The pieces that are left.
    pub(super) fn pieces(&self) -> &[Segment] {
        &self.segments[self.first..]
    }

    /// Moves the first `out.len()` bytes to `out`. The caller has checked that there are as many.
    pub(super) fn pull(&mut self, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let segment = &mut self.segments[self.first];
            let to = &mut out[done..];
            let n = (segment.len as usize).min(to.len());
            // SAFETY: the segment is `len >= n` bytes of a live mapping (`Segment`'s contract, kept by the ring that
            // owns this chain and the `Memory`), `to` has `n` bytes, and private memory cannot overlap a mapping.
            // The guest may write at the same time; the bytes are then arbitrary, which every reader expects.
            unsafe { ptr::copy_nonoverlapping(segment.ptr.as_ptr(), to.as_mut_ptr(), n) };
            done += n;
            if n == segment.len as usize {
                self.first += 1;
            } else {
                *segment = advance(*segment, n as u32);
            }
        }
        self.bytes -= out.len() as u32;
    }
}

/// `segment` without its first `n` bytes; `n` is less than its length.
pub(super) fn advance(segment: Segment, n: u32) -> Segment {
    debug_assert!(n < segment.len);
    // SAFETY: `n` is less than the length of the segment, so the sum stays inside the same mapping.
    let ptr: NonNull<u8> = unsafe { segment.ptr.add(n as usize) };
    Segment {
        ptr,
        len: segment.len - n,
    }
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
