//! First in, first out.

use topology::model::{self, DropFrom, Limit};

use super::store::{List, Store};
use super::{Context, Discipline, Header, Packet, exceeds};
use crate::link::Reason;

/// One queue; when it is full, the newest or the oldest frame is dropped.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    store: Store<T>,
    list: List,
    limit: Limit,
    drop: DropFrom,
}

impl<T> Fifo<T> {
    pub(super) fn new(limit: Limit, drop: DropFrom) -> Self {
        Self {
            store: Store::default(),
            list: List::default(),
            limit,
            drop,
        }
    }

    /// Takes the oldest out and says how many bytes are left.
    pub(super) fn pop(&mut self) -> Option<(Packet<T>, u64)> {
        let packet = self.store.pop(&mut self.list)?;
        Some((packet, self.store.bytes()))
    }

    /// Whether one more frame is too much.
    pub(super) fn is_full(&self, header: Header, context: &Context<'_, T>) -> bool {
        let exempt = context.unlimited || (context.idle && self.len() == 0);
        !exempt && exceeds(self.limit, self.len(), self.bytes(), header.len)
    }

    pub(super) fn set_limit(&mut self, limit: Limit) {
        self.limit = limit;
    }
}

impl<T> Discipline<T> for Fifo<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        while self.is_full(header, context) {
            if self.drop == DropFrom::Tail {
                return Err(Reason::Full);
            }
            let oldest = self.store.pop(&mut self.list).ok_or(Reason::Full)?;
            context.dropped.push((oldest.item, Reason::Full));
        }
        Ok(false)
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        self.store.push(&mut self.list, packet);
    }

    fn dequeue(&mut self, _: &mut Context<'_, T>) -> Option<Packet<T>> {
        self.store.pop(&mut self.list)
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        let model::Discipline::Fifo(drop) = attributes.discipline else {
            return false;
        };
        self.limit = attributes.limit;
        self.drop = drop;
        true
    }

    fn drain(&mut self, out: &mut Vec<Packet<T>>) {
        while let Some(packet) = self.store.pop(&mut self.list) {
            out.push(packet);
        }
    }

    fn each(&mut self, visit: &mut dyn FnMut(&mut T)) {
        self.store.each(visit);
    }

    fn len(&self) -> usize {
        self.store.len()
    }

    fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}
