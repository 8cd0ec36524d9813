//! MSI-X: the table, the pending bits and the capability (PCI local bus specification 3.0 §6.8.2).

use std::io;
use std::sync::Arc;

use crate::interrupt::{Message, Router, Vector};

/// Bytes of a table entry: address, upper address, data, vector control.
const ENTRY: usize = 16;
const CONTROL_MASKED: u32 = 1;
const CAPABILITY_ENABLE: u16 = 1 << 15;
const CAPABILITY_MASK_ALL: u16 = 1 << 14;

/// The MSI-X state of one function.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

#[derive(Debug)]
struct Entry {
    words: [u32; 4],
    vector: Vector,
}

impl Msix {
    /// Id of the capability.
    pub const CAPABILITY: u8 = 0x11;

    /// `count` vectors, all masked.
    pub fn new(router: &Arc<Router>, count: usize) -> io::Result<Self> {
        let entries = (0..count)
            .map(|_| {
                Ok(Entry {
                    words: [0, 0, 0, CONTROL_MASKED],
                    vector: router.vector()?,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            entries,
            enabled: false,
            masked: false,
        })
    }

    /// Body of the capability, and the mask of what a guest may write in it; table and pending bits are in BAR 0.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.entries.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&(CAPABILITY_ENABLE | CAPABILITY_MASK_ALL).to_le_bytes());
        (body, writable)
    }

    /// The guest wrote the capability's message control.
    pub fn set_control(&mut self, control: u16) {
        let (enabled, masked) = (
            control & CAPABILITY_ENABLE != 0,
            control & CAPABILITY_MASK_ALL != 0,
        );
        if (enabled, masked) != (self.enabled, self.masked) {
            (self.enabled, self.masked) = (enabled, masked);
            for index in 0..self.entries.len() {
                self.apply(index);
            }
        }
    }

    /// The vector numbered `index`, if the function has it.
    pub fn vector(&self, index: u16) -> Option<&Vector> {
        Some(&self.entries.get(usize::from(index))?.vector)
    }

    /// A guest's load from the table; only aligned words and double words exist.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        if !offset.is_multiple_of(4) {
            return;
        }
        for (index, chunk) in data.chunks_exact_mut(4).enumerate() {
            let at = offset + index * 4;
            if let Some(entry) = self.entries.get(at / ENTRY) {
                chunk.copy_from_slice(&entry.words[at % ENTRY / 4].to_le_bytes());
            }
        }
    }

    /// A guest's store to the table.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        for (index, chunk) in data.chunks_exact(4).enumerate() {
            let at = offset + index * 4;
            let Some(entry) = self.entries.get_mut(at / ENTRY) else {
                return;
            };
            let word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            let slot = &mut entry.words[at % ENTRY / 4];
            if *slot != word {
                *slot = word;
                self.apply(at / ENTRY);
            }
        }
    }

    /// A guest's load from the pending bit array.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (offset + index) * 8;
            *byte = (0..8)
                .filter(|bit| {
                    self.entries
                        .get(first + bit)
                        .is_some_and(|entry| entry.vector.is_pending())
                })
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// Makes KVM's routes follow the table.
    fn apply(&mut self, index: usize) {
        let open = self.enabled && !self.masked;
        let entry = &mut self.entries[index];
        let [low, high, data, control] = entry.words;
        let result = if open && control & CONTROL_MASKED == 0 {
            entry.vector.unmask(Message {
                address: u64::from(high) << 32 | u64::from(low),
                data,
            })
        } else {
            entry.vector.mask()
        };
        // KVM refuses only what a guest has no use for (an address outside the local APICs' range); the
        // guest then gets no interrupt, as it would from a real device.
        let _ = result;
    }
}
