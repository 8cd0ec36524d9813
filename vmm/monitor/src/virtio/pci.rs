//! The virtio PCI transport (virtio 1.2 §4.1), modern devices only.

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, VERSION_1, VirtioDevice};
use crate::error::Error;
use crate::interrupt::Router;
use crate::memory::GuestMemory;
use crate::pci::{Bus, ConfigSpace, Msix};
use crate::warn::warn;

const VENDOR: u16 = 0x1af4;
const MODERN_DEVICE: u16 = 0x1040;
/// Says "not transitional" (§4.1.2.1).
const MODERN_REVISION: u8 = 1;
const VENDOR_CAPABILITY: u8 = 0x09;

/// Layout of BAR 0; each part has a page of its own but the table, which has two.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PENDING: u64 = 0x4000;
const TABLE: u64 = 0x6000;
const PART: u64 = 0x1000;
/// Distance of two queues' notification registers.
const NOTIFY_MULTIPLIER: u32 = 4;

/// `VIRTIO_PCI_CAP_*`.
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;

/// Device status bits (§2.1).
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;
const NO_VECTOR: u16 = 0xffff;

/// One virtio device on the bus.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    config: ConfigSpace,
    /// Offsets in configuration space.
    msix_capability: usize,
    pci_capability: usize,
    msix: Msix,

    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    /// Counts changes of the device configuration (§4.1.4.3.1).
    config_generation: u8,
    status: u8,
    /// A reset waits for the device to let go of its queues.
    resetting: bool,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

/// What the driver sets for one queue.
struct QueueRegisters {
    queue: Queue,
    vector: u16,
    kick: EventFd,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("id", &self.device.id())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// Bytes of BAR 0.
    pub const BAR_SIZE: u64 = 0x8000;

    /// Puts `device` at place `index` of the bus. The driver's notifications of queue n end up in `kicks[n]`
    /// without an exit.
    pub fn new(
        index: usize,
        device: Box<dyn VirtioDevice>,
        kicks: Vec<EventFd>,
        memory: &GuestMemory,
        router: &Arc<Router>,
    ) -> Result<Self, Error> {
        let sizes = device.queue_sizes();
        debug_assert_eq!(sizes.len(), kicks.len());
        // One vector for configuration changes and one for each queue.
        let msix =
            Msix::new(router, sizes.len() + 1).map_err(Error::system("create an eventfd"))?;
        let bar = Bus::bar(index);
        let mut queues = Vec::with_capacity(sizes.len());
        for (number, (size, kick)) in sizes.into_iter().zip(kicks).enumerate() {
            let address = bar + NOTIFY + number as u64 * u64::from(NOTIFY_MULTIPLIER);
            router
                .doorbell(&kick, address)
                .map_err(Error::kvm("register a doorbell"))?;
            queues.push(QueueRegisters {
                queue: Queue::new(size)
                    .map_err(|e| Error::Config(format!("queue size {size}: {e}")))?,
                vector: NO_VECTOR,
                kick,
            });
        }

        let mut config = ConfigSpace::new(VENDOR, MODERN_DEVICE + device.id(), device.class());
        config.identify(MODERN_REVISION, VENDOR, MODERN_DEVICE + device.id());
        config.add_bar0(bar as u32, Self::BAR_SIZE as u32);
        let (body, writable) = msix.capability(TABLE as u32, PENDING as u32);
        let msix_capability = config.add_capability(Msix::CAPABILITY, &body, &writable);
        for (kind, offset) in [(CAP_COMMON, COMMON), (CAP_ISR, ISR), (CAP_DEVICE, DEVICE)] {
            config.add_capability(
                VENDOR_CAPABILITY,
                &virtio_capability(kind, offset, PART, &[]),
                &[],
            );
        }
        config.add_capability(
            VENDOR_CAPABILITY,
            &virtio_capability(CAP_NOTIFY, NOTIFY, PART, &NOTIFY_MULTIPLIER.to_le_bytes()),
            &[],
        );
        // Offset, length and data of the window onto BAR 0 are the guest's to write (§4.1.4.9).
        let mut writable = [0; 18];
        writable[6..].fill(0xff);
        let pci_capability = config.add_capability(
            VENDOR_CAPABILITY,
            &virtio_capability(CAP_PCI, 0, 0, &[0; 4]),
            &writable,
        );

        Ok(Self {
            device,
            memory: memory.clone(),
            config,
            msix_capability,
            pci_capability,
            msix,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            status: 0,
            resetting: false,
            queue_select: 0,
            queues,
        })
    }

    /// A guest's load from configuration space.
    pub fn read_config_space(&self, register: usize, data: &mut [u8]) {
        if let Some(offset) = self.window(register, data.len()) {
            self.read_bar(offset, data);
        } else {
            self.config.read(register, data);
        }
    }

