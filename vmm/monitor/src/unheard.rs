//! A virtual machine that nobody runs, for tests and fuzz targets.

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::Wires;

/// Takes everything but a table of routes with a message that KVM would refuse with x2APIC ids of 32 bits.
#[derive(Debug)]
pub struct Unheard;

impl Wires for Unheard {
    fn set_routes(&self, routes: &KvmIrqRouting) -> Result<(), kvm_ioctls::Error> {
        let bad = routes.as_slice().iter().any(|entry| {
            // SAFETY: routes of this type have this member, and any bits are one.
            entry.type_ == KVM_IRQ_ROUTING_MSI && unsafe { entry.u.msi }.address_hi & 0xff != 0
        });
        if bad {
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        }
        Ok(())
    }

    fn connect(&self, _: &EventFd, _: u32) -> Result<(), kvm_ioctls::Error> {
        Ok(())
    }

    fn disconnect(&self, _: &EventFd, _: u32) -> Result<(), kvm_ioctls::Error> {
        Ok(())
    }

    fn doorbell(&self, _: &EventFd, _: u64) -> Result<(), kvm_ioctls::Error> {
        Ok(())
    }
}
