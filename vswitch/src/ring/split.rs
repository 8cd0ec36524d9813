//! The ring itself: positions, descriptors, used entries, notification suppression.

use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use thiserror::Error;

use super::chain::{Chain, Owner};
use super::notify::EventFd;
use super::{MAX_CHAIN, MAX_SIZE};
use crate::memory::Memory;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

const DESC_BYTES: u64 = 16;
const USED_BYTES: usize = 8;

/// What a guest did that no driver may do. The ring it happened on stops; nothing else does.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("the available index jumped by more than the ring's size")]
    AvailableIndex,
    #[error("a head index is not in the descriptor table")]
    Head,
    #[error("a head was made available again before it was returned")]
    HeadTwice,
    #[error("a chain points outside its descriptor table")]
    Next,
    #[error("a chain loops or has more than {MAX_CHAIN} descriptors")]
    ChainTooLong,
    #[error("the buffers of a chain add up to 4 GiB or more")]
    ChainTooLarge,
    #[error("a buffer lies outside the guest's memory")]
    Address,
    #[error("a buffer has the wrong direction for this ring")]
    Direction,
    #[error("an indirect descriptor was used although it was not agreed on")]
    IndirectNotAgreed,
    #[error("an indirect table inside an indirect table, or followed by more descriptors")]
    IndirectNested,
    #[error(
        "an indirect table is empty, is not a multiple of 16 bytes long, or lies outside the guest's memory"
    )]
    IndirectTable,
    #[error("a buffer is shorter than the virtio-net header")]
    ShortHeader,
}

