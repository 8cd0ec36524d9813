//! A frame where it lies.

use crate::frame::Info;
use crate::ring::Part;

/// The bytes of a frame, in pieces, read without copying them first. A guest may change its memory at any time; what is read is
/// then arbitrary, but never outside the frame.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Its first bytes.
    start: &'a [u8],
    /// What follows.
    rest: Part<'a>,
    len: u32,
    /// Bytes there are: `len`, or 0 if the frame's place is gone.
    present: u32,
}

impl<'a> View<'a> {
    /// A frame of which `info` is known: `start`, then `rest`. Without either only its length is known.
    pub fn new(info: &Info, start: &'a [u8], rest: Part<'a>) -> Self {
        let there = start.len() as u64 + u64::from(rest.present());
        Self {
            start,
            rest,
            len: info.len,
            present: u32::try_from(there).map_or(info.len, |there| there.min(info.len)),
        }
    }

    /// A frame in private memory.
    #[cfg(test)]
    pub fn of(bytes: &'a [u8]) -> Self {
        let len = bytes.len() as u32;
        Self {
            start: bytes,
            rest: Part::default(),
            len,
            present: len,
        }
    }

    /// Bytes of the frame.
    pub fn length(&self) -> u32 {
        self.len
    }

    /// Bytes of it that can be read.
    pub fn present(&self) -> u32 {
        self.present
    }

    /// The big-endian number of `size` bytes at `offset`; `None` past the end.
    #[inline]
    pub fn number(&self, offset: u32, size: usize) -> Option<u32> {
        let mut bytes = [0; 4];
        let out = bytes.get_mut(4 - size..)?;
        if offset.checked_add(size as u32)? > self.present {
            return None;
        }
        self.read(offset, out);
        Some(u32::from_be_bytes(bytes))
    }

    /// Copies the bytes from `offset` on; there are as many.
    pub fn read(&self, offset: u32, out: &mut [u8]) {
        let start = self.start.get(offset as usize..).unwrap_or_default();
        let n = start.len().min(out.len());
        let (head, tail) = out.split_at_mut(n);
        head.copy_from_slice(&start[..n]);
        let passed = (offset + n as u32).saturating_sub(self.start.len() as u32);
        let part = Part {
            skip: self.rest.skip + passed,
            len: tail.len() as u32,
            ..self.rest
        };
        part.copy(tail);
    }
}
