//! The KVM microVM monitor of Hopyard: one process runs one node.
//!
//! [`run`] boots a PVH `vmlinux` (or a bzImage) on sealed shared memory behind hardware-reduced ACPI and one PCI bus of
//! virtio devices, and returns how the guest ended. It is started by the lab as `vmm node`.
//!
//! | to find | look in |
//! |---|---|
//! | the guest's address map | [`layout`] |
//! | a virtio device | `virtio/<device>.rs`; the one transport is `virtio/pci.rs` |
//! | PCI configuration space, MSI-X | `pci/` |
//! | what the guest's ports (serial, power, panic) do | `pio.rs` |
#![warn(missing_docs)]

mod acpi;
mod boot;
mod config;
mod cpu;
mod device_loop;
mod end;
mod error;
pub mod filters;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod interrupt;
pub mod layout;
mod memory;
mod orders;
mod pci;
mod pio;
mod poll;
mod serial;
#[cfg(any(test, feature = "fuzzing"))]
mod unheard;
mod vcpu;
mod virtio;
mod vm;
mod warn;

pub use config::{NicConfig, NodeConfig, Order, SERIAL_INPUT};
pub use end::{End, EndReason};
pub use error::Error;
pub use serial::SerialLog;
pub use vm::{Opened, open, run};
