//! The bus of a node and its devices but the NICs, without KVM and without threads: what a hostile guest's loads, stores and rings reach.

use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::Router;
use crate::memory::{GuestMemory, allocate};
use crate::pci::Bus;
use crate::unheard::Unheard;
use crate::virtio::VirtioDevice;
use crate::virtio::blk::Blk;
use crate::virtio::console::Console;
use crate::virtio::pci::VirtioPci;
use crate::virtio::rng::Rng;

/// Bytes of guest memory.
pub const MEMORY: u64 = 2 << 20;

type Devices = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

/// A bus with a disk, the agent's channel and random numbers, in this order.
pub struct Bench {
    bus: Arc<Bus>,
    memory: GuestMemory,
    devices: Devices,
    /// The other end of the agent's channel.
    pub host: UnixStream,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

impl Bench {
    /// With `disk` as disk.
    ///
    /// # Panics
    /// Where the system has nothing left.
    pub fn new(disk: File) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hopyard-fuzzing-{}-{n}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        let host = UnixStream::connect_addr(&address).expect("a listener");
        host.set_nonblocking(true).expect("a socket");

        let memory = allocate(MEMORY).expect("memory");
        let (blk, blk_kicks) = Blk::new(disk).expect("eventfds");
        let (console, console_kicks) = Console::new("agent", listener).expect("eventfds");
        let (rng, rng_kicks) = Rng::new().expect("eventfds");
        let (blk, console, rng) = (
            Arc::new(Mutex::new(blk)),
            Arc::new(Mutex::new(console)),
            Arc::new(Mutex::new(rng)),
        );
        let mut devices = Devices::new().expect("an epoll");
        devices.add_subscriber(blk.clone());
        devices.add_subscriber(console.clone());
        devices.add_subscriber(rng.clone());
        let router = Router::new(Arc::new(Unheard));
        let all: [(Box<dyn VirtioDevice>, Vec<EventFd>); 3] = [
            (Box::new(blk), blk_kicks),
            (Box::new(console), console_kicks),
            (Box::new(rng), rng_kicks),
        ];
        let on_bus = all.into_iter().enumerate().map(|(index, (device, kicks))| {
            VirtioPci::new(index, device, kicks, &memory, &router).expect("eventfds")
        });
        Self {
            bus: Bus::new(on_bus.collect()),
            memory,
            devices,
            host,
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The address of the BAR of a device.
    pub fn bar(index: usize) -> u64 {
        Bus::bar(index)
    }

    /// A load of the guest from a device's address.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.bus.read(address, data);
    }

    /// A store of the guest to a device's address.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.bus.write(address, data);
    }

    /// Lets devices do what they have to do now.
    ///
    /// # Panics
    /// When they cannot be waited for.
    pub fn serve(&mut self) {
        // A device that is never done would be found by the time it takes.
        while self.devices.run_with_timeout(0).expect("an epoll") > 0 {}
    }
}
