//! What a lab takes of the machine it runs on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the processes of a lab have taken of this machine so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// When this was read, in milliseconds since launch.
    pub at_ms: u64,
    /// The machine.
    pub host: HostUsage,
    /// The lab process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<ProcessUsage>,
    /// The virtual switch, while it runs; of several all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<ProcessUsage>,
    /// The machines of the lab, in the order of the file.
    pub nodes: Vec<NodeUsage>,
}

/// What the machine that labs run on has, and how much of it is in use, by whatever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostUsage {
    /// Processors.
    pub processors: u32,
    /// Milliseconds, of all processors together, in which they had something to do since the machine booted.
    pub busy_ms: u64,
    /// Milliseconds in which they had not.
    pub idle_ms: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that can be had without swapping.
    pub memory_available: u64,
}

/// What a process has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessUsage {
    /// Its number.
    pub pid: u32,
    /// Milliseconds of processor time, of all its threads.
    pub cpu_ms: u64,
    /// Milliseconds in which its threads could have run and waited for a processor, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Bytes of memory that are resident. Guest memory counts where it was touched: with the monitor, and with the switch as far
    /// as that has read or written it.
    pub memory: u64,
    /// Bytes of them that are shared memory: of a monitor, the guest's.
    #[serde(default)]
    pub guest_memory: u64,
    /// Threads.
    pub threads: u32,
}

/// What a node has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeUsage {
    /// The node's name.
    pub name: String,
    /// Its monitor, guest included, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessUsage>,
}
