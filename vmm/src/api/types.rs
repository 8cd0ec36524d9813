//! What the API says, for both of its sides.

mod report;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent_protocol::{ExitStatus, WindowSize};
use capture_filter::Instruction;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use report::{Asked, Delivered, LinkReport, Report, Verdict};
pub use usage::{HostUsage, NodeUsage, ProcessUsage, Usage};

/// A lab and all its nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lab {
    /// Its name.
    pub name: String,
    /// What the topology says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The topology file.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Process number of the lab process.
    pub pid: u32,
    /// Process number of the virtual switch, of several the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_pid: Option<u32>,
    /// The virtual switches: one for each zone of the topology.
    #[serde(default)]
    pub switches: Vec<Switch>,
    /// How often a switch was started again because it had ended by itself.
    #[serde(default)]
    pub switch_restarts: u64,
    /// What runs the machines.
    pub engine: EngineName,
    /// Why this engine.
    pub engine_reason: String,
    /// When it was launched, in seconds since 1970.
    pub started: u64,
    /// How far it is.
    pub phase: Phase,
    /// Milliseconds from launch until every node was ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
    /// Why it ends, if that is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How often its topology has changed since.
    #[serde(default)]
    pub revision: u64,
    /// How its processes are jailed.
    pub isolation: IsolationReport,
    /// Why limits that the topology sets are not enforced, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_missing: Option<String>,
    /// In the order of the file.
    pub nodes: Vec<Node>,
}

/// A virtual switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switch {
    /// The zone whose frames it handles; empty for that of nodes that are in none.
    pub zone: String,
    /// Its process number, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// How far processes are jailed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IsolationReport {
    /// In one word.
    pub level: IsolationLevel,
    /// What of the jail this machine does not have or forbids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Whether the process of a machine is a user of its own on this machine.
    #[serde(default)]
    pub own_users: bool,
}

/// How far a process is jailed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationLevel {
    /// As `docs/isolation.md` says.
    Full,
    /// As far as this machine allows.
    Relaxed,
    /// Not at all.
    None,
}

/// What the topology says a node may take of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeLimits {
    /// Processors, or parts of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Share of processors when others want them too; 100 is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// The processors it runs on; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processors: Vec<u16>,
    /// Bytes beyond its guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Whether all of it is enforced; if not, the lab says why.
    pub enforced: bool,
}

/// How far a lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not every node has been ready, or has failed, yet.
    Starting,
    /// Every node has been ready or has failed.
    Running,
    /// Its processes are being ended.
    Ending,
    /// None of its processes is left.
    Ended,
    /// Its own process was killed, and the rest goes on as it stood: `vmm ls` says so, the lab cannot.
    Orphaned,
}

/// What runs machines.
#[derive(Debug, Clone, Copy, PartialEq, Hash, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    /// Hopyard's monitor on KVM.
    Kvm,
    /// `qemu-system-x86_64`, TCG.
    Qemu,
    /// Namespaces of the host's kernel.
    Container,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// How far it is.
    pub state: NodeState,
    /// What its topology says for choosing nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its NICs.
    pub interfaces: Vec<Interface>,
    /// Of an external node: what it leads to, as in `tap hop0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
    /// Bytes of its memory, if it is a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Its virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// What runs it, if it is a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineName>,
    /// Process number of its monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `uname -r` of its kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Times it was started again.
    pub restarts: u32,
    /// Milliseconds its latest boot took to each state.
    pub boot: BootTimes,
    /// What went wrong, or was worth a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How its guest ended the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_end: Option<End>,
    /// How its process is jailed; nothing that lives in the switch has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationLevel>,
    /// What it may take of the host, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NodeLimits>,
    /// What its process has taken of the host since its latest boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<ProcessUsage>,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A machine that does not forward.
    Host,
    /// A machine that forwards.
    Router,
    /// A learning switch inside the virtual switch.
    Switch,
    /// A hub inside the virtual switch.
    Hub,
    /// A port of the virtual switch to the outside world.
    External,
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Its turn to boot has not come.
    Waiting,
    /// Its kernel starts.
    Booting,
    /// Its agent has answered and sets up the network.
    Configuring,
    /// Its network is set up, its readiness condition does not hold yet.
    Configured,
    /// All of it.
    Ready,
    /// As it was, but its processors stand still until it is resumed.
    Paused,
    /// A person has stopped it.
    Stopped,
    /// Its guest has ended, and that is how it stays.
    Ended,
    /// It could not be started or configured, or its monitor broke down.
    Failed,
}

