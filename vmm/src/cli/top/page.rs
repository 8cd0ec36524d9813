//! What is shown: two looks at a lab made into rates, sorted.

use std::cmp::Reverse;

use clap::ValueEnum;
use serde::Serialize;

use super::Sample;
use crate::api::types::{Kind, Link, LinkDirection, Node, NodeState, NodeUsage, ProcessUsage};
use crate::cli::link::words;
use crate::cli::ls::{kind, phase, state};
use crate::lab::record::wire_bits;
use crate::units::{bits_per_second, bytes, nanoseconds};

/// Headings of the nodes.
pub const NODES: [&str; 8] = [
    "NODE", "KIND", "STATE", "CPU", "WAITS", "MEMORY", "RECEIVES", "SENDS",
];
/// Headings of the links.
pub const LINKS: [&str; 9] = [
    "FROM", "TO", "RATE", "FRAMES/s", "DROPS/s", "DROPS", "QUEUED", "LATE p99", "SET TO",
];

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The order of the file
    File,
    /// Processor time
    Cpu,
    /// Memory
    Memory,
    /// What nodes and links carry
    Traffic,
    /// Drops of links
    Drops,
    /// Lateness of links
    Lateness,
}

/// A page.
#[derive(Debug, Clone, Serialize)]
pub struct Page {
    lab: String,
    phase: &'static str,
    /// Milliseconds since launch.
    at_ms: u64,
    /// Share of this machine's processors that is busy, 0 to 1.
    pub host_cpu: f64,
    processors: u32,
    memory: u64,
    memory_available: u64,
    /// Processors' worth of the virtual switch; 1 is one processor.
    switch_cpu: f64,
    switch_memory: u64,
    pub nodes: Vec<NodeLine>,
    pub links: Vec<LinkLine>,
}

/// A node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeLine {
    name: String,
    kind: Kind,
    /// How far it is.
    pub state: NodeState,
    /// Processors' worth; 1 is one processor.
    pub cpu: Option<f64>,
    /// The same, of the time in which it had work and no processor.
    pub waits: Option<f64>,
    /// Bytes that are resident.
    memory: Option<u64>,
    /// Bit/s that arrive, on the wire.
    receives: u64,
    /// Bit/s that it sends.
    sends: u64,
}

/// One direction of a link.
#[derive(Debug, Clone, Serialize)]
pub struct LinkLine {
    from: String,
    to: String,
    /// Bit/s on the wire that come out.
    rate: u64,
    frames_per_second: u64,
    /// Drops in a second.
    pub drops_per_second: u64,
    drops: u64,
    queued: u64,
    late_p99_ns: Option<u64>,
    set_to: String,
    /// It has a carrier.
    pub up: bool,
}

impl Page {
    /// What `now` shows, and by how much it differs from `before`.
    pub fn of(before: Option<&Sample>, now: &Sample, sort: Sort) -> Self {
        let ms = before.map_or(0, |before| {
            now.usage.at_ms.saturating_sub(before.usage.at_ms)
        });
        let switch = cpu(
            before.and_then(|before| before.usage.switch),
            now.usage.switch,
            ms,
        );
        let (host, was) = (
            now.usage.host,
            before.map(|before| before.usage.host).unwrap_or_default(),
        );
        let busy = host.busy_ms.saturating_sub(was.busy_ms);
        let idle = host.idle_ms.saturating_sub(was.idle_ms);
        let mut page = Self {
            lab: now.lab.name.clone(),
            phase: phase(now.lab.phase),
            at_ms: now.usage.at_ms,
            host_cpu: busy as f64 / (busy + idle).max(1) as f64,
            processors: host.processors,
            memory: host.memory,
            memory_available: host.memory_available,
            switch_cpu: switch.map_or(0.0, |(cpu, _)| cpu),
            switch_memory: now.usage.switch.map_or(0, |switch| switch.memory),
            nodes: Vec::new(),
            links: now
                .links
                .iter()
                .flat_map(|link| link_lines(before, link, ms))
                .collect(),
        };
        page.nodes = now
            .lab
            .nodes
            .iter()
            .map(|node| page.node_line(before, now, node, ms))
            .collect();
        page.sort(sort);
        page
    }

