//! Network device (virtio 1.2 §5.1): its configuration is here, its queues belong to the switch.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::vhost_user::{Client, Rings, SharedQueue};
use super::{Activation, VERSION_1, VirtioDevice, kicks};
use crate::config::NicConfig;
use crate::error::Error;

const CLASS_ETHERNET: u32 = 0x02_0000;
/// Receive and transmit.
pub const QUEUES: usize = 2;

/// Features whose meaning lies in the rings and frames alone: the switch may offer them, the guest may take them.
const OF_THE_SWITCH: u64 = VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;
/// Features that this process serves, from the configuration structure.
const OURS: u64 = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU | 1 << VIRTIO_NET_F_STATUS;

/// Whether a NIC has a carrier; clones share it. Who changes it has to tell the transport.
#[derive(Debug, Clone)]
pub struct Carrier(Arc<AtomicBool>);

impl Carrier {
    /// Of a NIC that is about to be made.
    pub fn new(up: bool) -> Self {
        Self(Arc::new(AtomicBool::new(up)))
    }

    /// Changes it; false if that is what it was.
    pub fn set(&self, up: bool) -> bool {
        self.0.swap(up, Ordering::AcqRel) != up
    }

    fn status(&self) -> u16 {
        if self.0.load(Ordering::Acquire) {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        }
    }
}

/// A NIC whose rings are served by the switch.
#[derive(Debug)]
pub struct Net {
    mac: [u8; 6],
    mtu: u16,
    queue_size: u16,
    carrier: Carrier,
    /// What the switch offers.
    offered: u64,
    kicks: Vec<EventFd>,
    client: Client,
}

impl Net {
    /// The `index`-th NIC of the node, with the features the switch has offered for it; and the eventfds for its transport.
    pub fn new(
        index: usize,
        nic: &NicConfig,
        carrier: Carrier,
        client: Client,
        offered: u64,
    ) -> Result<(Self, Vec<EventFd>), Error> {
        let mac = parse_mac(&nic.mac).ok_or_else(|| {
            Error::Config(format!(
                "interface {index}: {:?} is not a MAC address",
                nic.mac
            ))
        })?;
        let kicks = kicks(QUEUES).map_err(Error::system("create an eventfd"))?;
        let ours = clone_all(&kicks).map_err(Error::system("duplicate an eventfd"))?;
        let net = Self {
            mac,
            mtu: nic.mtu,
            queue_size: nic.queue_size,
            carrier,
            offered: offered & OF_THE_SWITCH,
            kicks: ours,
            client,
        };
        Ok((net, kicks))
    }
}

fn clone_all(events: &[EventFd]) -> io::Result<Vec<EventFd>> {
    events.iter().map(EventFd::try_clone).collect()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// The sockets of a node's NICs, in order.
pub fn sockets(nics: &[NicConfig]) -> Vec<PathBuf> {
    nics.iter().map(|nic| nic.socket.clone()).collect()
}

impl VirtioDevice for Net {
    fn id(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn class(&self) -> u32 {
        CLASS_ETHERNET
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; QUEUES]
    }

    fn features(&self) -> u64 {
        self.offered | OURS
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu.
        let mut config = self.mac.to_vec();
        config.extend(self.carrier.status().to_le_bytes());
        config.extend(1u16.to_le_bytes());
        config.extend(self.mtu.to_le_bytes());
        config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), String> {
        let mut queues = Vec::with_capacity(QUEUES);
        for (active, kick) in activation.queues.into_iter().zip(&self.kicks) {
            let active = active.ok_or("the driver has to enable both queues")?;
            queues.push(SharedQueue {
                size: active.queue.size(),
                descriptors: active.queue.desc_table(),
                available: active.queue.avail_ring(),
                used: active.queue.used_ring(),
                kick: kick.try_clone().map_err(|e| e.to_string())?,
                // A driver without interrupts polls; the switch gets an eventfd nobody reads.
                call: match active.interrupt {
                    Some(interrupt) => interrupt,
                    None => EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK)
                        .map_err(|e| e.to_string())?,
                },
            });
        }
        self.client.start(Rings {
            features: activation.features & self.offered,
            memory: activation.memory,
            queues,
        });
        Ok(())
    }

    fn reset(&mut self) -> bool {
        self.client.stop();
        false
    }

    fn reset_done(&self) -> bool {
        self.client.stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        assert_eq!(parse_mac("02:00:00:00:0a:ff"), Some([2, 0, 0, 0, 10, 255]));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02:00:00:00:00:1ff",
            "0g:0:0:0:0:0",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
