//! The file format: what a person writes. The JSON schema is derived from these types.

use std::fmt;
use std::marker::PhantomData;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::quantity::{Size, Time};

mod check;
mod external;
mod fault;
mod link;
mod switch;

pub use check::*;
pub use external::*;
pub use fault::*;
pub use link::*;
pub use switch::*;

/// A Hopyard lab.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lab {
    /// For editors: where the schema of this file is.
    #[serde(rename = "$schema")]
    #[allow(dead_code, reason = "read by editors, not by us")]
    pub schema: Option<String>,
    /// 1 to 32 characters of `a-z`, `0-9` and `-`; default: the file's name without `.json`.
    pub name: Option<String>,
    /// One line for people.
    pub description: Option<String>,
    /// Seed of every random draw; default 1.
    pub seed: Option<u64>,
    /// How the switch trades processor time for exact delivery times; default `balanced`.
    pub timing: Option<Timing>,
    /// What links are made of; default `vswitch`. `kernel` is for comparison: it takes root and nodes that are containers or run by QEMU, and refuses what the host's kernel cannot do.
    pub fabric: Option<Fabric>,
    /// What becomes of the lab when the process that runs it is killed; default `end`.
    pub orphaned: Option<Orphaned>,
    /// Values for every machine and link that does not set its own.
    #[serde(default)]
    pub defaults: Defaults,
    /// By name.
    pub nodes: IndexMap<String, Node>,
    /// What joins the nodes.
    #[serde(default)]
    pub links: Vec<Link>,
    /// What goes wrong at which time.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What should hold when the lab runs; `vmm verify` looks.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// How the switch waits.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Timing {
    /// Sleeps whenever it can.
    Eco,
    /// Sleeps when idle, polls under load.
    Balanced,
    /// Spins the last stretch before every deadline.
    Exact,
}

/// What links are made of.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fabric {
    /// Hopyard's switch.
    Vswitch,
    /// Bridges, virtual Ethernet pairs and queue disciplines of the host's kernel.
    Kernel,
}

/// What becomes of a lab whose own process was killed.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Orphaned {
    /// It ends.
    End,
    /// Nodes and links go on until `vmm adopt` takes the lab over, or `vmm stop` ends it.
    Keep,
}

/// Values for whatever does not set its own.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Defaults {
    /// For hosts and routers.
    #[serde(default)]
    pub machine: MachineDefaults,
    /// For links.
    #[serde(default)]
    pub link: LinkDefaults,
}

/// For hosts and routers.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MachineDefaults {
    /// As in a machine.
    pub memory: Option<Size>,
    /// As in a machine.
    pub vcpus: Option<u64>,
    /// As in a machine.
    pub kernel: Option<String>,
    /// As in a machine.
    pub rootfs: Option<String>,
    /// As in an interface.
    pub mtu: Option<u64>,
    /// As in an interface.
    pub queue_size: Option<u64>,
    /// As in a machine.
    pub cpu: Option<Cpu>,
    /// As in a machine.
    pub host_memory: Option<Size>,
}

/// A node; `kind` says which.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(tag = "kind")]
pub enum Node {
    /// An end host with its own kernel.
    Host(Box<Machine>),
    /// The same, forwarding IPv4 and IPv6.
    Router(Box<Machine>),
    /// A learning switch.
    Switch(Switch),
    /// Repeats every frame to every other port.
    Hub(Hub),
    /// A port to the outside world.
    External(External),
}

/// A hub has no settings.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hub {}

