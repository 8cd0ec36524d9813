//! The driver's side of one queue, for tests: rings at fixed places of a small guest memory.

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::ActiveQueue;
use crate::memory::GuestMemory;

const SIZE: u16 = 16;

/// A driver with one queue at `base`: descriptors, then 4 KiB further each ring.
#[derive(Debug)]
pub struct Driver {
    memory: GuestMemory,
    base: u64,
    available: u16,
    seen: u16,
    interrupt: EventFd,
}

impl Driver {
    /// The driver, and the queue for the device.
    pub fn new(memory: &GuestMemory, base: u64) -> (Self, ActiveQueue) {
        let interrupt = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(base as u32), Some(0));
        queue.set_avail_ring_address(Some(base as u32 + 0x1000), Some(0));
        queue.set_used_ring_address(Some(base as u32 + 0x2000), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(memory));
        let active = ActiveQueue {
            queue,
            interrupt: Some(interrupt.try_clone().unwrap()),
        };
        let driver = Self {
            memory: memory.clone(),
            base,
            available: 0,
            seen: 0,
            interrupt,
        };
        (driver, active)
    }

    /// Makes a chain of `(address, length, device writes)` available, at descriptor 0 of a fresh table.
    pub fn add(&mut self, chain: &[(u64, u32, bool)]) {
        for (index, (address, len, write)) in chain.iter().enumerate() {
            let mut flags = if *write { VRING_DESC_F_WRITE } else { 0 };
            if index + 1 < chain.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            let descriptor = Descriptor::new(*address, *len, flags as u16, index as u16 + 1);
            self.memory
                .write_obj(descriptor, GuestAddress(self.base + index as u64 * 16))
                .unwrap();
        }
        let ring = self.base + 0x1000;
        let slot = u64::from(self.available % SIZE);
        self.memory
            .write_obj(0u16, GuestAddress(ring + 4 + slot * 2))
            .unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory
            .write_obj(self.available, GuestAddress(ring + 2))
            .unwrap();
    }

    /// The length of the next used element, if there is one; it must have come with an interrupt.
    pub fn used(&mut self) -> Option<u32> {
        let ring = GuestAddress(self.base + 0x2000);
        let index: u16 = self.memory.read_obj(GuestAddress(ring.0 + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        self.interrupt.read().expect("an interrupt");
        let slot = u64::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        Some(
            self.memory
                .read_obj(GuestAddress(ring.0 + 4 + slot * 8 + 4))
                .unwrap(),
        )
    }
}
