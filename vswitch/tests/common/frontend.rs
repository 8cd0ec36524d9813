//! A vhost-user front-end for a [`Guest`].

use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::GuestMemoryBackend;
use vswitch::port::features::{EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1};

use super::driver::{DriverRing, Guest, Memory};

/// The connection of a guest to its port.
pub struct Connection {
    pub frontend: Frontend,
}

type Done = Result<(), vhost::Error>;

impl Connection {
    /// Connects and negotiates; no memory and no rings yet.
    pub fn open(path: &Path, guest: &Guest) -> Self {
        let mut c = Self::bare(path);
        c.agree(guest);
        c
    }

    /// Negotiates what `guest` wants.
    pub fn agree(&mut self, guest: &Guest) {
        let wanted = VERSION_1 | INDIRECT_DESC | PROTOCOL_FEATURES;
        let event = if guest.tx.event_idx { EVENT_IDX } else { 0 };
        let merge = if guest.mergeable { MRG_RXBUF } else { 0 };
        self.negotiate(wanted | event | merge | guest.offloads)
            .unwrap();
    }

    /// Connects and does no more.
    pub fn bare(path: &Path) -> Self {
        Self {
            frontend: Frontend::connect(path, 2).unwrap(),
        }
    }

    /// A front-end on a connection that is there.
    pub fn on(stream: UnixStream) -> Self {
        Self {
            frontend: Frontend::from_stream(stream, 2),
        }
    }

    pub fn negotiate(&mut self, features: u64) -> Done {
        self.frontend.set_owner()?;
        let offered = self.frontend.get_features()?;
        assert_eq!(
            features & !offered,
            0,
            "not offered: {:#x}",
            features & !offered
        );
        let protocol = self.frontend.get_protocol_features()?;
        assert_eq!(
            protocol,
            VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        );
        self.frontend.set_protocol_features(protocol)?;
        // Every request is answered, so a refusal is seen where it happens.
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.frontend.set_features(features)
    }

    /// Connects, shares memory, starts both rings.
    pub fn start(path: &Path, guest: &Guest) -> Self {
        let mut c = Self::open(path, guest);
        c.share(&guest.memory).unwrap();
        c.start_rings(guest, [0, 0]).unwrap();
        c
    }

    pub fn share(&self, memory: &Memory) -> Done {
        let regions: Vec<_> = memory
            .iter()
            .map(|r| VhostUserMemoryRegionInfo::from_guest_region(r).unwrap())
            .collect();
        self.frontend.set_mem_table(&regions).map(|_| ())
    }

    pub fn start_rings(&mut self, guest: &Guest, bases: [u16; 2]) -> Done {
        for (i, ring) in [&guest.rx, &guest.tx].into_iter().enumerate() {
            self.start_ring(i, guest, ring, bases[i])?;
        }
        Ok(())
    }

    pub fn start_ring(&mut self, i: usize, guest: &Guest, ring: &DriverRing, base: u16) -> Done {
        self.frontend.set_vring_num(i, ring.size)?;
        self.frontend.set_vring_base(i, base)?;
        self.frontend.set_vring_addr(i, &addresses(guest, ring))?;
        self.frontend.set_vring_call(i, &ring.call)?;
        self.frontend.set_vring_kick(i, &ring.kick)?;
        self.frontend.set_vring_enable(i, true)
    }

    /// Stops both rings, as at a reset; where they stopped.
    pub fn stop_rings(&self) -> [u16; 2] {
        [0, 1].map(|i| self.frontend.get_vring_base(i).unwrap() as u16)
    }
}

/// The ring in the front-end's own address space.
pub fn addresses(guest: &Guest, ring: &DriverRing) -> VringConfigData {
    VringConfigData {
        queue_max_size: ring.size,
        queue_size: ring.size,
        flags: 0,
        desc_table_addr: guest.user(ring.descriptors),
        used_ring_addr: guest.user(ring.used),
        avail_ring_addr: guest.user(ring.available),
        log_addr: None,
    }
}