/// A host or router.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Machine {
    /// Guest memory, a multiple of 2MiB, 32MiB to 1024GiB; default 128MiB.
    pub memory: Option<Size>,
    /// Virtual processors, 1 to 32; default 1.
    pub vcpus: Option<u64>,
    /// What runs it; by default what `vmm launch --engine` says.
    pub engine: Option<Engine>,
    /// Nodes of different zones share no process: frames of each zone are handled by a switch of its own, unless a link joins them.
    pub zone: Option<String>,
    /// A kernel other than the image's, relative to this file.
    pub kernel: Option<String>,
    /// An erofs root other than the image's, relative to this file.
    pub rootfs: Option<String>,
    /// By name; left out, the links that name them create them.
    pub interfaces: Option<IndexMap<String, Interface>>,
    /// Static routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Kernel settings by dotted name, applied in order.
    #[serde(default)]
    pub sysctls: IndexMap<String, Scalar>,
    /// Files by absolute path, written before anything starts.
    #[serde(default)]
    pub files: IndexMap<String, File>,
    /// Shell commands started, in order, once the network is configured.
    #[serde(default)]
    pub commands: Vec<String>,
    /// Routing daemons.
    pub routing: Option<Routing>,
    /// What has to hold before the node counts as ready.
    pub ready: Option<Ready>,
    /// Hosts and routers that have to be ready before this one boots.
    #[serde(default)]
    pub after: Vec<String>,
    /// What happens when the guest ends.
    #[serde(default)]
    pub on: On,
    /// Words for choosing nodes, as in `vmm exec --label role=core`.
    #[serde(default)]
    pub labels: IndexMap<String, String>,
    /// Absolute paths of files and folders that `vmm save` collects.
    #[serde(default)]
    pub save: Vec<String>,
    /// What the node may take of the host's processors.
    pub cpu: Option<Cpu>,
    /// What the node's process may take of the host's memory beyond `memory`, 4MiB to 1024GiB; no limit by default.
    pub host_memory: Option<Size>,
}

/// What runs a machine.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// A microVM on KVM.
    Kvm,
    /// A virtual machine of QEMU, emulated.
    Qemu,
    /// Namespaces of the host's kernel: no kernel of its own, and no wall around a hostile node. Takes root.
    Container,
}

/// What a node may take of the host's processors.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Cpu {
    /// At most so much: processors as in `2`, or percent of one as in `"50%"`, 1% to 102400%.
    pub limit: Option<Scalar>,
    /// Its share when others want processors too, 1 to 10000; 100 is what everything else has.
    pub weight: Option<u64>,
    /// The host's processors it runs on, by number.
    pub pin: Option<Vec<u64>>,
}

/// A network interface.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Interface {
    /// IPv4 and IPv6 addresses with their prefix lengths, as in `10.0.3.2/24`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// As in `02:00:00:00:00:01`; derived from the names of lab, node and interface by default.
    pub mac: Option<String>,
    /// Bytes of the largest IP packet, 68 to 65535; default 1500.
    pub mtu: Option<u64>,
    /// Entries of each virtqueue, a power of two, 64 to 32768; default 1024.
    pub queue_size: Option<u64>,
    /// Whether the guest may leave checksums and segmentation to others, and take frames whose sender did; default true.
    pub offloads: Option<bool>,
    /// In whose name the node may send on it: `none` (default) any, `mac` its own MAC address, `address` that and its own `addresses`, by
    /// ARP, IPv4 and IPv6 only. Other frames are dropped and counted.
    pub lock: Option<Lock>,
}

/// In whose name a node may send.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lock {
    /// In anybody's.
    None,
    /// From its own MAC address.
    Mac,
    /// From its own MAC address and IP addresses.
    Address,
}

/// A static route.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Route {
    /// `default`, or a network as in `10.0.0.0/8`.
    pub to: String,
    /// The next hop's address.
    pub via: Option<String>,
    /// The interface; needed without `via`.
    pub dev: Option<String>,
    /// Preference; lower wins.
    pub metric: Option<u64>,
}

/// A file in a node: its text, or an object.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum File {
    /// Its text.
    Text(String),
    /// With permissions, or copied from a file of the host.
    Detailed(FileDetails),
}

/// A file in a node; exactly one of `content` and `from`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileDetails {
    /// Its text.
    pub content: Option<String>,
    /// A text file of the host to copy, relative to this file.
    pub from: Option<String>,
    /// Permissions in octal; default `0644`.
    pub mode: Option<String>,
}

/// What has to hold before a node counts as ready: exactly one of `exec`, `tcp` and `ospf-neighbors`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ready {
    /// A shell command run in the node, again and again until it exits with 0.
    pub exec: Option<String>,
    /// Something accepts connections there: a port of the node, or an address and a port as in `10.0.0.2:80`.
    pub tcp: Option<Scalar>,
    /// So many OSPF neighbors are in state Full, 1 to 10000.
    pub ospf_neighbors: Option<u64>,
    /// How long that may take before the launch fails, 1s to 1440min; default 120s.
    pub timeout: Option<Time>,
}

