//! The ring itself: positions, descriptors, used entries, notification suppression.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use super::chain::{Chain, Owner, prefetch, prefetch_to_write};
use super::descriptor::{
    DESC_BYTES, DESC_FLAGS, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, read_descriptor,
    read_own,
};
use super::notify::EventFd;
use super::violation::{RingError, Violation};
use super::{MAX_CHAIN, MAX_SIZE};
use crate::memory::{Memory, Span};

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

const USED_BYTES: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Whether chains of a ring are to be read or to be written by the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    /// The flags of a descriptor that is all of a chain.
    const fn flags(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => DESC_WRITE,
        }
    }
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
    /// Position in the available ring to go on from. From 0 on a ring that has been used goes on at its used index: DPDK's virtio-user
    /// says 0 whenever it connects.
    pub base: u16,
    /// `VIRTIO_RING_F_EVENT_IDX` was agreed on.
    pub event_idx: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC` was agreed on.
    pub indirect: bool,
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
    call_blocks: bool,

    seen_avail: u16,
    next_avail: u16,
    oldest: u16,
    next_used: u16,
    /// `used.idx` as the guest sees it.
    published: u16,
    /// `used.idx` when the guest was last told or found not to want to be told.
    signalled: Option<u16>,

    /// Chains that are done and wait for one taken before them.
    waiting: u16,
    /// The region in which the last buffer was.
    near: Span,

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
            call_blocks: false,
            seen_avail: base,
            next_avail: base,
            oldest: base,
            next_used: 0,
            published: 0,
            signalled: None,
            waiting: 0,
            near: Span::default(),
            chains: std::iter::repeat_with(Chain::default)
                .take(size.into())
                .collect(),
            order: vec![0; size.into()].into_boxed_slice(),
        };
        // The used index goes on from what the guest has seen.
        let used_index = ring.used_index().load(Ordering::Acquire);
        ring.next_used = used_index;
        ring.published = used_index;
        if base == 0 {
            // Chains are returned in the order in which they were taken, so both count the same.
            ring.seen_avail = used_index;
            ring.next_avail = used_index;
            ring.oldest = used_index;
        }
        Ok(ring)
    }

    /// Where the next owner of the ring has to go on: chains not yet returned are taken again.
    pub fn base(&self) -> u16 {
        self.oldest
    }

    /// Replaces the descriptor that interrupts the guest, and uses it once, as a call may have been lost on the old one.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
        self.interrupt();
    }

    fn interrupt(&mut self) {
        if let Some(call) = &self.call
            && call.signal().is_err()
        {
            self.call = None;
            self.call_blocks = true;
        }
    }

    /// Whether interrupting the guest was given up since this was asked last, because the front-end held up whoever did it.
    pub fn call_blocks(&mut self) -> bool {
        std::mem::take(&mut self.call_blocks)
    }

    /// Whether the guest has made something available.
    pub fn has_work(&self) -> bool {
        self.next_avail != self.seen_avail
            || self.avail_index().load(Ordering::Acquire) != self.next_avail
    }

    /// Looks for what the guest has made available; `false` if there is nothing.
    #[inline]
    fn look(&mut self) -> Result<bool, Violation> {
        // Acquire: what the guest wrote before it moved the index is read after it.
        let index = self.avail_index().load(Ordering::Acquire);
        match index.wrapping_sub(self.next_avail) {
            0 => Ok(false),
            n if n > self.size => Err(Violation::AvailableIndex),
            _ => {
                self.seen_avail = index;
                Ok(true)
            }
        }
    }

    /// The position of the next chain to take.
    pub(super) fn position(&self) -> u16 {
        self.next_avail
    }

    /// Up to where the guest has made chains available.
    pub(super) fn available(&self) -> u16 {
        self.avail_index().load(Ordering::Acquire)
    }

    /// Takes the next chain; its private copy is in `chains` under the returned head.
    #[inline]
    pub(super) fn pop(&mut self, access: Access) -> Result<Option<u16>, Violation> {
        if self.next_avail == self.seen_avail && !self.look()? {
            return Ok(None);
        }
        let slot = self.next_avail & self.mask;
        let head = self.avail_entry(slot);
        if head >= self.size {
            return Err(Violation::Head);
        }
        let d = read_own(self.descriptors, head);
        let chain = &mut self.chains[usize::from(head)];
        if chain.owner != Owner::Guest {
            return Err(Violation::HeadTwice);
        }
        // Nearly always a single buffer in the region in which the last one was.
        if d.flags & DESC_FLAGS == access.flags()
            && let Some(piece) = self.near.piece(d.address, d.len)
        {
            chain.set(piece);
            chain.owner = Owner::Switch;
        } else {
            self.walk(head, d, access)?;
        }
        self.order[usize::from(slot)] = head;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Takes chains, as many as there are but no more than `heads` has room for; returns how many. What stopped it is found
    /// again by [`SplitRing::pop`].
    #[inline]
    pub(super) fn pop_batch(&mut self, access: Access, heads: &mut [u16]) -> usize {
        let mut taken = 0;
        loop {
            taken += self.pop_singles(access, &mut heads[taken..]);
            if taken == heads.len() {
                return taken;
            }
            let Ok(Some(head)) = self.pop(access) else {
                return taken;
            };
            heads[taken] = head;
            taken += 1;
        }
    }

    /// As [`SplitRing::pop_batch`], as long as chains are a single buffer in the region in which the last one was, as nearly all are.
    /// This takes the same short time for each, and touches the ring's own state once for all.
    #[inline]
    pub(super) fn pop_singles(&mut self, access: Access, heads: &mut [u16]) -> usize {
        let mut ready = self.seen_avail.wrapping_sub(self.next_avail);
        if ready == 0 {
            if !self.look().unwrap_or(false) {
                return 0;
            }
            ready = self.seen_avail.wrapping_sub(self.next_avail);
        }
        let wanted = heads.len().min(usize::from(ready));
        let heads = &mut heads[..wanted];
        // By the time they are done with, the place for their used entries is here.
        for entry in (0..wanted).step_by(LINE / USED_BYTES) {
            let slot = self.next_used.wrapping_add(entry as u16) & self.mask;
            // SAFETY: as in `write_used`.
            prefetch_to_write(unsafe { self.used.add(4 + USED_BYTES * usize::from(slot)) });
        }
        let (near, flags) = (self.near, access.flags());
        let (descriptors, mask, size) = (self.descriptors, self.mask, self.size);
        let mut position = self.next_avail;
        let mut taken = 0;
        // Most drivers use descriptors in turn, so that several are in a line.
        for ahead in (0..heads.len()).step_by(LINE / DESC_BYTES as usize) {
            let head = self.avail_entry(position.wrapping_add(ahead as u16) & mask) & mask;
            // SAFETY: a head below `size` has its descriptor inside the range that `new` checked.
            prefetch(unsafe { descriptors.add(usize::from(head) * DESC_BYTES as usize) });
        }
        for place in heads {
            let slot = position & mask;
            let head = self.avail_entry(slot);
            if head >= size {
                break;
            }
            let d = read_own(descriptors, head);
            let chain = &mut self.chains[usize::from(head)];
            let Some(piece) = near.piece(d.address, d.len) else {
                break;
            };
            if d.flags & DESC_FLAGS != flags || chain.owner != Owner::Guest {
                break;
            }
            chain.set(piece);
            chain.owner = Owner::Switch;
            chain.prefetch(access);
            self.order[usize::from(slot)] = head;
            *place = head;
            position = position.wrapping_add(1);
            taken += 1;
        }
        self.next_avail = position;
        taken
    }

    /// Puts the last `n` chains taken back, as if they had not been taken.
    pub(super) fn unpop(&mut self, n: u16) {
        for _ in 0..n {
            self.next_avail = self.next_avail.wrapping_sub(1);
            let head = self.order[usize::from(self.next_avail & self.mask)];
            self.chains[usize::from(head)].owner = Owner::Guest;
        }
    }

    /// Puts chains that were taken and are not done back, as if they had not been taken. Those behind which others are done are
    /// returned as they are.
    pub(super) fn take_back(&mut self) {
        let owner = |ring: &Self, position: u16| {
            let head = ring.order[usize::from(position & ring.mask)];
            (head, ring.chains[usize::from(head)].owner)
        };
        while self.next_avail != self.oldest
            && owner(self, self.next_avail.wrapping_sub(1)).1 == Owner::Switch
        {
            self.unpop(1);
        }
        let mut position = self.oldest;
        while position != self.next_avail {
            let (head, owner) = owner(self, position);
            position = position.wrapping_add(1);
            if owner == Owner::Switch {
                self.done(head);
            }
        }
    }

    /// Copies the chain whose first descriptor is `d` into its place in `chains`, checking every field.
    #[inline(never)]
    fn walk(&mut self, head: u16, mut d: Descriptor, access: Access) -> Result<(), Violation> {
        let memory = &*self.memory;
        let chain = &mut self.chains[usize::from(head)];
        if let Some(span) = memory.span(d.address) {
            self.near = span;
        }
        let (mut table, mut count) = (self.descriptors, usize::from(self.size));
        let mut left = MAX_CHAIN - 1;
        let mut in_indirect = false;
        let mut bytes = 0u64;
        chain.collect(|pieces| {
            loop {
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
                    in_indirect = true;
                    d.next = 0;
                } else {
                    if d.flags & DESC_WRITE != access.flags() {
                        return Err(Violation::Direction);
                    }
                    if !memory.segments(d.address, d.len, |s| pieces.push(s)) {
                        return Err(Violation::Address);
                    }
                    // A buffer has several pieces where regions of memory adjoin.
                    if pieces.len() > MAX_CHAIN {
                        return Err(Violation::ChainTooLong);
                    }
                    bytes += u64::from(d.len);
                    if d.flags & DESC_NEXT == 0 {
                        return Ok(());
                    }
                }
                let index = usize::from(d.next);
                if index >= count {
                    return Err(Violation::Next);
                }
                if left == 0 {
                    return Err(Violation::ChainTooLong);
                }
                left -= 1;
                d = read_descriptor(table, index);
            }
        })?;
        chain.owner = Owner::Switch;
        chain.bytes = u32::try_from(bytes).map_err(|_| Violation::ChainTooLarge)?;
        Ok(())
    }

    /// Marks the chain at `head` as done and returns, in order, what can be returned. The guest sees it after
    /// [`SplitRing::publish`].
    #[inline]
    pub(super) fn done(&mut self, head: u16) {
        if self.order[usize::from(self.oldest & self.mask)] != head {
            self.chains[usize::from(head)].owner = Owner::Done;
            self.waiting += 1;
            return;
        }
        self.give_back(head);
        self.give_back_waiting();
    }

    /// [`SplitRing::done`] for each of `heads`.
    #[inline]
    pub(super) fn done_batch(&mut self, mut heads: impl Iterator<Item = u16>) {
        let (used, mask) = (self.used, self.mask);
        let (mut oldest, mut next_used) = (self.oldest, self.next_used);
        let mut later = None;
        for head in &mut heads {
            if self.order[usize::from(oldest & mask)] != head {
                later = Some(head);
                break;
            }
            let chain = &mut self.chains[usize::from(head)];
            chain.owner = Owner::Guest;
            chain.shrink();
            write_used(used, next_used & mask, head, chain.written);
            oldest = oldest.wrapping_add(1);
            next_used = next_used.wrapping_add(1);
        }
        (self.oldest, self.next_used) = (oldest, next_used);
        self.give_back_waiting();
        // From the first on that is not the oldest.
        for head in later.into_iter().chain(heads) {
            self.done(head);
        }
    }

    /// Returns those that are done and are now the oldest.
    #[inline]
    fn give_back_waiting(&mut self) {
        while self.waiting > 0 {
            let head = self.order[usize::from(self.oldest & self.mask)];
            if self.chains[usize::from(head)].owner != Owner::Done {
                break;
            }
            self.give_back(head);
            self.waiting -= 1;
        }
    }

    /// Returns the oldest chain, which is at `head`.
    #[inline]
    fn give_back(&mut self, head: u16) {
        let chain = &mut self.chains[usize::from(head)];
        chain.owner = Owner::Guest;
        chain.shrink();
        write_used(self.used, self.next_used & self.mask, head, chain.written);
        self.next_used = self.next_used.wrapping_add(1);
        self.oldest = self.oldest.wrapping_add(1);
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
        if self.guest_wants_call() {
            self.interrupt();
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
}

/// Writes entry `slot` of a used ring; the caller has checked that it has so many.
#[inline]
fn write_used(used: NonNull<u8>, slot: u16, head: u16, written: u32) {
    let offset = 4 + USED_BYTES * usize::from(slot);
    // SAFETY: the slot is below `size`, so the entry lies inside the range that `SplitRing::new` checked.
    let entry = unsafe { used.add(offset) };
    let entry: *const [AtomicU32; 2] = entry.as_ptr().cast();
    // SAFETY: as above; the entry is 4-aligned because the ring is; the guest accesses it from other processes only, which
    // atomics are made for.
    let [id, len] = unsafe { &*entry };
    id.store(u32::from(head).to_le(), Ordering::Relaxed);
    len.store(written.to_le(), Ordering::Relaxed);
}
