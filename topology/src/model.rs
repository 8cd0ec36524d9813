//! A checked topology: every name resolved, every default filled in, every quantity in its base unit.
//!
//! This is what the rest of Hopyard works with. The file format (what a person writes) lives in
//! the private module `file`; nothing outside this crate sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::net::{Cidr, MacAddr};
use crate::quantity::StormLimit;

pub use crate::link::{
    Change, Codel, Direction, Discipline, Distribution, DropFrom, FqCodel, GilbertElliott, Jitter,
    Limit, Loss, Patch, Pie, Queue, Red, Reorder, Trace,
};
pub use crate::verification::{
    Check, CheckKind, Hop, Ping, Reachability, Reachable, Target, Throughput, Way,
};

/// A whole lab, as one checked file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// The lab's name: 1 to 32 characters of `[a-z0-9-]`.
    pub name: String,
    /// One line for people; shown by `vmm ls`.
    pub description: Option<String>,
    /// Seed of every random draw in the lab: same seed, same traffic, same fate.
    pub seed: u64,
    /// How the switch waits for deadlines.
    pub timing: Timing,
    /// What links are made of.
    pub fabric: Fabric,
    /// What becomes of it when the process that runs it is killed.
    pub orphaned: Orphaned,
    /// In the order of the file.
    pub nodes: Vec<Node>,
    /// In the order of the file.
    pub links: Vec<Link>,
    /// What happens to machines, in the order of time. What happens to links is in their schedules.
    pub node_faults: Vec<NodeFault>,
    /// What should hold when the lab runs, in the order of the file.
    pub checks: Vec<Check>,
}

/// Something that happens to a machine at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFault {
    /// Since the start of the lab's switch.
    pub at: Duration,
    /// Index into [`Topology::nodes`].
    pub node: usize,
    /// What is done to it.
    pub order: NodeOrder,
}

/// What can be done to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeOrder {
    /// It boots, if it is down.
    Start,
    /// It is taken down, as if its plug were pulled.
    Stop,
    /// Both.
    Restart,
    /// Its processors stand still.
    Pause,
    /// They go on.
    Resume,
}

/// How the switch trades processor time for exact delivery times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timing {
    /// Sleeps whenever it can.
    Eco,
    /// Sleeps when idle, polls under load.
    #[default]
    Balanced,
    /// Spins the last stretch before every deadline.
    Exact,
}

/// What becomes of a lab whose own process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orphaned {
    /// It ends.
    #[default]
    End,
    /// Nodes and links go on, for another process to take over.
    Keep,
}

/// What links are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fabric {
    /// Hopyard's switch.
    #[default]
    Vswitch,
    /// Bridges, virtual Ethernet pairs and queue disciplines of the host's kernel.
    Kernel,
}

/// One node of the lab.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique in the lab: a host name label of 1 to 32 characters.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
}

impl Node {
    /// What it is, if it is a machine.
    pub fn machine(&self) -> Option<&Machine> {
        match &self.kind {
            NodeKind::Machine(machine) => Some(machine),
            NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => None,
        }
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeKind {
    /// `host` or `router`: a microVM with its own kernel.
    Machine(Box<Machine>),
    /// A learning switch inside the virtual switch.
    Switch(SwitchNode),
    /// Repeats every frame to every other port.
    Hub,
    /// A port to the outside world. It has one end, number 0.
    External(External),
}

/// Attributes of a learning switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchNode {
    /// An address not seen for this long is forgotten (IEEE 802.1D-2004 §7.9.2; default 300 s).
    pub ageing: Duration,
    /// Addresses it can hold; frames to addresses it cannot learn are flooded.
    pub table_limit: u32,
    /// Whether frames to 01-80-C2-00-00-00 to -0F are forwarded like other group frames, or dropped.
    pub forward_reserved: bool,
    /// By port number. A port beyond the end is like [`SwitchPort::default`].
    pub ports: Vec<SwitchPort>,
}

/// Attributes of a port of a switch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwitchPort {
    /// Its VLANs. Either all ports of a switch have it or none.
    pub vlan: Option<PortVlan>,
    /// What it may send to all, per second.
    pub storm: Option<StormLimit>,
}

