//! Packets in lists, without an allocation for each.

use super::Packet;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Cell<T> {
    /// `None` if the cell is free.
    packet: Option<Packet<T>>,
    next: u32,
    before: u32,
}

/// The memory of all lists of a queue; grows to the longest queue so far.
#[derive(Debug)]
pub(super) struct Store<T> {
    cells: Vec<Cell<T>>,
    free: u32,
    len: usize,
    bytes: u64,
}

/// Packets, the oldest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    first: u32,
    last: u32,
    /// Their bytes.
    pub(super) bytes: u64,
    pub(super) len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
            bytes: 0,
            len: 0,
        }
    }
}

impl List {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            cells: Vec::new(),
            free: NONE,
            len: 0,
            bytes: 0,
        }
    }
}

impl<T> Store<T> {
    /// Packets in all lists.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Shows every packet's item, in any order.
    pub(super) fn each(&mut self, visit: &mut dyn FnMut(&mut T)) {
        for packet in self.cells.iter_mut().filter_map(|c| c.packet.as_mut()) {
            visit(&mut packet.item);
        }
    }

    /// Appends a packet to `list`.
    pub(super) fn push(&mut self, list: &mut List, packet: Packet<T>) {
        let len = packet.header.len;
        let cell = Cell {
            packet: Some(packet),
            next: NONE,
            before: list.last,
        };
        let index = self.free;
        let index = if let Some(free) = self.cells.get_mut(index as usize) {
            self.free = free.next;
            *free = cell;
            index
        } else {
            self.cells.push(cell);
            (self.cells.len() - 1) as u32
        };
        match self.cells.get_mut(list.last as usize) {
            Some(last) => last.next = index,
            None => list.first = index,
        }
        list.last = index;
        list.bytes += u64::from(len);
        list.len += 1;
        self.bytes += u64::from(len);
        self.len += 1;
    }

    /// The oldest of `list`.
    pub(super) fn first(&self, list: &List) -> Option<&Packet<T>> {
        self.cells.get(list.first as usize)?.packet.as_ref()
    }

    /// Takes the oldest out of `list`.
    pub(super) fn pop(&mut self, list: &mut List) -> Option<Packet<T>> {
        let index = list.first;
        let cell = self.cells.get_mut(index as usize)?;
        list.first = cell.next;
        match self.cells.get_mut(list.first as usize) {
            Some(first) => first.before = NONE,
            None => list.last = NONE,
        }
        self.take(index, list)
    }

    /// Takes the newest out of `list`.
    pub(super) fn pop_last(&mut self, list: &mut List) -> Option<Packet<T>> {
        let index = list.last;
        let cell = self.cells.get_mut(index as usize)?;
        list.last = cell.before;
        match self.cells.get_mut(list.last as usize) {
            Some(last) => last.next = NONE,
            None => list.first = NONE,
        }
        self.take(index, list)
    }

    fn take(&mut self, index: u32, list: &mut List) -> Option<Packet<T>> {
        let free = self.free;
        let cell = self.cells.get_mut(index as usize)?;
        let packet = cell.packet.take()?;
        cell.next = free;
        self.free = index;
        let len = u64::from(packet.header.len);
        list.bytes -= len;
        list.len -= 1;
        self.bytes -= len;
        self.len -= 1;
        Some(packet)
    }
}
