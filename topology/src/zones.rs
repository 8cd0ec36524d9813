//! Zones: groups of nodes whose frames no process handles together with those of another.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use crate::model::{Endpoint, Fabric, Link, Node, NodeKind, Topology};

/// The zone of nodes that are in no other.
pub const COMMON: &str = "";

/// Which node is in which zone: the one its topology says, or that of a node it has links to, however far. Zones that links join are one,
/// of the name that comes first; nodes without any are together in [`COMMON`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// By node.
    of: Vec<String>,
}

impl Zones {
    /// Those of `topology`.
    pub fn of(topology: &Topology) -> Self {
        if topology.fabric == Fabric::Kernel {
            // Which refuses zones.
            return Self {
                of: vec![COMMON.to_owned(); topology.nodes.len()],
            };
        }
        let mut groups = Groups::new(topology.nodes.len());
        for link in &topology.links {
            groups.join(link.ends[0].node, link.ends[1].node);
        }
        let mut first = BTreeMap::new();
        for (index, node) in topology.nodes.iter().enumerate() {
            if let Some(zone) = written(node) {
                groups.join(*first.entry(zone).or_insert(index), index);
            }
        }
        // In the order of names, so the first one counts.
        let mut names = BTreeMap::new();
        for (zone, index) in first {
            names.entry(groups.root(index)).or_insert(zone);
        }
        let name = |node| names.get(&groups.root(node)).copied().unwrap_or(COMMON);
        Self {
            of: (0..topology.nodes.len())
                .map(|node| name(node).to_owned())
                .collect(),
        }
    }

    /// The zone of the node of that index.
    pub fn zone(&self, node: usize) -> &str {
        self.of.get(node).map_or(COMMON, String::as_str)
    }

    /// All zones that have nodes, in the order of their names; [`COMMON`] if there are no nodes.
    pub fn names(&self) -> Vec<String> {
        let names: BTreeSet<_> = self.of.iter().cloned().collect();
        if names.is_empty() {
            return vec![COMMON.to_owned()];
        }
        names.into_iter().collect()
    }
}

fn written(node: &Node) -> Option<&str> {
    node.machine()?.zone.as_deref()
}

impl Topology {
    /// What of it lies in `zone`, as far as frames are concerned: nodes and links, without what happens to nodes. Draws are others in each
    /// zone.
    #[must_use]
    pub fn part(&self, zone: &str) -> Self {
        let zones = Zones::of(self);
        let inside = |node: usize| zones.zone(node) == zone;
        let mut places = vec![None; self.nodes.len()];
        let mut nodes = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if inside(index) {
                places[index] = Some(nodes.len());
                nodes.push(alone(node));
            }
        }
        let end = |end: Endpoint| {
            Some(Endpoint {
                node: places[end.node]?,
                ..end
            })
        };
        let links = self.links.iter().filter_map(|link| {
            Some(Link {
                ends: [end(link.ends[0])?, end(link.ends[1])?],
                ..link.clone()
            })
        });
        Self {
            seed: self.seed ^ hash(zone),
            links: links.collect(),
            nodes,
            node_faults: Vec::new(),
            checks: Vec::new(),
            ..self.clone()
        }
    }
}

/// A node that waits for no other.
fn alone(node: &Node) -> Node {
    let mut node = node.clone();
    if let NodeKind::Machine(machine) = &mut node.kind {
        machine.after.clear();
    }
    node
}

/// The same on every machine; of [`COMMON`] 0, so that its draws are those of a topology without zones.
fn hash(zone: &str) -> u64 {
    let mut hasher = fnv::FnvHasher::with_key(0);
    hasher.write(zone.as_bytes());
    hasher.finish()
}

/// Disjoint sets.
struct Groups(Vec<usize>);

impl Groups {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn root(&self, mut node: usize) -> usize {
        while self.0[node] != node {
            node = self.0[node];
        }
        node
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn topology(links: &str) -> Topology {
        let text = format!(
            r#"{{"name": "lab", "seed": 5, "nodes": {{"a": {{"kind": "host", "zone": "red"}}, "b": {{"kind": "host"}}, "c": {{"kind": "host", "zone": "blue", "after": ["a"]}},
                "d": {{"kind": "host", "zone": "red"}}, "e": {{"kind": "host"}}, "s": {{"kind": "switch"}}}}, "links": [{links}]}}"#
        );
        let loaded = Topology::parse(&text, Path::new("lab.json"));
        loaded.unwrap_or_else(|report| panic!("{report}")).topology
    }

    fn zones(topology: &Topology) -> String {
        let zones = Zones::of(topology);
        let all = topology.nodes.iter().enumerate();
        let words: Vec<_> = all
            .map(|(index, node)| format!("{}={}", node.name, zones.zone(index)))
            .collect();
        words.join(" ")
    }

    #[test]
    fn links_spread_and_join_zones() {
        assert_eq!(zones(&topology("")), "a=red b= c=blue d=red e= s=");
        let spread = topology(r#"{"endpoints": ["a:x", "s"]}, {"endpoints": ["s", "b:x"]}"#);
        assert_eq!(zones(&spread), "a=red b=red c=blue d=red e= s=red");
        let joined = topology(r#"{"endpoints": ["d:x", "c:x"]}"#);
        assert_eq!(zones(&joined), "a=blue b= c=blue d=blue e= s=");
        assert_eq!(Zones::of(&joined).names(), ["", "blue"]);
    }

    #[test]
    fn a_part_has_its_nodes_and_links() {
        let whole = topology(
            r#"{"endpoints": ["a:x", "d:x"], "delay": "1ms"}, {"endpoints": ["c:x", "s"]}, {"endpoints": ["b:x", "e:x"]}"#,
        );
        let names = |part: &Topology| {
            let nodes: Vec<_> = part.nodes.iter().map(|n| n.name.as_str()).collect();
            let links: Vec<_> = part.links.iter().map(|l| l.name.as_str()).collect();
            format!("{} {}", nodes.join(","), links.join(","))
        };
        let [common, blue, red, none] = ["", "blue", "red", "green"].map(|zone| whole.part(zone));
        assert_eq!(names(&common), "b,e b:x--e:x");
        assert_eq!(names(&blue), "c,s c:x--s:0");
        assert_eq!(names(&red), "a,d a:x--d:x");
        assert_eq!(names(&none), " ");
        assert_eq!(
            red.links[0].ends.map(|end| (end.node, end.port)),
            [(0, 0), (1, 0)]
        );
        assert_eq!(red.links[0].directions, whole.links[0].directions);
        assert_eq!(common.seed, 5);
        assert_ne!(red.seed, blue.seed);
    }
}