/// What is worth keeping of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Keep {
    /// It runs routing daemons, so their configuration.
    pub routing: bool,
    /// Files and folders, by absolute path.
    pub paths: Vec<String>,
}

/// What can be asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeOrder {
    /// Boot it, if it is down.
    Start,
    /// Take it down; its links stay.
    Stop,
    /// Take it down and boot it, or just boot it.
    Restart,
    /// Have its processors stand still.
    Pause,
    /// Have them go on.
    Resume,
}

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interface {
    /// Its name inside the node.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// `address/prefix`.
    pub addresses: Vec<String>,
    /// Bytes of the largest IP packet.
    #[serde(default)]
    pub mtu: u16,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// From its first end to its second.
    pub forward: LinkDirection,
    /// From its second end to its first.
    pub backward: LinkDirection,
}

/// The topology of a running lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopologyText {
    /// The file it is from; relative paths in it are relative to this.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// What stands in it.
    pub text: String,
    /// How often it has changed since the launch.
    pub revision: u64,
}

/// A topology a running lab is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopologyRequest {
    /// The file it is from; relative paths in it are relative to this.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// What stands in it.
    pub text: String,
    /// The revision it was made from; refused if the lab has another by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What people have set on links since is left as it is.
    #[serde(default)]
    pub keep_links: bool,
}

/// What makes a running lab into another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangePlan {
    /// The revision of the lab it is for, or that it has made.
    pub revision: u64,
    /// In the order in which they are taken; none if the lab is like that.
    pub steps: Vec<Step>,
    /// What else a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Something that happens to a node or a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What.
    pub action: Action,
    /// To what.
    pub subject: Subject,
    /// Its name; of a link with another name than before, the new one.
    pub name: String,
    /// Why, or what about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// What can happen to a node or a link of a running lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is new; a machine boots.
    Add,
    /// It is gone; a machine is ended.
    Remove,
    /// A machine is ended and boots as another one.
    Restart,
    /// It changes while it runs.
    Change,
}

/// What there is in a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A node.
    Node,
    /// A link.
    Link,
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkDirection {
    /// Where it comes from: `node:interface`, of a switch or hub `node:port`, or the name of an external node.
    pub from: String,
    /// Where it leads.
    pub to: String,
    /// What it is set to now, apart from defaults, as the topology file has it.
    #[schema(value_type = Object)]
    pub attributes: Map<String, Value>,
    /// What has happened on it so far.
    pub counters: LinkCounters,
}

/// What is counted of one direction of a link. What went in and was duplicated has come out, was dropped, or is still
/// inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkCounters {
    /// Frames that entered.
    pub in_frames: u64,
    /// Their bytes, without overhead.
    pub in_bytes: u64,
    /// Frames that left at the other end.
    pub out_frames: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// Frames that did not, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Copies made, as `duplicate` asks.
    pub duplicated: u64,
    /// Frames with a bit flipped, as `corrupt` asks.
    pub corrupted: u64,
    /// Frames marked as having met congestion (CE of RFC 3168).
    pub marked: u64,
    /// Frames waiting for the transmitter now.
    pub queued: u64,
    /// The most that have waited.
    pub queued_max: u64,
    /// How much later than ideal frames were delivered.
    pub lateness: Lateness,
}

/// Quantiles of a lateness, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lateness {
    /// Frames that were delivered by a link that holds frames up.
    pub count: u64,
    /// Half of them were not later than this.
    pub p50: u64,
    /// 99 % of them were not later than this.
    pub p99: u64,
    /// The latest.
    pub max: u64,
    /// The histogram, as the switch has it; `/metrics` gives it away: the greatest value of each bucket, and how many fell into it.
    #[serde(default, skip_serializing)]
    #[schema(ignore)]
    pub buckets: Vec<(u64, u64)>,
}

/// What is to be captured (docs/capture.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// Names of links; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Where on their way; none means after delivery.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<CapturePoint>,
    /// Which frames: a program of classic BPF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Vec<u32>>>)]
    pub filter: Option<Vec<Instruction>>,
    /// The most bytes kept of each frame, 1 to 262144; none means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
}

/// Where a frame can be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CapturePoint {
    /// Entering the link, before its queue
    Before,
    /// Delivered at the other end
    After,
    /// Dropped, with the reason as the packet's comment
    Drops,
}