/// Why a ring cannot be started.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    #[error("its size {0} is not a power of two from 1 to {MAX_SIZE}")]
    Size(u32),
    #[error("its {0} is not aligned as virtio 1.2 §2.7 demands")]
    Alignment(&'static str),
    #[error("its {0} does not lie inside one region of the guest's memory")]
    Address(&'static str),
}

/// Whether chains of a ring are to be read or to be written by the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// What a front-end says about a ring; addresses are in its own address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingLayout {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// Position in the available ring to go on from.
    pub base: u16,
    /// `VIRTIO_RING_F_EVENT_IDX` was agreed on.
    pub event_idx: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC` was agreed on.
    pub indirect: bool,
}

/// One descriptor, after it was read.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A started split ring.
///
/// Positions count entries modulo 2^16: `oldest` ≤ `next_avail` ≤ `seen_avail`. The chains taken at positions from
/// `oldest` to `next_avail` belong to the switch and are **returned in the order in which they were taken**, so a ring can
/// be handed back, or picked up after a crash, at its used index without losing or repeating a returned chain.
#[derive(Debug)]
pub struct SplitRing {
    memory: Arc<Memory>,
    descriptors: NonNull<u8>,
    available: NonNull<u8>,
    used: NonNull<u8>,
    size: u16,
    mask: u16,
    event_idx: bool,
    indirect: bool,
    call: Option<EventFd>,

    seen_avail: u16,
    next_avail: u16,
    oldest: u16,
    next_used: u16,
    /// `used.idx` as the guest sees it.
    published: u16,
    /// `used.idx` when the guest was last told or found not to want to be told.
    signalled: Option<u16>,

    /// By head.
    pub(super) chains: Box<[Chain]>,
    /// Heads by position.
    order: Box<[u16]>,
}

// SAFETY: the raw pointers point into mappings that `memory` keeps alive and that belong to no thread; everything else is
// `Send` by itself. The ring is not `Sync`: one thread at a time works with it.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Checks `layout` against `memory` and starts there.
    pub fn new(
        memory: Arc<Memory>,
        layout: RingLayout,
        call: Option<EventFd>,
    ) -> Result<Self, RingError> {
        let RingLayout {
            size,
            descriptors,
            available,
            used,
            base,
            event_idx,
            indirect,
        } = layout;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(RingError::Size(size.into()));
        }
        let n = u64::from(size);
        let find = |what, user: u64, len: u64, align: usize| {
            let p = memory.at_user(user, len).ok_or(RingError::Address(what))?;
            if p.addr().get().is_multiple_of(align) {
                Ok(p)
            } else {
                Err(RingError::Alignment(what))
            }
        };
        // Both rings end with the other side's event index, which is there with EVENT_IDX only, but costs nothing to demand.
        let descriptors = find("descriptor table", descriptors, DESC_BYTES * n, 16)?;
        let available = find("available ring", available, 6 + 2 * n, 2)?;
        let used = find("used ring", used, 6 + 8 * n, 4)?;
        let mut ring = Self {
            memory,
            descriptors,
            available,
            used,
            size,
            mask: size - 1,
            event_idx,
            indirect,
            call,
            seen_avail: base,
            next_avail: base,
            oldest: base,
            next_used: 0,
            published: 0,
            signalled: None,
            chains: std::iter::repeat_with(Chain::default)
                .take(size.into())
                .collect(),
            order: vec![0; size.into()].into_boxed_slice(),
        };
        // The used index goes on from what the guest has seen.
        let used_index = ring.used_index().load(Ordering::Acquire);
        ring.next_used = used_index;
        ring.published = used_index;
        Ok(ring)
    }

    /// Where the next owner of the ring has to go on: chains not yet returned are taken again.
    pub fn base(&self) -> u16 {
        self.oldest
    }

    /// Replaces the descriptor that interrupts the guest, and uses it once, as a call may have been lost on the old one.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        if let Some(call) = &call {
            call.signal();
        }
        self.call = call;
    }

    /// Whether the guest has made something available.
    pub fn has_work(&self) -> bool {
        self.next_avail != self.seen_avail
            || self.avail_index().load(Ordering::Acquire) != self.next_avail
    }

    /// Takes the next chain; its private copy is in `chains` under the returned head.
    #[inline]
    pub(super) fn pop(&mut self, access: Access) -> Result<Option<u16>, Violation> {
        if self.next_avail == self.seen_avail {
            // Acquire: what the guest wrote before it moved the index is read after it.
            let index = self.avail_index().load(Ordering::Acquire);
            match index.wrapping_sub(self.next_avail) {
                0 => return Ok(None),
                n if n > self.size => return Err(Violation::AvailableIndex),
                _ => self.seen_avail = index,
            }
        }
        let slot = self.next_avail & self.mask;
        let head = self.avail_entry(slot);
        if head >= self.size {
            return Err(Violation::Head);
        }
        if self.chains[usize::from(head)].owner != Owner::Guest {
            return Err(Violation::HeadTwice);
        }
        self.walk(head, access)?;
        self.chains[usize::from(head)].owner = Owner::Switch;
        self.order[usize::from(slot)] = head;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Puts the last `n` chains taken back, as if they had not been taken.
    pub(super) fn unpop(&mut self, n: u16) {
        for _ in 0..n {
            self.next_avail = self.next_avail.wrapping_sub(1);
            let head = self.order[usize::from(self.next_avail & self.mask)];
            self.chains[usize::from(head)].owner = Owner::Guest;
        }
    }

    /// Copies the chain at `head` into its place in `chains`, checking every field.
    fn walk(&mut self, head: u16, access: Access) -> Result<(), Violation> {
        let memory = Arc::as_ptr(&self.memory);
        // SAFETY: `self.memory` is not replaced while the ring lives, so the reference outlives this call. It is taken
        // through a pointer only because `chains` has to be borrowed mutably beside it.
        let memory: &Memory = unsafe { &*memory };
        let (mut table, mut count) = (self.descriptors, usize::from(self.size));
        let mut index = usize::from(head);
        let mut left = MAX_CHAIN;
        let mut in_indirect = false;
        let mut bytes = 0u64;
        let chain = &mut self.chains[usize::from(head)];
        chain.clear();
        loop {
            if left == 0 {
                return Err(Violation::ChainTooLong);
            }
            left -= 1;
            let d = read_descriptor(table, index);
            if d.flags & DESC_INDIRECT != 0 {
                if !self.indirect {
                    return Err(Violation::IndirectNotAgreed);
                }
                if in_indirect || d.flags & DESC_NEXT != 0 {
                    return Err(Violation::IndirectNested);
                }
                let len = u64::from(d.len);
                if len == 0 || !len.is_multiple_of(DESC_BYTES) {
                    return Err(Violation::IndirectTable);
                }
                table = memory
                    .at_guest(d.address, len)
                    .ok_or(Violation::IndirectTable)?;
                count = (len / DESC_BYTES) as usize;
                index = 0;
                in_indirect = true;
                continue;
            }
            let writable = d.flags & DESC_WRITE != 0;
            if writable != (access == Access::Write) {
                return Err(Violation::Direction);
            }
            if !memory.segments(d.address, d.len, |s| chain.segments.push(s)) {
                return Err(Violation::Address);
            }
            bytes += u64::from(d.len);
            if d.flags & DESC_NEXT == 0 {
                break;
            }
            index = usize::from(d.next);
            if index >= count {
                return Err(Violation::Next);
            }
        }
        chain.bytes = u32::try_from(bytes).map_err(|_| Violation::ChainTooLarge)?;
        Ok(())
    }

    /// Marks the chain at `head` as done and returns, in order, what can be returned. The guest sees it after
    /// [`SplitRing::publish`].
    #[inline]
    pub(super) fn done(&mut self, head: u16) {
        self.chains[usize::from(head)].owner = Owner::Done;
        while self.oldest != self.next_avail {
            let head = self.order[usize::from(self.oldest & self.mask)];
            let chain = &mut self.chains[usize::from(head)];
            if chain.owner != Owner::Done {
                break;
            }
            chain.owner = Owner::Guest;
            let written = chain.written;
            self.write_used(head, written);
            self.oldest = self.oldest.wrapping_add(1);
        }
    }

    /// Shows the guest everything returned since the last time, with one store, and interrupts it if it wants that.
    #[inline]
    pub fn publish(&mut self) {
        if self.next_used == self.published {
            return;
        }
        // Release: the used entries and the buffers are visible before the index.
        self.used_index().store(self.next_used, Ordering::Release);
        self.published = self.next_used;
        if self.guest_wants_call()
            && let Some(call) = &self.call
        {
            call.signal();
        }
    }

    /// Whether the guest wants to hear of what was published since it was asked last (virtio 1.2 §2.7.7, §2.7.10).
    fn guest_wants_call(&mut self) -> bool {
        // The store to used.idx comes before the load of the guest's wish; the guest does it the other way round.
        fence(Ordering::SeqCst);
        let new = self.published;
        let Some(old) = self.signalled.replace(new) else {
            return true;
        };
        if self.event_idx {
            let event = self.used_event().load(Ordering::Relaxed);
            // The event lies in [old, new).
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.avail_flags().load(Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Asks the guest not to kick.
    pub fn suppress_kicks(&mut self) {
        if self.event_idx {
            // The guest kicks when it passes this position, which is furthest away when it has just been passed.
            self.avail_event()
                .store(self.next_avail.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.used_flags().store(USED_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks the guest to kick for the next chain. `true` if there already is one, for which it may not kick.
    pub fn allow_kicks(&mut self) -> bool {
        if self.event_idx {
            self.avail_event().store(self.next_avail, Ordering::Relaxed);
        } else {
            self.used_flags().store(0, Ordering::Relaxed);
        }
        // The wish is visible before the index is looked at; the guest does it the other way round.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    // The fields of the rings. `base + offset` of each lies inside the range that `new` checked, at the alignment
    // that `new` checked, in a mapping that `memory` keeps.

    fn avail_flags(&self) -> &AtomicU16 {
        self.field(self.available, 0)
    }

    fn avail_index(&self) -> &AtomicU16 {
        self.field(self.available, 2)
    }

    fn used_event(&self) -> &AtomicU16 {
        self.field(self.available, 4 + 2 * usize::from(self.size))
    }

    fn used_flags(&self) -> &AtomicU16 {
        self.field(self.used, 0)
    }

    fn used_index(&self) -> &AtomicU16 {
        self.field(self.used, 2)
    }

    fn avail_event(&self) -> &AtomicU16 {
        self.field(self.used, 4 + USED_BYTES * usize::from(self.size))
    }

    fn avail_entry(&self, slot: u16) -> u16 {
        self.field(self.available, 4 + 2 * usize::from(slot))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn field(&self, ring: NonNull<u8>, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= 4 + USED_BYTES * usize::from(self.size));
        // SAFETY: the callers above stay inside the checked ranges.
        let field = unsafe { ring.add(offset) };
        // SAFETY: the mapping lives as long as `self.memory`, hence as `self`; the address is even; the guest accesses
        // it from other processes only, which atomics are made for.
        unsafe { AtomicU16::from_ptr(field.as_ptr().cast()) }
    }

    #[inline]
    fn write_used(&mut self, head: u16, written: u32) {
        let offset = 4 + USED_BYTES * usize::from(self.next_used & self.mask);
        let entry = [u32::from(head).to_le(), written.to_le()];
        // SAFETY: the slot is below `size`, so the entry lies inside the range that `new` checked.
        let field = unsafe { self.used.add(offset) };
        // SAFETY: the entry is 4-aligned because the ring is; the guest does not read it before `used.idx` covers it.
        unsafe { ptr::write_volatile(field.as_ptr().cast(), entry) };
        self.next_used = self.next_used.wrapping_add(1);
    }
}

/// Reads descriptor `index` of a table once. The caller has checked that the table has so many.
#[inline]
fn read_descriptor(table: NonNull<u8>, index: usize) -> Descriptor {
    // SAFETY: the caller found `index` in a table that lies inside one mapping.
    let at = unsafe { table.add(index * DESC_BYTES as usize) };
    // SAFETY: as above; bytes need no alignment (an indirect table may have any), and volatile makes it one read of
    // each, so that what is checked is what is used.
    let raw: [u8; 16] = unsafe { ptr::read_volatile(at.as_ptr().cast()) };
    let value = u128::from_le_bytes(raw);
    Descriptor {
        address: value as u64,
        len: (value >> 64) as u32,
        flags: (value >> 96) as u16,
        next: (value >> 112) as u16,
    }
}
