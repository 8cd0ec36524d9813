//! The counters as they are read: one answer of the control socket, and a table of it.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::counters::{DirectionCounters, Drops};

/// Everything that is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The lab's name.
    pub name: String,
    /// One entry per machine interface, in the order of the topology.
    pub ports: Vec<PortStats>,
    /// One entry per link, in the order of the topology.
    pub links: Vec<LinkStats>,
    /// One entry per switch and hub, in the order of the topology.
    pub nodes: Vec<NodeStats>,
    /// One entry per shard.
    pub shards: Vec<ShardStats>,
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

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Its name.
    pub name: String,
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
}

impl DirectionStats {
    /// Reads the counters of a direction.
    pub fn read(from: &str, to: &str, c: &DirectionCounters) -> Self {
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
    /// Copies not sent because the frame had been everywhere: there is a loop.
    pub looped: u64,
    /// Addresses in the table.
    pub learnt: u64,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStats {
    /// Turns of its loop.
    pub turns: u64,
    /// Turns that found something to do.
    pub busy_turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Bytes allocated for frames that fit neither the sender's nor the receiver's buffers.
    pub pool_bytes: u64,
}

impl Stats {
    /// Tables for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let ports = self.ports.iter().map(|p| {
            let state = match (p.connected, p.sending && p.receiving) {
                (false, _) => "waiting",
                (true, false) => "connected",
                (true, true) => "running",
            };
            vec![
                p.name.clone(),
                state.to_owned(),
                p.features.join(","),
                p.malformed.to_string(),
                p.violations.to_string(),
                p.last_error.clone().unwrap_or_default(),
            ]
        });
        render(
            &mut out,
            &[
                "PORT",
                "STATE",
                "FEATURES",
                "MALFORMED",
                "VIOLATIONS",
                "LAST ERROR",
            ],
            ports,
        );
        let directions = self.links.iter().flat_map(|l| &l.directions).map(|d| {
            let drops: Vec<String> = d
                .drops
                .iter()
                .filter(|(_, n)| *n > 0)
                .map(|(reason, n)| format!("{reason}={n}"))
                .collect();
            vec![
                format!("{} > {}", d.from, d.to),
                d.in_frames.to_string(),
                d.in_bytes.to_string(),
                d.out_frames.to_string(),
                d.out_bytes.to_string(),
                d.queued.to_string(),
                d.pool_copies.to_string(),
                if drops.is_empty() {
                    "-".to_owned()
                } else {
                    drops.join(" ")
                },
            ]
        });
        render(
            &mut out,
            &[
                "LINK", "IN", "BYTES", "OUT", "BYTES", "QUEUED", "POOL", "DROPS",
            ],
            directions,
        );
        let nodes = self.nodes.iter().map(|n| {
            let numbers = [n.frames, n.flooded, n.filtered, n.looped, n.learnt];
            [n.name.clone(), n.kind.clone()]
                .into_iter()
                .chain(numbers.map(|n| n.to_string()))
                .collect()
        });
        render(
            &mut out,
            &[
                "NODE", "KIND", "FRAMES", "FLOODED", "FILTERED", "LOOPED", "LEARNT",
            ],
            nodes,
        );
        out
    }
}

/// Appends a table with columns as wide as they need to be; nothing if it has no rows.
fn render(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return;
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let width = |i: usize| {
        rows.iter()
            .map(|r| r[i].chars().count())
            .chain([head[i].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut head.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
}
