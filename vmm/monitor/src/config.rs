//! What the lab tells a monitor about its node.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One microVM. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name, for messages.
    pub name: String,
    /// An ELF `vmlinux` with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// A read-only disk image, the guest's `/dev/vda`.
    pub rootfs: PathBuf,
    /// Guest memory in bytes, a multiple of 2 MiB, at least 32 MiB.
    pub memory: u64,
    /// Virtual processors, 1 to 32.
    pub vcpus: u8,
    /// In PCI order.
    pub nics: Vec<NicConfig>,
    /// Where the monitor listens for the host end of the guest's agent port.
    pub agent_socket: PathBuf,
    /// Receives what the guest writes to its serial port; bounded.
    pub serial_log: PathBuf,
    /// Appended to the kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// One NIC: a port of the virtual switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// The switch's listening vhost-user socket.
    pub socket: PathBuf,
    /// `02:00:00:00:00:01`.
    pub mac: String,
    /// Bytes of the largest IP packet, 68 to 65535.
    pub mtu: u16,
    /// Entries of each virtqueue: a power of two up to 32768.
    pub queue_size: u16,
    /// Whether the NIC has a carrier from the start; an [`Order`] changes it.
    #[serde(default = "on", skip_serializing_if = "Clone::clone")]
    pub carrier: bool,
}

fn on() -> bool {
    true
}

/// What the lab can ask of a monitor whose guest runs, a JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// The guest is to see that a NIC has a carrier, or has none.
    Carrier {
        /// Its place among the node's NICs.
        nic: usize,
        /// Whether it has one.
        up: bool,
    },
    /// A person types on the serial port. From the first such order on, what the guest writes there is passed on at once instead
    /// of by lines.
    Serial {
        /// At most [`SERIAL_INPUT`] of them; none is a person who only looks.
        bytes: Vec<u8>,
    },
}

/// Bytes for the serial port in one order.
pub const SERIAL_INPUT: usize = 200;