    fn node_line(&self, before: Option<&Sample>, now: &Sample, node: &Node, ms: u64) -> NodeLine {
        let of = |nodes: &[NodeUsage]| nodes.iter().find(|usage| usage.name == node.name)?.process;
        let usage = of(&now.usage.nodes);
        let rates = cpu(before.and_then(|before| of(&before.usage.nodes)), usage, ms);
        let at = |end: &str| {
            end == node.name
                || end
                    .split_once(':')
                    .is_some_and(|(name, _)| name == node.name)
        };
        NodeLine {
            name: node.name.clone(),
            kind: node.kind,
            state: node.state,
            cpu: rates.map(|(cpu, _)| cpu),
            waits: rates.and_then(|(_, waits)| waits),
            memory: usage.map(|usage| usage.memory),
            receives: self
                .links
                .iter()
                .filter(|link| at(&link.to))
                .map(|link| link.rate)
                .sum(),
            // What it sends is counted where it comes out: what a link drops was of no use.
            sends: self
                .links
                .iter()
                .filter(|link| at(&link.from))
                .map(|link| link.rate)
                .sum(),
        }
    }

    fn sort(&mut self, sort: Sort) {
        let thousandths = |value: Option<f64>| value.map_or(0, |value| (value * 1000.0) as u64);
        match sort {
            Sort::File => {}
            Sort::Cpu => self
                .nodes
                .sort_by_key(|node| Reverse(thousandths(node.cpu))),
            Sort::Memory => self.nodes.sort_by_key(|node| Reverse(node.memory)),
            Sort::Traffic => {
                self.nodes
                    .sort_by_key(|node| Reverse(node.receives + node.sends));
                self.links.sort_by_key(|link| Reverse(link.rate));
            }
            Sort::Drops => self
                .links
                .sort_by_key(|link| Reverse((link.drops_per_second, link.drops))),
            Sort::Lateness => self.links.sort_by_key(|link| Reverse(link.late_p99_ns)),
        }
    }

    /// The lines above the tables.
    pub fn head(&self) -> [String; 2] {
        let ready = self
            .nodes
            .iter()
            .filter(|node| node.state == NodeState::Ready)
            .count();
        [
            format!(
                "lab {}, {} for {}, {ready} of {} nodes ready",
                self.lab,
                self.phase,
                nanoseconds(self.at_ms.saturating_mul(1_000_000)),
                self.nodes.len()
            ),
            format!(
                "machine: {} of {} processors busy, {} of {} memory free; switch: {} cpu, {}",
                percent(self.host_cpu),
                self.processors,
                bytes(self.memory_available),
                bytes(self.memory),
                percent(self.switch_cpu),
                bytes(self.switch_memory)
            ),
        ]
    }

    /// The nodes as they are shown.
    pub fn node_rows(&self) -> Vec<Vec<String>> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let rows = self.nodes.iter().map(|node| {
            vec![
                node.name.clone(),
                kind(node.kind).to_owned(),
                state(node.state).to_owned(),
                or_none(node.cpu.map(percent)),
                or_none(node.waits.map(percent)),
                or_none(node.memory.map(bytes)),
                bits_per_second(node.receives),
                bits_per_second(node.sends),
            ]
        });
        rows.collect()
    }

    /// The links as they are shown.
    pub fn link_rows(&self) -> Vec<Vec<String>> {
        let rows = self.links.iter().map(|link| {
            vec![
                link.from.clone(),
                link.to.clone(),
                bits_per_second(link.rate),
                link.frames_per_second.to_string(),
                link.drops_per_second.to_string(),
                link.drops.to_string(),
                link.queued.to_string(),
                link.late_p99_ns.map_or("-".to_owned(), nanoseconds),
                link.set_to.clone(),
            ]
        });
        rows.collect()
    }
}

/// As `top` has it: whole percents of one processor.
fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Processors' worth that a process took and that it waited for; of another process than before nothing is known yet.
fn cpu(
    before: Option<ProcessUsage>,
    now: Option<ProcessUsage>,
    ms: u64,
) -> Option<(f64, Option<f64>)> {
    let now = now?;
    let before = before.filter(|before| before.pid == now.pid && ms > 0)?;
    let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / ms as f64;
    // Threads that have ended are no longer counted among those that wait.
    let waits = now
        .waited_ms
        .zip(before.waited_ms)
        .map(|(now, before)| share(now, before));
    Some((share(now.cpu_ms, before.cpu_ms), waits))
}

fn link_lines(before: Option<&Sample>, link: &Link, ms: u64) -> [LinkLine; 2] {
    let was = before.and_then(|before| before.links.iter().find(|was| was.name == link.name));
    [
        link_line(was.map(|was| &was.forward), &link.forward, ms),
        link_line(was.map(|was| &was.backward), &link.backward, ms),
    ]
}

