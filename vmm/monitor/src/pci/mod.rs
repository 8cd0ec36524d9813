//! One PCI bus behind ECAM. Slot 0 is the host bridge; devices follow, eight functions a slot.

mod config;
mod msix;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use config::ConfigSpace;
pub use msix::Msix;

use crate::layout::{ECAM, PCI_BARS};
use crate::virtio::pci::VirtioPci;

/// Functions in a slot (PCI local bus specification §3.2.2.3.4).
const FUNCTIONS: usize = 8;
/// Most devices of a node: 31 slots of eight functions.
pub const MAX_DEVICES: usize = 31 * FUNCTIONS;
const INTEL: u16 = 0x8086;
/// Intel 82G33, which operating systems know as a plain host bridge.
const HOST_BRIDGE: u16 = 0x29c0;
const CLASS_HOST_BRIDGE: u32 = 0x06_0000;

/// The bus. Each device has one BAR of [`VirtioPci::BAR_SIZE`], which stays where it was put: a guest that
/// moves it loses the device, nothing else.
#[derive(Debug)]
pub struct Bus {
    bridge: Mutex<ConfigSpace>,
    devices: Vec<Mutex<VirtioPci>>,
}

/// A part of the bus that an address falls into.
enum Target<'a> {
    Bridge(MutexGuard<'a, ConfigSpace>, usize),
    Config(MutexGuard<'a, VirtioPci>, usize),
    Bar(MutexGuard<'a, VirtioPci>, u64),
}

impl Bus {
    /// Address of the BAR of the `index`-th device.
    pub fn bar(index: usize) -> u64 {
        PCI_BARS.start + index as u64 * VirtioPci::BAR_SIZE
    }

    /// A bus with these devices, at most [`MAX_DEVICES`].
    pub fn new(devices: Vec<VirtioPci>) -> Arc<Self> {
        debug_assert!(devices.len() <= MAX_DEVICES);
        Arc::new(Self {
            bridge: Mutex::new(ConfigSpace::new(INTEL, HOST_BRIDGE, CLASS_HOST_BRIDGE)),
            devices: devices.into_iter().map(Mutex::new).collect(),
        })
    }

    /// The configuration of the `index`-th device is another: tells its driver.
    pub fn config_changed(&self, index: usize) {
        if let Some(device) = self.devices.get(index) {
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            device.config_changed();
        }
    }

    fn target(&self, address: u64) -> Option<Target<'_>> {
        let device = |index: usize| {
            let device = self.devices.get(index)?;
            Some(device.lock().unwrap_or_else(PoisonError::into_inner))
        };
        if ECAM.contains(&address) {
            let offset = address - ECAM.start;
            let register = (offset & 0xfff) as usize;
            match (offset >> 12) as usize {
                0 => Some(Target::Bridge(
                    self.bridge.lock().unwrap_or_else(PoisonError::into_inner),
                    register,
                )),
                function => {
                    let index = function.checked_sub(FUNCTIONS)?;
                    Some(Target::Config(device(index)?, register))
                }
            }
        } else if PCI_BARS.contains(&address) {
            let offset = address - PCI_BARS.start;
            let index = (offset / VirtioPci::BAR_SIZE) as usize;
            Some(Target::Bar(device(index)?, offset % VirtioPci::BAR_SIZE))
        } else {
            None
        }
    }

    /// A load from `address`; what answers to no device reads as all ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.target(address) {
            Some(Target::Bridge(bridge, register)) => bridge.read(register, data),
            Some(Target::Config(device, register)) => device.read_config_space(register, data),
            Some(Target::Bar(device, offset)) => device.read_bar(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to `address`; what answers to no device is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.target(address) {
            Some(Target::Bridge(mut bridge, register)) => bridge.write(register, data),
            Some(Target::Config(mut device, register)) => device.write_config_space(register, data),
            Some(Target::Bar(mut device, offset)) => device.write_bar(offset, data),
            None => {}
        }
    }
}
