//! Frames by flow: what drr, wfq and wf2q+ have in common.

use std::cmp::Reverse;

use topology::model::{DropFrom, Limit};

use super::heap::Heap;
use super::store::{List, Store};
use super::{Context, Header, Packet, exceeds};
use crate::link::Reason;

/// A queue per flow with a common limit. When that is reached, the flow with the most bytes waiting loses a frame.
#[derive(Debug)]
pub(super) struct Flows<T> {
    store: Store<T>,
    lists: Vec<List>,
    /// Flows that have something waiting, that with the most bytes at the top.
    longest: Heap<Reverse<u64>>,
    salt: u32,
    pub(super) limit: Limit,
    pub(super) drop: DropFrom,
}

/// What making room has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// There is some.
    There,
    /// The frame that has come is the one to be dropped.
    None,
    /// There is some now: this flow has lost its oldest or newest frame.
    Made(u32),
}

impl<T> Flows<T> {
    pub(super) fn new(limit: Limit, drop: DropFrom, flows: u32, salt: u32) -> Self {
        let flows = flows.max(1);
        Self {
            store: Store::default(),
            lists: vec![List::default(); flows as usize],
            longest: Heap::new(flows),
            salt,
            limit,
            drop,
        }
    }

    /// How many are told apart.
    pub(super) fn count(&self) -> u32 {
        self.lists.len() as u32
    }

    /// The bucket of a flow: its hash, stirred so that nobody can choose whom to share with, and scaled.
    pub(super) fn bucket(&self, header: Header) -> u32 {
        let mut h = u64::from(header.flow) << 32 | u64::from(self.salt);
        h = (h ^ h >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        h = (h ^ h >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let h = (h ^ h >> 32) & 0xffff_ffff;
        ((h * u64::from(self.count())) >> 32) as u32
    }

    /// Makes room for one more frame as far as needed. To be called again after [`Room::Made`].
    pub(super) fn make_room(&mut self, header: Header, context: &mut Context<'_, T>) -> Room {
        let (frames, bytes) = (self.len(), self.bytes());
        let full = exceeds(self.limit, frames, bytes, header.len);
        if !full || context.unlimited || frames == 0 {
            return if full && !context.unlimited && !context.idle {
                Room::None
            } else {
                Room::There
            };
        }
        let own = self.bucket(header);
        let with_it = self.lists[own as usize].bytes + u64::from(header.len);
        let Some((Reverse(most), longest)) = self.longest.top() else {
            return Room::There;
        };
        let victim = if with_it >= most { own } else { longest };
        let list = &mut self.lists[victim as usize];
        let dropped = match self.drop {
            DropFrom::Head => self.store.pop(list),
            DropFrom::Tail if victim == own => None,
            DropFrom::Tail => self.store.pop_last(list),
        };
        let Some(packet) = dropped else {
            return Room::None;
        };
        context.dropped.push((packet.item, Reason::Full));
        self.note(victim);
        Room::Made(victim)
    }

    fn note(&mut self, flow: u32) {
        let list = &self.lists[flow as usize];
        if list.is_empty() {
            self.longest.remove(flow);
        } else {
            self.longest.set(flow, Reverse(list.bytes));
        }
    }

    /// Appends a frame to its flow; returns which.
    pub(super) fn push(&mut self, packet: Packet<T>) -> u32 {
        let flow = self.bucket(packet.header);
        self.store.push(&mut self.lists[flow as usize], packet);
        self.note(flow);
        flow
    }

    /// Takes the oldest frame of a flow.
    pub(super) fn pop(&mut self, flow: u32) -> Option<Packet<T>> {
        let packet = self.store.pop(&mut self.lists[flow as usize])?;
        self.note(flow);
        Some(packet)
    }

    /// The length of the oldest frame of a flow.
    pub(super) fn head_len(&self, flow: u32) -> Option<u32> {
        let first = self.store.first(&self.lists[flow as usize])?;
        Some(first.header.len)
    }

    /// What waits in a flow.
    pub(super) fn list(&self, flow: u32) -> &List {
        &self.lists[flow as usize]
    }

    /// The flow with the most bytes, counting a frame that is about to come.
    pub(super) fn fattest(&self, header: Header) -> u32 {
        let own = self.bucket(header);
        let with_it = self.lists[own as usize].bytes + u64::from(header.len);
        match self.longest.top() {
            Some((Reverse(most), longest)) if most > with_it => longest,
            _ => own,
        }
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self, out: &mut Vec<Packet<T>>) {
        for list in &mut self.lists {
            while let Some(packet) = self.store.pop(list) {
                out.push(packet);
            }
        }
        while self.longest.pop().is_some() {}
    }

    pub(super) fn each(&mut self, visit: &mut dyn FnMut(&mut T)) {
        self.store.each(visit);
    }

    pub(super) fn len(&self) -> usize {
        self.store.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}
