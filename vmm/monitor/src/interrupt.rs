//! What connects devices to the guest's processors without an exit: doorbells, and message-signalled interrupts, which are eventfds that KVM
//! turns into messages to a local APIC.
//!
//! A device, or the switch in another process, writes to a vector's eventfd; KVM injects the message that
//! the guest programmed, without an exit to this process.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use rustix::event::PollFlags;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::layout::FIRST_MSI_GSI;
use crate::poll;

/// What devices ask of the virtual machine.
pub trait Wires: fmt::Debug + Send + Sync {
    /// Has these interrupt routes and no others.
    fn set_routes(&self, routes: &KvmIrqRouting) -> Result<(), kvm_ioctls::Error>;
    /// From now on a write to `event` raises the interrupt `gsi`.
    fn connect(&self, event: &EventFd, gsi: u32) -> Result<(), kvm_ioctls::Error>;
    /// No longer.
    fn disconnect(&self, event: &EventFd, gsi: u32) -> Result<(), kvm_ioctls::Error>;
    /// From now on any store of the guest to `address` is a write to `kick`.
    fn doorbell(&self, kick: &EventFd, address: u64) -> Result<(), kvm_ioctls::Error>;
}

impl Wires for VmFd {
    fn set_routes(&self, routes: &KvmIrqRouting) -> Result<(), kvm_ioctls::Error> {
        self.set_gsi_routing(routes)
    }

    fn connect(&self, event: &EventFd, gsi: u32) -> Result<(), kvm_ioctls::Error> {
        self.register_irqfd(event, gsi)
    }

    fn disconnect(&self, event: &EventFd, gsi: u32) -> Result<(), kvm_ioctls::Error> {
        self.unregister_irqfd(event, gsi)
    }

    fn doorbell(&self, kick: &EventFd, address: u64) -> Result<(), kvm_ioctls::Error> {
        // Without a datamatch KVM need not decode the instruction that wrote.
        self.register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)
    }
}

/// What an MSI-X table entry makes the device write, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// KVM's table of interrupt routes, shared by all devices of the node.
#[derive(Debug)]
pub struct Router {
    wires: Arc<dyn Wires>,
    /// Index 0 is [`FIRST_MSI_GSI`]; a vector that was never unmasked has no message yet.
    messages: Mutex<Vec<Option<Message>>>,
}

impl Router {
    /// A table with the IOAPIC's pins and no messages.
    pub fn new(wires: Arc<dyn Wires>) -> Arc<Self> {
        Arc::new(Self {
            wires,
            messages: Mutex::new(Vec::new()),
        })
    }

    /// One new vector, masked.
    pub fn vector(self: &Arc<Self>) -> io::Result<Vector> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push(None);
        Ok(Vector {
            router: self.clone(),
            gsi: FIRST_MSI_GSI + messages.len() as u32 - 1,
            event: EventFd::new(EFD_NONBLOCK)?,
            live: false,
        })
    }

    fn route(&self, gsi: u32, message: Message) -> Result<(), kvm_ioctls::Error> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let index = (gsi - FIRST_MSI_GSI) as usize;
        if messages[index] == Some(message) {
            return Ok(());
        }
        let before = messages[index].replace(message);
        let installed = self.install(&messages);
        if installed.is_err() {
            // With it in the table KVM would refuse the routes of all other vectors, too.
            messages[index] = before;
        }
        installed
    }

    /// Installs the IOAPIC's pins alone, before any device has a message.
    pub fn install_pins(&self) -> Result<(), kvm_ioctls::Error> {
        self.install(&[])
    }

    /// KVM takes the whole table at once, and forgets what is not in it.
    fn install(&self, messages: &[Option<Message>]) -> Result<(), kvm_ioctls::Error> {
        let pins = (0..FIRST_MSI_GSI).map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip = kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            };
            entry
        });
        let messages = messages.iter().enumerate().filter_map(|(index, message)| {
            let message = (*message)?;
            let mut entry = kvm_irq_routing_entry {
                gsi: FIRST_MSI_GSI + index as u32,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                ..Default::default()
            };
            Some(entry)
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.wires.set_routes(&table)
    }

    /// From now on any store of the guest to `address` is a write to `kick`.
    pub fn doorbell(&self, kick: &EventFd, address: u64) -> Result<(), kvm_ioctls::Error> {
        self.wires.doorbell(kick, address)
    }
}

/// One MSI-X vector of a device.
#[derive(Debug)]
pub struct Vector {
    router: Arc<Router>,
    gsi: u32,
    event: EventFd,
    /// Whether the eventfd is an irqfd at present.
    live: bool,
}

impl Vector {
    /// The eventfd that raises it. What is written while the vector is masked stays in the eventfd's
    /// counter, and KVM looks at that when the vector is unmasked: nothing is lost.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Connects the eventfd to the guest, with this message.
    pub fn unmask(&mut self, message: Message) -> Result<(), kvm_ioctls::Error> {
        self.router.route(self.gsi, message)?;
        if !self.live {
            self.router.wires.connect(&self.event, self.gsi)?;
            self.live = true;
        }
        Ok(())
    }

    /// Disconnects the eventfd from the guest.
    pub fn mask(&mut self) -> Result<(), kvm_ioctls::Error> {
        if self.live {
            self.router.wires.disconnect(&self.event, self.gsi)?;
            self.live = false;
        }
        Ok(())
    }

    /// Whether an interrupt waits for the vector to be unmasked.
    pub fn is_pending(&self) -> bool {
        !self.live && poll::is(&self.event, PollFlags::IN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unheard::Unheard;

    #[test]
    fn a_message_that_kvm_refuses_is_of_that_vector_alone() {
        let router = Router::new(Arc::new(Unheard));
        let [mut one, mut other] = [router.vector().unwrap(), router.vector().unwrap()];
        let good = Message {
            address: 0xfee0_0000,
            data: 0x21,
        };
        let bad = Message {
            address: 0xff_0000_0000,
            data: 0x21,
        };
        // Nor is it taken for installed when it comes again.
        for _ in 0..2 {
            one.unmask(bad).unwrap_err();
            assert!(!one.live);
        }
        other.unmask(good).unwrap();
        one.unmask(good).unwrap();
        assert!(one.live && other.live);
    }
}