    /// A guest's store to configuration space.
    pub fn write_config_space(&mut self, register: usize, data: &[u8]) {
        self.config.write(register, data);
        if let Some(offset) = self.window(register, data.len()) {
            self.write_bar(offset, data);
        }
        self.msix
            .set_control(self.config.u16(self.msix_capability + 2));
    }

    /// Where in BAR 0 an access to the data register of the window goes, if it is one.
    fn window(&self, register: usize, len: usize) -> Option<u64> {
        let offset = u64::from(self.config.u32(self.pci_capability + 8));
        let width = self.config.u32(self.pci_capability + 12) as usize;
        let hit =
            register == self.pci_capability + 16 && len == width && matches!(width, 1 | 2 | 4);
        (hit && offset.is_multiple_of(width as u64) && offset < Self::BAR_SIZE).then_some(offset)
    }

    /// A guest's load from BAR 0.
    pub fn read_bar(&self, offset: u64, data: &mut [u8]) {
        match offset {
            COMMON..ISR => self.read_common(offset, data),
            DEVICE..NOTIFY => {
                let config = self.device.config();
                let from = (offset - DEVICE) as usize;
                for (at, byte) in data.iter_mut().enumerate() {
                    *byte = config.get(from + at).copied().unwrap_or(0);
                }
            }
            PENDING..TABLE => self.msix.read_pending((offset - PENDING) as usize, data),
            TABLE.. => self.msix.read_table((offset - TABLE) as usize, data),
            // The ISR register reports nothing: every interrupt is a message of its own.
            _ => data.fill(0),
        }
    }

    /// A guest's store to BAR 0.
    pub fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR => self.write_common(offset, data),
            // Only a store that KVM did not match to an ioeventfd comes here (through the window, say).
            NOTIFY..PENDING => {
                let number = (offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER);
                if let Some(registers) = self.queues.get(number as usize) {
                    let _ = registers.kick.write(1);
                }
            }
            TABLE.. => self.msix.write_table((offset - TABLE) as usize, data),
            _ => {}
        }
    }

    /// Common configuration (§4.1.4.3). Registers are accessed in their own width, a 64-bit one in halves.
    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |read: &dyn Fn(&Queue) -> u64| queue.map_or(0, |q| read(&q.queue));
        let value: u64 = match offset {
            0x00 => u64::from(self.device_feature_select),
            0x04 => half(self.offered(), self.device_feature_select),
            0x08 => u64::from(self.driver_feature_select),
            0x0c => half(self.driver_features, self.driver_feature_select),
            0x10 => u64::from(self.config_vector),
            0x12 => self.queues.len() as u64,
            0x14 => u64::from(self.status()),
            0x15 => u64::from(self.config_generation),
            // A queue is notified by its own number.
            0x16 | 0x1e => u64::from(self.queue_select),
            0x18 => of_queue(&|q| u64::from(q.size())),
            0x1a => queue.map_or(u64::from(NO_VECTOR), |q| u64::from(q.vector)),
            0x1c => of_queue(&|q| u64::from(q.ready())),
            0x20 => of_queue(&|q| q.desc_table() & 0xffff_ffff),
            0x24 => of_queue(&|q| q.desc_table() >> 32),
            0x28 => of_queue(&|q| q.avail_ring() & 0xffff_ffff),
            0x2c => of_queue(&|q| q.avail_ring() >> 32),
            0x30 => of_queue(&|q| q.used_ring() & 0xffff_ffff),
            0x34 => of_queue(&|q| q.used_ring() >> 32),
            _ => 0,
        };
        for (byte, part) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = part;
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let len = data.len().min(4);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u32::from_le_bytes(bytes);
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c => self.set_driver_features(value),
            0x10 => self.config_vector = self.existing_vector(value as u16),
            0x14 => self.set_status(value as u8),
            0x16 => self.queue_select = value as u16,
            0x18..=0x34 => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let vector = self.existing_vector(value as u16);
        let active = self.status & STATUS_DRIVER_OK != 0;
        let Some(registers) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        let queue = &mut registers.queue;
        // A queue in use must not change under the device (§4.1.4.3.2): such a store is ignored.
        if active || (queue.ready() && offset != 0x1a) {
            return;
        }
        match offset {
            // A size the ring cannot have is ignored; the driver reads back what it got.
            0x18 => drop(queue.try_set_size(value as u16)),
            0x1a => registers.vector = vector,
            0x1c => queue.set_ready(value == 1),
            0x20 => queue.set_desc_table_address(Some(value), None),
            0x24 => queue.set_desc_table_address(None, Some(value)),
            0x28 => queue.set_avail_ring_address(Some(value), None),
            0x2c => queue.set_avail_ring_address(None, Some(value)),
            0x30 => queue.set_used_ring_address(Some(value), None),
            0x34 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn existing_vector(&self, vector: u16) -> u16 {
        self.msix.vector(vector).map_or(NO_VECTOR, |_| vector)
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// A reset that is under way keeps the old status in sight, so the driver waits for it (§2.4.2).
    fn status(&self) -> u8 {
        if self.resetting && self.device.reset_done() {
            0
        } else {
            self.status
        }
    }

    fn set_status(&mut self, status: u8) {
        if self.resetting {
            if !self.device.reset_done() {
                return;
            }
            self.finish_reset();
        }
        if status == 0 {
            self.resetting = true;
            if self.status & STATUS_DRIVER_OK == 0 || self.device.reset() {
                self.finish_reset();
            }
            return;
        }
        // Only a reset takes a bit back (§2.1): a device that has started would otherwise not be told of its reset.
        let mut status = self.status | status;
        if status & STATUS_FEATURES_OK != 0 && !self.features_acceptable() {
            status &= !STATUS_FEATURES_OK;
        }
        let starts = status & STATUS_DRIVER_OK != 0 && self.status & STATUS_DRIVER_OK == 0;
        self.status = status;
        if starts && let Err(reason) = self.activate() {
            warn(format_args!("virtio device {}: {reason}", self.device.id()));
            self.status |= STATUS_NEEDS_RESET;
            self.interrupt_config();
        }
    }

    /// The device's configuration is another: tells the driver (§4.1.5.3).
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status() & STATUS_DRIVER_OK != 0 {
            self.interrupt_config();
        }
    }

    fn interrupt_config(&self) {
        if let Some(vector) = self.msix.vector(self.config_vector) {
            // A full counter means that an interrupt is pending anyway.
            let _ = vector.event().write(1);
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn finish_reset(&mut self) {
        self.resetting = false;
        self.status = 0;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.config_vector = NO_VECTOR;
        for registers in &mut self.queues {
            registers.queue.reset();
            registers.vector = NO_VECTOR;
        }
    }

    fn activate(&mut self) -> Result<(), String> {
        let clone = |event: &EventFd| event.try_clone().map_err(|e: io::Error| e.to_string());
        let mut queues = Vec::with_capacity(self.queues.len());
        for (number, registers) in self.queues.iter().enumerate() {
            if !registers.queue.ready() {
                queues.push(None);
                continue;
            }
            if !registers.queue.is_valid(&self.memory) {
                return Err(format!(
                    "the rings of queue {number} are not in guest memory"
                ));
            }
            // The transport keeps its own copy of the registers; the ring state moves to the device.
            let queue = Queue::try_from(registers.queue.state()).map_err(|e| e.to_string())?;
            let interrupt = self.msix.vector(registers.vector);
            queues.push(Some(ActiveQueue {
                queue,
                interrupt: interrupt.map(|v| clone(v.event())).transpose()?,
            }));
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
        })
    }
}

/// 32 bits of a feature word; there are two.
fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}