/// How a port takes part in VLANs (IEEE 802.1Q).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortVlan {
    /// Of one VLAN, 1 to 4094; frames have no tag.
    Access(u16),
    /// Of several.
    Trunk {
        /// Whose frames have a tag.
        allowed: Vec<RangeInclusive<u16>>,
        /// Whose frames have none.
        native: Option<u16>,
    },
}

impl PortVlan {
    /// The VLAN of a frame without a tag.
    pub fn untagged(&self) -> Option<u16> {
        match self {
            Self::Access(vlan) => Some(*vlan),
            Self::Trunk { native, .. } => *native,
        }
    }

    /// Whether frames of `vlan` come and go with a tag.
    pub fn is_tagged(&self, vlan: u16) -> bool {
        match self {
            Self::Access(_) => false,
            Self::Trunk { allowed, native } => {
                *native != Some(vlan) && allowed.iter().any(|range| range.contains(&vlan))
            }
        }
    }
}

/// A port to the outside world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum External {
    /// A TAP device of the host, which is made unless it is there.
    Tap {
        /// Its name.
        name: String,
        /// Bytes of the largest IP packet.
        mtu: u16,
    },
    /// A network interface of the host.
    Interface {
        /// Its name.
        name: String,
    },
    /// A tunnel in VXLAN format (RFC 7348) over UDP.
    Vxlan {
        /// The network identifier, 24 bits.
        vni: u32,
        /// Where the other end listens.
        remote: SocketAddr,
        /// Where this end listens.
        local: SocketAddr,
    },
}

impl External {
    /// `tap`, `interface` or `vxlan`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tap { .. } => "tap",
            Self::Interface { .. } => "interface",
            Self::Vxlan { .. } => "vxlan",
        }
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap { name, .. } | Self::Interface { name } => {
                write!(f, "{} {name}", self.kind())
            }
            Self::Vxlan { vni, remote, .. } => write!(f, "vxlan {vni} to {remote}"),
        }
    }
}

/// A node with a kernel of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// A router forwards IPv4 and IPv6 (the matching sysctls are already in `sysctls`).
    pub role: Role,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Virtual processors, 1 to 32.
    pub vcpus: u8,
    /// What runs it; what the lab runs by default if it says nothing.
    pub engine: Option<Engine>,
    /// The group of nodes that share a switch process; see [`crate::zones`].
    pub zone: Option<String>,
    /// A kernel other than the lab's image; absolute.
    pub kernel: Option<PathBuf>,
    /// An erofs root other than the lab's image; absolute.
    pub rootfs: Option<PathBuf>,
    /// In the order of the file; the n-th is the n-th NIC on the PCI bus.
    pub interfaces: Vec<Interface>,
    /// Static routes.
    pub routes: Vec<Route>,
    /// Kernel settings by dotted name, applied in order.
    pub sysctls: Vec<(String, String)>,
    /// Files written before anything starts.
    pub files: Vec<File>,
    /// Shell commands started, in order, once the network is configured.
    pub commands: Vec<String>,
    /// FRR, if the node runs routing daemons.
    pub frr: Option<Frr>,
    /// What has to hold before the node counts as ready.
    pub ready: Option<Ready>,
    /// Indices into [`Topology::nodes`] of the machines that have to be ready before it boots; without cycles.
    pub after: Vec<usize>,
    /// What happens when the guest ends.
    pub on: EndPolicy,
    /// Words for choosing nodes.
    pub labels: BTreeMap<String, String>,
    /// Absolute paths inside the node of what is worth keeping.
    pub save: Vec<String>,
    /// What its process may take of the host.
    pub limits: Limits,
}

/// What the process of a machine may take of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processor time in thousandths of a processor, 10 to 1024000.
    pub cpu: Option<u32>,
    /// Share of processors when others want them too, 1 to 10000; 100 is what everything else has.
    pub weight: Option<u32>,
    /// Numbers of the processors it runs on, in order, each once; none for any.
    pub processors: Vec<u16>,
    /// Bytes of memory beyond the guest's.
    pub memory: Option<u64>,
}

impl Limits {
    /// Whether it takes a control group to enforce them.
    pub fn need_group(&self) -> bool {
        self.cpu.is_some() || self.weight.is_some() || self.memory.is_some()
    }
}

/// What runs a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A microVM on KVM.
    Kvm,
    /// A virtual machine of QEMU, emulated.
    Qemu,
    /// Namespaces of the host's kernel.
    Container,
}