fn link_line(was: Option<&LinkDirection>, now: &LinkDirection, ms: u64) -> LinkLine {
    let per_second = |value: fn(&LinkDirection) -> u64| {
        let more = was.map_or(0, |was| value(now).saturating_sub(value(was)));
        more.saturating_mul(1000)
            .checked_div(ms)
            .unwrap_or_default()
    };
    let drops: fn(&LinkDirection) -> u64 = |direction| direction.counters.drops.values().sum();
    let frames = per_second(|direction| direction.counters.out_frames);
    let lateness = &now.counters.lateness;
    LinkLine {
        from: now.from.clone(),
        to: now.to.clone(),
        rate: wire_bits(
            &now.attributes,
            frames,
            per_second(|direction| direction.counters.out_bytes),
        ),
        frames_per_second: frames,
        drops_per_second: per_second(drops),
        drops: drops(now),
        queued: now.counters.queued,
        late_p99_ns: (lateness.count > 0).then_some(lateness.p99),
        set_to: words(&now.attributes),
        up: now.attributes.get("up").is_none_or(|up| up != false),
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// A lab of two nodes and a link, as it is after `ms`, when `frames` of 100 bytes have passed.
    pub fn sample(ms: u64, frames: u64) -> Sample {
        let node = |name: &str, kind: &str| json!({"name": name, "kind": kind, "state": "ready", "interfaces": [], "restarts": 0, "boot": {}});
        let direction = |from: &str, to: &str, frames: u64| {
            json!({"from": from, "to": to, "attributes": {"rate": "10Mbit"}, "counters": {
                "in_frames": frames, "in_bytes": frames * 100, "out_frames": frames, "out_bytes": frames * 100,
                "drops": {"queue": frames / 10, "loss": 0}, "duplicated": 0, "corrupted": 0, "marked": 0, "queued": 3,
                "queued_max": 9, "lateness": {"count": frames, "p50": 10, "p99": 20_000, "max": 30_000}}})
        };
        let process = |pid: u32, cpu: u64| json!({"pid": pid, "cpu_ms": cpu, "waited_ms": cpu / 10, "memory": 113 << 20, "threads": 4});
        let lab = json!({"name": "two", "file": "lab.json", "pid": 1, "engine": "qemu", "engine_reason": "asked for", "started": 1,
            "phase": "running", "isolation": {"level": "full", "missing": []}, "nodes": [node("a", "host"), node("r", "router"), node("lan", "switch")]});
        let usage = json!({"at_ms": ms, "switch": process(2, ms / 4),
            "host": {"processors": 2, "busy_ms": ms, "idle_ms": ms / 4, "memory": 8_u64 << 30, "memory_available": 2_u64 << 30},
            "nodes": [{"name": "a", "process": process(3, ms / 10)}, {"name": "r", "process": process(4, ms / 2)}]});
        let links = json!([{"name": "a:eth0--r:eth0", "forward": direction("a:eth0", "r:eth0", frames),
            "backward": direction("r:eth0", "a:eth0", 0)}]);
        Sample {
            lab: serde_json::from_value(lab).unwrap(),
            usage: serde_json::from_value(usage).unwrap(),
            links: serde_json::from_value(links).unwrap(),
        }
    }

    #[test]
    fn rates_are_between_two_looks() {
        let page = Page::of(Some(&sample(10_000, 0)), &sample(12_000, 2000), Sort::Cpu);
        let nodes = page.node_rows();
        assert_eq!(
            nodes[0],
            [
                "r",
                "router",
                "ready",
                "50 %",
                "5 %",
                "113 MiB",
                "992 kbit/s",
                "0 bit/s"
            ]
        );
        assert_eq!(nodes[1][..4], ["a", "host", "ready", "10 %"]);
        assert_eq!(
            nodes[2],
            [
                "lan", "switch", "ready", "-", "-", "-", "0 bit/s", "0 bit/s"
            ]
        );
        assert_eq!(
            page.link_rows()[0],
            [
                "a:eth0",
                "r:eth0",
                "992 kbit/s",
                "1000",
                "100",
                "200",
                "3",
                "20 µs",
                "rate=10Mbit"
            ]
        );
        assert_eq!(page.link_rows()[1][7], "-");
        assert!(page.head()[0].starts_with("lab two, running for 12 s, 3 of 3 nodes ready"));
        assert!(page.head()[1].starts_with(
            "machine: 80 % of 2 processors busy, 2 GiB of 8 GiB memory free; switch: 25 % cpu"
        ));
    }

    #[test]
    fn the_first_look_and_another_process_have_no_rates() {
        let now = sample(12_000, 2000);
        let page = Page::of(None, &now, Sort::File);
        assert_eq!(page.node_rows()[0][3], "-");
        assert_eq!(page.link_rows()[0][2], "0 bit/s");
        let mut before = sample(10_000, 0);
        before.usage.nodes[0].process.as_mut().unwrap().pid = 99;
        let page = Page::of(Some(&before), &now, Sort::File);
        assert_eq!((page.nodes[0].cpu, page.nodes[1].cpu), (None, Some(0.5)));
    }
}
