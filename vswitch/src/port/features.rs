//! What a port offers its front-end.

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Virtio 1.x: no legacy layouts.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// A frame may be spread over several receive buffers.
pub const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Notifications by ring index.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Descriptor tables outside the ring.
pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Bit 30, with which the front-end may ask for protocol features and must enable its rings.
pub const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The guest may leave checksums to others.
pub const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
/// It takes frames whose checksum is left to it.
pub const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
/// It may send TCP superframes over IPv4.
pub const HOST_TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;
/// It may send TCP superframes over IPv6.
pub const HOST_TSO6: u64 = 1 << VIRTIO_NET_F_HOST_TSO6;
/// Both also with CWR.
pub const HOST_ECN: u64 = 1 << VIRTIO_NET_F_HOST_ECN;
/// It may send UDP superframes.
pub const HOST_USO: u64 = 1 << VIRTIO_NET_F_HOST_USO;
/// It takes TCP superframes over IPv4.
pub const GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
/// It takes TCP superframes over IPv6.
pub const GUEST_TSO6: u64 = 1 << VIRTIO_NET_F_GUEST_TSO6;
/// Both also with CWR.
pub const GUEST_ECN: u64 = 1 << VIRTIO_NET_F_GUEST_ECN;
/// It takes UDP superframes over IPv4.
pub const GUEST_USO4: u64 = 1 << VIRTIO_NET_F_GUEST_USO4;
/// It takes UDP superframes over IPv6.
pub const GUEST_USO6: u64 = 1 << VIRTIO_NET_F_GUEST_USO6;
/// All that is about checksums and superframes.
pub const OFFLOADS: u64 = CSUM
    | GUEST_CSUM
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | HOST_USO
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | GUEST_USO4
    | GUEST_USO6;

/// The virtio feature bits of a port.
///
/// Offloads are agreed with each front-end by itself; what a receiver does not take is done for it.
/// `MAC`, `MTU` and `STATUS` describe fields of the configuration space, which the front-end serves by itself; a
/// front-end masks what it shows its guest with what the back-end offers, so they have to be here for a guest to see them.
/// `CTRL_VQ` and all that depends on it are not offered, since no control queue is served here.
pub const OFFERED: u64 = VERSION_1
    | MRG_RXBUF
    | EVENT_IDX
    | INDIRECT_DESC
    | PROTOCOL_FEATURES
    | OFFLOADS
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_STATUS;

/// The vhost-user protocol feature bits of a port; `MQ` is missing because a port has one pair of rings.
pub fn protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// The names of the virtio bits in `features` that mean something to a reader of the counters.
pub fn names(features: u64) -> Vec<&'static str> {
    [
        (VERSION_1, "version-1"),
        (MRG_RXBUF, "mrg-rxbuf"),
        (EVENT_IDX, "event-idx"),
        (INDIRECT_DESC, "indirect"),
        (CSUM, "csum"),
        (GUEST_CSUM, "guest-csum"),
        (HOST_TSO4, "host-tso4"),
        (HOST_TSO6, "host-tso6"),
        (HOST_ECN, "host-ecn"),
        (HOST_USO, "host-uso"),
        (GUEST_TSO4, "guest-tso4"),
        (GUEST_TSO6, "guest-tso6"),
        (GUEST_ECN, "guest-ecn"),
        (GUEST_USO4, "guest-uso4"),
        (GUEST_USO6, "guest-uso6"),
    ]
    .into_iter()
    .filter(|(bit, _)| features & bit != 0)
    .map(|(_, name)| name)
    .collect()
}