/// Whether a machine forwards packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An end host.
    Host,
    /// Forwards between its interfaces.
    Router,
}

/// One NIC of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name inside the node: 1 to 15 characters (`IFNAMSIZ`).
    pub name: String,
    /// Unique in the lab; derived from lab, node and interface name unless given.
    pub mac: MacAddr,
    /// Bytes of the largest IP packet; 68 to 65535.
    pub mtu: u16,
    /// IPv4 and IPv6 addresses with their prefix lengths.
    pub addresses: Vec<Cidr>,
    /// Entries of each virtqueue: a power of two, 64 to 32768.
    pub queue_size: u16,
    /// Checksums and the cutting of superframes may be left to the switch and to the receiver.
    pub offloads: bool,
    /// In whose name the node may send.
    pub lock: Lock,
    /// How it is reached, if not through a vhost-user socket. The lab decides that, no file does.
    pub device: Option<Device>,
}

/// In whose name a machine may send on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lock {
    /// In anybody's.
    #[default]
    None,
    /// From the interface's MAC address.
    Mac,
    /// From the interface's MAC address and IP addresses; ARP, IPv4 and IPv6 only.
    Address,
}

/// A network device of the host that leads to a machine's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a network device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Frames are read and written by a process.
    Tap,
    /// One end of a virtual Ethernet pair, which becomes the interface.
    Veth,
}

/// A static route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination; `0.0.0.0/0` or `::/0` for `default`.
    pub to: Cidr,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The interface it leaves by.
    pub dev: Option<String>,
    /// Preference; lower wins.
    pub metric: Option<u32>,
}

/// A file placed in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute path inside the node.
    pub path: String,
    /// Its text.
    pub content: String,
    /// Permission bits, as in `chmod`.
    pub mode: u32,
}

/// The routing suite of a node: short forms and inline text are both resolved to this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frr {
    /// Daemons to start, `zebra` first: `zebra`, `ospfd`, `ospf6d`, `ripd`, `ripngd`, `bgpd`, `isisd`, `staticd`, …
    pub daemons: Vec<String>,
    /// The integrated configuration, `frr.conf`.
    pub config: String,
}

/// A readiness condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// A shell command run inside the node, again and again until it exits with 0.
    pub exec: String,
    /// How long it may take before the launch fails.
    pub timeout: Duration,
}

/// What to do when a guest ends, by the way it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndPolicy {
    /// The guest switched itself off (default: end).
    pub power_off: EndAction,
    /// The guest asked for a reset (default: restart).
    pub reboot: EndAction,
    /// The guest's kernel panicked (default: end).
    pub panic: EndAction,
    /// The virtual processor shut down on a triple fault (default: end).
    pub triple_fault: EndAction,
    /// Its monitor ended without the guest's doing, or was killed (default: end).
    pub crash: EndAction,
}

impl Default for EndPolicy {
    fn default() -> Self {
        Self {
            power_off: EndAction::End,
            reboot: EndAction::Restart,
            panic: EndAction::End,
            triple_fault: EndAction::End,
            crash: EndAction::End,
        }
    }
}

/// What becomes of a node whose guest has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndAction {
    /// The node stays down; the rest of the lab goes on.
    End,
    /// The node boots again.
    Restart,
    /// The whole lab ends with an error.
    EndLab,
}

/// A link between two ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// `a:eth0--b:eth0` unless the file names it; unique.
    pub name: String,
    /// The two ends, in the order of the file.
    pub ends: [Endpoint; 2],
    /// `directions[0]` shapes `ends[0]` → `ends[1]`, `directions[1]` the way back.
    pub directions: [Direction; 2],
    /// When the sender's descriptor is completed.
    pub completion: Completion,
    /// What changes while the lab runs, in the order of time.
    pub schedule: Vec<Change>,
}

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Index into [`Topology::nodes`].
    pub node: usize,
    /// For a machine the index into its `interfaces`; for a switch or hub the port number, from 0 in link order; for an
    /// external node 0.
    pub port: usize,
}

/// When the switch completes the descriptor of a frame it has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Completion {
    /// At once: the queue of the link is the bottleneck queue.
    #[default]
    Network,
    /// At the end of its transmission, as a NIC of that rate does: the queue forms in the guest.
    Nic,
}
