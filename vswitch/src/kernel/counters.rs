//! What the kernel counts of its devices and queue disciplines.

use std::collections::HashMap;
use std::fs;

use serde::Deserialize;

use super::tools::Tool;
use crate::counters::DirectionCounters;
use crate::stats::DirectionStats;

/// Counters of a device: from its bridge's side, what is received has come in by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub rx_bytes: u64,
    pub rx_frames: u64,
    pub tx_bytes: u64,
    pub tx_frames: u64,
    pub tx_dropped: u64,
}

/// What queue disciplines count of the frames that were to leave by a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queued {
    /// On the way: netem's.
    lost: u64,
    /// By the queue before the transmitter.
    queue: u64,
    /// That wait in it.
    waiting: u64,
    /// Marked as having met congestion.
    marked: u64,
}

/// Those of all devices of this network namespace, by name.
pub fn devices() -> HashMap<String, Counts> {
    parse_devices(&fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
}

/// `proc_pid_net(5)`: two lines of headings, then eight numbers of what was received and eight of what was sent.
fn parse_devices(text: &str) -> HashMap<String, Counts> {
    let device = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map_while(|number| number.parse().ok())
            .collect();
        let &[
            rx_bytes,
            rx_frames,
            _,
            _,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_frames,
            _,
            tx_dropped,
            ..,
        ] = &numbers[..]
        else {
            return None;
        };
        let counts = Counts {
            rx_bytes,
            rx_frames,
            tx_bytes,
            tx_frames,
            tx_dropped,
        };
        Some((name.trim().to_owned(), counts))
    };
    text.lines().skip(2).filter_map(device).collect()
}

#[derive(Debug, Deserialize)]
struct Qdisc {
    kind: String,
    dev: String,
    #[serde(default)]
    drops: u64,
    #[serde(default)]
    qlen: u64,
    #[serde(default)]
    ecn_mark: u64,
}

/// Those of the queue disciplines of all devices, by name.
pub fn qdiscs() -> HashMap<String, Queued> {
    let text = Tool("tc").output(&["-s", "-j", "qdisc", "show"]);
    parse_qdiscs(&text.unwrap_or_default())
}

fn parse_qdiscs(text: &[u8]) -> HashMap<String, Queued> {
    let all: Vec<Qdisc> = serde_json::from_slice(text).unwrap_or_default();
    let mut queued: HashMap<String, Queued> = HashMap::new();
    for qdisc in all {
        let entry = queued.entry(qdisc.dev).or_default();
        match qdisc.kind.as_str() {
            "netem" => entry.lost = qdisc.drops,
            // The queue below it counts what is dropped there.
            "tbf" => {}
            _ => {
                entry.queue = qdisc.drops;
                entry.waiting = qdisc.qlen;
                entry.marked = qdisc.ecn_mark;
            }
        }
    }
    for queued in queued.values_mut() {
        // netem takes part in the drops below it.
        queued.lost = queued.lost.saturating_sub(queued.queue);
    }
    queued
}

/// A direction that comes in by a device that counts `from`, and leaves by one that counts `to`.
pub fn direction(ends: [&str; 2], from: Counts, to: Counts, queued: Queued) -> DirectionStats {
    let [a, b] = ends;
    let mut stats = DirectionStats::brief(a, b, &DirectionCounters::default());
    stats.in_frames = from.rx_frames;
    stats.in_bytes = from.rx_bytes;
    stats.out_frames = to.tx_frames;
    stats.out_bytes = to.tx_bytes;
    stats.drops.queue = queued.queue;
    stats.drops.loss = queued.lost;
    stats.drops.disconnected = to.tx_dropped;
    stats.queued = queued.waiting;
    stats.marked = queued.marked;
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n  \
            hp01: 1000 10 0 0 0 0 0 0 2000 20 0 3 0 0 0 0\n";
        let devices = parse_devices(text);
        assert_eq!(devices.len(), 2);
        let expected = Counts {
            rx_bytes: 1000,
            rx_frames: 10,
            tx_bytes: 2000,
            tx_frames: 20,
            tx_dropped: 3,
        };
        assert_eq!(devices["hp01"], expected);
    }

    #[test]
    fn drops_are_told_apart() {
        let text = br#"[{"kind":"netem","dev":"hp01","handle":"1:","drops":7,"qlen":5},
            {"kind":"tbf","dev":"hp01","drops":2,"qlen":1},
            {"kind":"fq_codel","dev":"hp01","drops":2,"qlen":1,"ecn_mark":4},
            {"kind":"noqueue","dev":"hp02"}]"#;
        let qdiscs = parse_qdiscs(text);
        let expected = Queued {
            lost: 5,
            queue: 2,
            waiting: 1,
            marked: 4,
        };
        assert_eq!(qdiscs["hp01"], expected);
        assert_eq!(qdiscs["hp02"], Queued::default());
    }
}
