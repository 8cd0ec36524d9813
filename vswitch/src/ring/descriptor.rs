//! Descriptors in the guest's memory.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const DESC_NEXT: u16 = 1;
pub(super) const DESC_WRITE: u16 = 2;
pub(super) const DESC_INDIRECT: u16 = 4;
pub(super) const DESC_FLAGS: u16 = DESC_NEXT | DESC_WRITE | DESC_INDIRECT;

/// Bytes of one.
pub(super) const DESC_BYTES: u64 = 16;

/// One descriptor, after it was read.
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// From its two halves as they lie in memory.
    #[inline]
    fn new(address: u64, rest: u64) -> Self {
        let rest = u64::from_le(rest);
        Self {
            address: u64::from_le(address),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// Reads descriptor `index` of a table, each bit of it once, so that what is checked is what is used. The caller has checked
/// that the table has so many.
#[inline]
pub(super) fn read_descriptor(table: NonNull<u8>, index: usize) -> Descriptor {
    // SAFETY: the caller found `index` in a table that lies inside one mapping.
    let at = unsafe { table.add(index * DESC_BYTES as usize) };
    if at.addr().get().is_multiple_of(align_of::<AtomicU64>()) {
        read_aligned(at)
    } else {
        read_unaligned(at)
    }
}

/// Reads descriptor `index` of the ring's own table, which is aligned. The caller has checked that it has so many.
#[inline]
pub(super) fn read_own(table: NonNull<u8>, index: u16) -> Descriptor {
    // SAFETY: as in `read_descriptor`.
    read_aligned(unsafe { table.add(usize::from(index) * DESC_BYTES as usize) })
}

#[inline]
fn read_aligned(at: NonNull<u8>) -> Descriptor {
    let halves: *const [AtomicU64; 2] = at.as_ptr().cast();
    // SAFETY: the callers have 16 bytes there in a live mapping, aligned to 8; the guest accesses them from other processes
    // only, which atomics are made for.
    let [address, rest] = unsafe { &*halves };
    Descriptor::new(
        address.load(Ordering::Relaxed),
        rest.load(Ordering::Relaxed),
    )
}

/// An indirect table may lie anywhere.
#[cold]
fn read_unaligned(at: NonNull<u8>) -> Descriptor {
    // SAFETY: the caller has 16 bytes there in a live mapping; bytes need no alignment, and volatile makes it one read of each.
    let raw: [[u8; 8]; 2] = unsafe { ptr::read_volatile(at.as_ptr().cast()) };
    let [address, rest] = raw.map(u64::from_ne_bytes);
    Descriptor::new(address, rest)
}