/// `struct virtio_pci_cap` from its third byte on (§4.1.4).
fn virtio_capability(kind: u8, offset: u64, len: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![(16 + more.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    body
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::memory::allocate;
    use crate::unheard::Unheard;

    const STATUS: u64 = COMMON + 0x14;

    /// Counts how often it was started and reset.
    #[derive(Debug, Default)]
    struct Counts([u32; 2]);

    impl VirtioDevice for Counts {
        fn id(&self) -> u16 {
            4
        }

        fn class(&self) -> u32 {
            0
        }

        fn queue_sizes(&self) -> Vec<u16> {
            vec![16]
        }

        fn features(&self) -> u64 {
            0
        }

        fn config(&self) -> Vec<u8> {
            Vec::new()
        }

        fn activate(&mut self, _: Activation) -> Result<(), String> {
            self.0[0] += 1;
            Ok(())
        }

        fn reset(&mut self) -> bool {
            self.0[1] += 1;
            true
        }
    }

    #[test]
    fn a_device_that_has_started_is_told_of_its_reset_whatever_was_written_before() {
        let memory = allocate(1 << 20).unwrap();
        let device = Arc::new(Mutex::new(Counts::default()));
        let kicks = super::super::kicks(1).unwrap();
        let router = Router::new(Arc::new(Unheard));
        let mut pci = VirtioPci::new(0, Box::new(device.clone()), kicks, &memory, &router).unwrap();
        for round in 1..=2 {
            pci.write_bar(STATUS, &[STATUS_DRIVER_OK]);
            // A bit that is taken back starts nothing anew, either.
            for status in [1, STATUS_DRIVER_OK, 1] {
                pci.write_bar(STATUS, &[status]);
            }
            assert_eq!(device.lock().unwrap().0, [round, round - 1]);
            pci.write_bar(STATUS, &[0]);
            assert_eq!(device.lock().unwrap().0, [round, round]);
            let mut status = [0xff];
            pci.read_bar(STATUS, &mut status);
            assert_eq!(status, [0]);
        }
    }
}
