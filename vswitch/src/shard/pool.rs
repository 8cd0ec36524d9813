//! Memory for frames that can wait neither in the sender's buffers nor in the receiver's.

use crate::memory::Segment;
use std::ptr::NonNull;

/// Buffers up to this size are kept for reuse.
pub const KEPT: usize = 2048;

/// A frame in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    users: u32,
}

/// A bounded set of buffers, each counted by its users.
#[derive(Debug)]
pub struct Pool {
    buffers: Vec<Buffer>,
    free: Vec<u32>,
    limit: usize,
    allocated: usize,
}

impl Pool {
    /// A pool that allocates no more than `limit` bytes for frames.
    pub fn new(limit: usize) -> Self {
        Self {
            buffers: Vec::new(),
            free: Vec::new(),
            limit,
            allocated: 0,
        }
    }

    /// Makes a frame of `len` bytes, which `write` fills, with one user. `None` when the pool is used up.
    pub fn store(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Option<Slot> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.buffers.push(Buffer::default());
            self.buffers.len() as u32 - 1
        });
        let buffer = &mut self.buffers[index as usize];
        let capacity = len.max(KEPT);
        let more = capacity.saturating_sub(buffer.bytes.capacity());
        if self.allocated + more > self.limit {
            self.free.push(index);
            return None;
        }
        let before = buffer.bytes.capacity();
        buffer.bytes.reserve_exact(capacity);
        self.allocated += buffer.bytes.capacity() - before;
        buffer.bytes.resize(len, 0);
        write(&mut buffer.bytes);
        buffer.users = 1;
        Some(Slot(index))
    }

    /// The bytes of a frame that nobody else uses yet.
    pub fn bytes_mut(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.buffers[slot.0 as usize].bytes
    }

    /// The bytes of a frame.
    pub fn bytes(&self, slot: Slot) -> &[u8] {
        &self.buffers[slot.0 as usize].bytes
    }

    /// Cuts a frame that nobody else uses yet to its first `len` bytes.
    pub fn truncate(&mut self, slot: Slot, len: usize) {
        self.buffers[slot.0 as usize].bytes.truncate(len);
    }

    /// One more user.
    pub fn share(&mut self, slot: Slot) {
        self.buffers[slot.0 as usize].users += 1;
    }

    /// One user less; the last one frees the frame.
    pub fn release(&mut self, slot: Slot) {
        let buffer = &mut self.buffers[slot.0 as usize];
        buffer.users -= 1;
        if buffer.users == 0 {
            buffer.bytes.clear();
            if buffer.bytes.capacity() > KEPT {
                self.allocated -= buffer.bytes.capacity();
                buffer.bytes = Vec::new();
            }
            self.free.push(slot.0);
        }
    }

    /// Where the frame lies; valid until it is released.
    pub fn segment(&self, slot: Slot) -> Segment {
        let bytes = &self.buffers[slot.0 as usize].bytes;
        let ptr = NonNull::from(bytes.as_slice()).cast();
        Segment {
            ptr,
            len: bytes.len() as u32,
        }
    }

    /// Bytes allocated.
    pub fn allocated(&self) -> usize {
        self.allocated
    }

    /// Frames held.
    pub fn in_use(&self) -> usize {
        self.buffers.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_reused() {
        let mut pool = Pool::new(2 * KEPT);
        let a = pool.store(100, |b| b.fill(1)).unwrap();
        let b = pool.store(KEPT, |b| b.fill(2)).unwrap();
        assert!(pool.store(1, |_| ()).is_none());
        pool.share(a);
        pool.release(a);
        assert_eq!(pool.in_use(), 2);
        pool.release(a);
        assert_eq!(pool.in_use(), 1);
        assert_eq!(pool.allocated(), 2 * KEPT, "small buffers are kept");
        let c = pool.store(7, |b| b.fill(3)).unwrap();
        assert_eq!(c, a);
        assert_eq!(pool.segment(c).len, 7);
        pool.release(b);
        pool.release(c);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn large_buffers_are_given_back() {
        let mut pool = Pool::new(100_000);
        let big = pool.store(65_000, |_| ()).unwrap();
        assert!(pool.store(65_000, |_| ()).is_none());
        pool.release(big);
        assert_eq!(pool.allocated(), 0);
        assert!(pool.store(65_000, |_| ()).is_some());
    }
}