/// Milliseconds from the start of a node's process to each state.
#[expect(
    clippy::struct_field_names,
    reason = "the unit belongs into names that JSON readers see"
)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootTimes {
    /// The agent answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub booted_ms: Option<u64>,
    /// The network was set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configured_ms: Option<u64>,
    /// The readiness condition held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// The way it ended.
    pub reason: EndReason,
    /// More about it, for people.
    pub detail: String,
}

/// The ways a guest can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reboot,
    /// Its kernel panicked.
    Panic,
    /// Its virtual processor shut down.
    TripleFault,
    /// Its monitor ended without the guest's doing.
    Crash,
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power-off",
            Self::Reboot => "reboot",
            Self::Panic => "kernel panic",
            Self::TripleFault => "triple fault",
            Self::Crash => "its monitor ended",
        })
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() {
            write!(f, "{}", self.reason)
        } else {
            write!(f, "{}: {}", self.reason, self.detail)
        }
    }
}

/// One record of the event stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Milliseconds since launch.
    pub at_ms: u64,
    /// What has changed.
    #[serde(flatten)]
    pub change: Change,
}

/// What an event tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Change {
    /// First record of every stream: how things stand.
    Snapshot {
        /// The lab.
        lab: Box<Lab>,
    },
    /// The lab entered a phase.
    Lab {
        /// The phase.
        phase: Phase,
        /// Why it ends, if that is an error.
        #[serde(skip_serializing_if = "Option::is_none")]
        failure: Option<String>,
    },
    /// Something about a node has changed.
    Node {
        /// The node as it is now.
        node: Box<Node>,
    },
    /// A node is no more.
    NodeRemoved {
        /// Its name.
        node: String,
    },
    /// The lab has become another one: nodes and links have come, gone or changed.
    Topology {
        /// How often that has happened.
        revision: u64,
    },
    /// A link was set to something else by a person.
    Link {
        /// The link as it is now.
        link: Box<Link>,
    },
    /// One direction of a link has got or lost its carrier.
    Carrier {
        /// The link's name.
        link: String,
        /// Where the direction comes from.
        from: String,
        /// Where it leads.
        to: String,
        /// Whether there is a carrier now.
        up: bool,
    },
    /// Something a person should know.
    Notice {
        /// The node it is about.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// For people.
        message: String,
    },
    /// The reader was too slow, and this many records are missing.
    Lost {
        /// Records.
        count: u64,
    },
}

/// Text messages of a client on an exec WebSocket. Binary messages are bytes for standard input; the client
/// sends no more of them than the window allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ExecRequest {
    /// First message: what to run.
    Start {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the environment.
        #[serde(default)]
        env: Vec<(String, String)>,
        /// Working directory; `/root` if absent.
        #[serde(default)]
        cwd: Option<String>,
        /// Run it on a pty of this size.
        #[serde(default)]
        #[schema(value_type = Object, example = json!({"rows": 24, "cols": 80}))]
        tty: Option<WindowSize>,
    },
    /// End of standard input.
    StdinEnd,
    /// Send a signal to the command's process group.
    Signal {
        /// Linux signal number.
        signal: i32,
    },
    /// The terminal has a new size.
    Resize {
        /// The size, in character cells.
        #[schema(value_type = Object, example = json!({"rows": 24, "cols": 80}))]
        size: WindowSize,
    },
}

/// Text messages of the lab on an exec WebSocket. Binary messages are output: a byte that names the stream
/// (1: standard output, 2: standard error), then the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ExecReply {
    /// More bytes of standard input may be sent; at the start it may be 262144.
    Credit {
        /// Bytes.
        bytes: u32,
    },
    /// The command could not be started. Last message.
    Failed {
        /// For people.
        message: String,
        /// 127 if there is no such program, else 126.
        status: i32,
    },
    /// The command has ended and all output was sent. Last message.
    Exited {
        /// How it ended: with a code, or by a signal (`{"signal": 9}`).
        #[schema(value_type = Object, example = json!({"code": 0}))]
        status: ExitStatus,
    },
    /// The node ended, or its agent broke off. Last message.
    Lost {
        /// For people.
        message: String,
    },
}

/// First byte of a binary message with standard output.
pub const STDOUT: u8 = 1;
/// First byte of a binary message with standard error.
pub const STDERR: u8 = 2;

/// An error, as RFC 9457 describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// The kind of problem.
    pub title: String,
    /// What happened, to what.
    pub detail: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}