/// What happens when a guest ends, by the way it ended.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct On {
    /// It switched itself off; default `end`.
    pub power_off: Option<Action>,
    /// It asked for a reset; default `restart`.
    pub reboot: Option<Action>,
    /// Its kernel panicked; default `end`.
    pub panic: Option<Action>,
    /// A triple fault; default `end`.
    pub triple_fault: Option<Action>,
    /// Its monitor ended without the guest's doing, or was killed; default `end`.
    pub crash: Option<Action>,
}

/// What becomes of a node whose guest has ended.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The node stays down, the lab goes on.
    End,
    /// The node boots again.
    Restart,
    /// The lab ends with an error.
    EndLab,
}

/// FRR's routing daemons; several may be combined.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Routing {
    /// OSPF on all interfaces: version 2, and version 3 if the node has IPv6 addresses.
    #[serde(default)]
    pub ospf: Toggle<Ospf>,
    /// RIP version 2 on all interfaces, and RIPng if the node has IPv6 addresses.
    #[serde(default)]
    pub rip: bool,
    /// BGP with directly connected nodes.
    pub bgp: Option<Bgp>,
    /// IS-IS, level 2, on all interfaces.
    #[serde(default)]
    pub isis: Toggle<Isis>,
    /// Lines of `frr.conf`, after what the short forms make.
    pub frr: Option<Lines>,
}

/// OSPF.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ospf {
    /// A number or dotted; default `0`.
    pub area: Option<String>,
    /// Time between hellos, 1s to 65535s; default 1s.
    pub hello: Option<Time>,
    /// A neighbour silent for this long is gone, 1s to 65535s; default four times `hello`.
    pub dead: Option<Time>,
}

/// BGP.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Bgp {
    /// The autonomous system, 1 to 4294967294.
    #[serde(rename = "as")]
    pub asn: u64,
    /// Directly connected nodes with `bgp`, by name or address; default: all of them.
    pub neighbors: Option<Vec<String>>,
}

/// IS-IS.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Isis {
    /// The area part of the network entity title; default `49.0001`.
    pub area: Option<String>,
    /// Time between hellos, 1s to 600s; default 1s.
    pub hello: Option<Time>,
}

/// The value of a kernel setting.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(untagged)]
pub enum Scalar {
    /// As it is.
    Text(String),
    /// In decimal.
    Number(i64),
}

/// `true` or `false`, or an object of settings.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, rename = "{T}Toggle")]
pub enum Toggle<T> {
    /// With the defaults, or not at all.
    Plain(bool),
    /// With these settings.
    Detailed(T),
}

impl<T> Default for Toggle<T> {
    fn default() -> Self {
        Self::Plain(false)
    }
}

/// Text: a string, a list of lines, or `{"from": "file"}`.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Lines {
    /// The text.
    Whole(String),
    /// Its lines.
    Separate(Vec<String>),
    /// Read from a file.
    File(TextFile),
}

/// A text file of the host.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TextFile {
    /// Its path, relative to this file.
    pub from: String,
}

// serde's own untagged enums buffer their input and so lose the place of an error inside it.

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrDetails;
        impl<'de> Visitor<'de> for TextOrDetails {
            type Value = File;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an object with `content` or `from`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<File, E> {
                Ok(File::Text(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<File, A::Error> {
                FileDetails::deserialize(MapAccessDeserializer::new(map)).map(File::Detailed)
            }
        }
        deserializer.deserialize_any(TextOrDetails)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl Visitor<'_> for TextOrNumber {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
                i64::try_from(number)
                    .map(Scalar::Number)
                    .map_err(|_| E::custom("the number is too large\nwrite it as a string"))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(number))
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Toggle<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PlainOrDetails<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PlainOrDetails<T> {
            type Value = Toggle<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or an object")
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Toggle<T>, E> {
                Ok(Toggle::Plain(value))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Toggle<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Toggle::Detailed)
            }
        }
        deserializer.deserialize_any(PlainOrDetails(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyLines;
        impl<'de> Visitor<'de> for AnyLines {
            type Value = Lines;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of lines or {\"from\": \"file\"}")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Lines, E> {
                Ok(Lines::Whole(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Lines, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Lines::Separate)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Lines, A::Error> {
                TextFile::deserialize(MapAccessDeserializer::new(map)).map(Lines::File)
            }
        }
        deserializer.deserialize_any(AnyLines)
    }
}
