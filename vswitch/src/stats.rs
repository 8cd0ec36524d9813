//! The counters as they are read: one answer of the control socket, and a table of it.

mod table;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::Time;
use crate::counters::{DirectionCounters, Drops, ShardCounters};
use crate::histogram::Distribution;

/// Everything that is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The lab's name.
    pub name: String,
    /// One entry per machine interface, in the order of the topology.
    pub ports: Vec<PortStats>,
    /// One entry per external node, in the order of the topology.
    pub externals: Vec<ExternalStats>,
    /// One entry per link, in the order of the topology.
    pub links: Vec<LinkStats>,
    /// One entry per switch and hub, in the order of the topology.
    pub nodes: Vec<NodeStats>,
    /// One entry per shard.
    pub shards: Vec<ShardStats>,
    /// Captures that are running.
    pub captures: u64,
}

/// A machine's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// `node.interface`.
    pub name: String,
    /// A front-end is connected.
    pub connected: bool,
    /// How many have connected so far.
    pub connections: u64,
    /// The virtio features agreed on that matter to the data path; empty before they are.
    pub features: Vec<String>,
    /// The guest can receive.
    pub receiving: bool,
    /// The guest can send.
    pub sending: bool,
    /// Frames taken from the guest that were no Ethernet frames or asked for an offload that was not offered.
    pub malformed: u64,
    /// Frames taken from the guest although its interface has no link.
    pub unlinked: u64,
    /// Rings stopped because the guest broke the rules.
    pub violations: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// An external node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalStats {
    /// Its name.
    pub name: String,
    /// What it leads to, as in `tap hop0`.
    pub leads_to: String,
    /// Its device is there.
    pub connected: bool,
    /// What came in that was no Ethernet frame, or a datagram of another tunnel.
    pub malformed: u64,
    /// Frames that came in although the node has no link.
    pub unlinked: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Its name.
    pub name: String,
    /// What it is set to now, apart from defaults, as the topology file has it; first from its first end to its second.
    pub attributes: [Map<String, Value>; 2],
    /// First from its first end to its second.
    pub directions: [DirectionStats; 2],
}

/// One direction of a link. What went in and was duplicated has come out, was dropped, or is still inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionStats {
    /// Where it comes from: `node.interface`, or a switch or hub.
    pub from: String,
    /// Where it leads.
    pub to: String,
    /// Frames that entered.
    pub in_frames: u64,
    /// Their bytes, without overhead.
    pub in_bytes: u64,
    /// Frames that left at the other end.
    pub out_frames: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// Frames that did not, by reason.
    pub drops: Drops,
    /// Copies made, as the link's `duplicate` asks.
    pub duplicated: u64,
    /// Frames with a bit flipped, as the link's `corrupt` asks.
    pub corrupted: u64,
    /// Frames marked as having met congestion (CE of RFC 3168).
    pub marked: u64,
    /// Bytes copied on behalf of this direction; on an unshaped link from machine to machine exactly `out_bytes`.
    pub bytes_copied: u64,
    /// Frames that had to wait in the switch's own memory, which costs a second copy.
    pub pool_copies: u64,
    /// Frames waiting for the transmitter now.
    pub queued: u64,
    /// The most there have been.
    pub queued_max: u64,
    /// By how many nanoseconds frames came out later than they ideally would have; of links that hold frames up.
    pub lateness: Distribution,
}

/// How much of the counters of a direction is read: [`DirectionStats::read`] or [`DirectionStats::brief`].
pub(crate) type ReadDirection = fn(&str, &str, &DirectionCounters) -> DirectionStats;

impl DirectionStats {
    /// Reads the counters of a direction.
    pub fn read(from: &str, to: &str, c: &DirectionCounters) -> Self {
        Self {
            lateness: c.lateness.read(),
            ..Self::brief(from, to, c)
        }
    }

    /// The same without lateness, which takes most of the time.
    pub fn brief(from: &str, to: &str, c: &DirectionCounters) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            // What comes out later is read first, so that no frame seems to come from nowhere.
            out_frames: c.out_frames.get(),
            out_bytes: c.out_bytes.get(),
            drops: c.drops.read(),
            duplicated: c.duplicated.get(),
            corrupted: c.corrupted.get(),
            marked: c.marked.get(),
            in_frames: c.in_frames.get(),
            in_bytes: c.in_bytes.get(),
            bytes_copied: c.bytes_copied.get(),
            pool_copies: c.pool_copies.get(),
            queued: c.queued.get(),
            queued_max: c.queued_max.get(),
            lateness: Distribution::default(),
        }
    }
}

/// A switch or hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStats {
    /// Its name.
    pub name: String,
    /// `switch` or `hub`.
    pub kind: String,
    /// Frames that came in.
    pub frames: u64,
    /// Of these, sent out of every other port.
    pub flooded: u64,
    /// Of these, not forwarded, as their receiver is where they came from.
    pub filtered: u64,
    /// Of these, not forwarded, as their port is not of their VLAN.
    pub wrong_vlan: u64,
    /// Of these, not forwarded, as their port had sent too much to all.
    pub storm: u64,
    /// Times a station moved from one port to another.
    pub moved: u64,
    /// Copies not sent because the frame had been everywhere: there is a loop.
    pub looped: u64,
    /// Addresses in the table.
    pub learnt: u64,
    /// The last thing that went wrong: a storm, or a loop.
    pub last_error: Option<String>,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStats {
    /// Turns of its loop.
    pub turns: u64,
    /// Turns that found something to do.
    pub busy_turns: u64,
    /// Nanoseconds in these.
    pub busy_ns: u64,
    /// Nanoseconds spent looking for something to do.
    pub polling_ns: u64,
    /// Nanoseconds asleep.
    pub sleeping_ns: u64,
    /// Times it went to sleep, and so was woken up.
    pub sleeps: u64,
    /// Times it took frames from a ring.
    pub batches: u64,
    /// Frames it took.
    pub batch_frames: u64,
    /// Bytes allocated for frames that fit neither the sender's nor the receiver's buffers.
    pub pool_bytes: u64,
    /// Such frames now.
    pub pool_frames: u64,
    /// The most there have been.
    pub pool_frames_max: u64,
}

impl ShardStats {
    /// Reads the counters of a shard at `now` on its clock.
    pub fn read(c: &ShardCounters, now: Time) -> Self {
        Self {
            turns: c.turns.get(),
            busy_turns: c.busy_turns.get(),
            busy_ns: c.busy_ns.get(),
            polling_ns: c.polling_ns.get(),
            sleeping_ns: c.asleep(now),
            sleeps: c.sleeps.get(),
            batches: c.batches.get(),
            batch_frames: c.batch_frames.get(),
            pool_bytes: c.pool_bytes.get(),
            pool_frames: c.pool_frames.get(),
            pool_frames_max: c.pool_frames_max.get(),
        }
    }
}
