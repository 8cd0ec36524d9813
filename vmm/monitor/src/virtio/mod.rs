//! virtio devices (virtio 1.2, OASIS) behind one transport.
//!
//! A new device is one file beside `blk.rs` that implements [`VirtioDevice`], and one line in `vm.rs`.

pub mod blk;
pub mod console;
pub mod net;
pub mod pci;
pub mod rng;
mod vhost_user;

pub use vhost_user::connect;

use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use crate::warn::warn;

/// `VIRTIO_F_VERSION_1`: every device here is a modern one.
pub const VERSION_1: u64 = 1 << virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

/// What the transport asks of a device. Called on the virtual processors' threads.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2 §5).
    fn id(&self) -> u16;

    /// PCI class, subclass and interface, for the guest's `lspci`.
    fn class(&self) -> u32;

    /// Entries of each queue at most, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Features the guest may choose from.
    fn features(&self) -> u64;

    /// The device configuration structure.
    fn config(&self) -> Vec<u8>;

    /// The driver has set DRIVER_OK. An error makes the device need a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), String>;

    /// The driver resets the device: queues and memory are the driver's again. False if that is still under way
    /// and [`VirtioDevice::reset_done`] will tell.
    fn reset(&mut self) -> bool;

    /// Whether a reset that was under way is over.
    fn reset_done(&self) -> bool {
        true
    }
}

/// A device that the device loop shares with the transport.
impl<T: VirtioDevice> VirtioDevice for Arc<Mutex<T>> {
    fn id(&self) -> u16 {
        lock(self).id()
    }

    fn class(&self) -> u32 {
        lock(self).class()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        lock(self).queue_sizes()
    }

    fn features(&self) -> u64 {
        lock(self).features()
    }

    fn config(&self) -> Vec<u8> {
        lock(self).config()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), String> {
        lock(self).activate(activation)
    }

    fn reset(&mut self) -> bool {
        lock(self).reset()
    }
}

fn lock<T>(shared: &Arc<Mutex<T>>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All a device needs to run.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The features the driver chose; a subset of those offered.
    pub features: u64,
    /// By queue number; `None` where the driver did not enable the queue.
    pub queues: Vec<Option<ActiveQueue>>,
}

/// A queue that the driver has set up; its rings lie inside guest memory.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The split ring.
    pub queue: Queue,
    /// Written when the device has used buffers; no vector, no interrupt.
    pub interrupt: Option<EventFd>,
}

impl ActiveQueue {
    /// Returns a buffer to the driver with `len` bytes written into it.
    pub fn add_used(&mut self, memory: &GuestMemory, head: u16, len: u32) {
        // Fails only when the used ring is outside guest memory, which was checked at activation.
        let _ = self.queue.add_used(memory, head, len);
    }

    /// Tells the driver to look at the used ring.
    pub fn notify(&self) {
        if let Some(interrupt) = &self.interrupt {
            // A full counter means that an interrupt is pending anyway.
            let _ = interrupt.write(1);
        }
    }
}

/// One eventfd per queue, which the driver's notifications end up in.
pub fn kicks(count: usize) -> std::io::Result<Vec<EventFd>> {
    (0..count)
        .map(|_| EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK))
        .collect()
}

/// Has the device loop wait for the driver's notifications; the n-th queue's events carry n.
fn watch(ops: &mut EventOps, kicks: &[EventFd]) {
    for (number, kick) in kicks.iter().enumerate() {
        if let Err(error) = ops.add(Events::with_data(kick, number as u32, EventSet::IN)) {
            warn(format_args!("a virtio device cannot be notified: {error}"));
        }
    }
}

#[cfg(test)]
mod testing;
