//! Broadcast domains: what a frame to all reaches.

use std::collections::{HashMap, HashSet};

use crate::model::{Endpoint, NodeKind, PortVlan, SwitchNode, Topology};

/// Interfaces and ports that see each other's broadcasts: one link, or several joined by switches and hubs, of one VLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The interfaces of machines in it, in the order of the links.
    pub interfaces: Vec<Endpoint>,
    /// Indices into [`Topology::links`].
    pub links: Vec<usize>,
    /// The switches and hubs in it: indices into [`Topology::nodes`]. None: a point-to-point link.
    pub bridges: Vec<usize>,
    /// The external nodes in it: indices into [`Topology::nodes`].
    pub externals: Vec<usize>,
    looped: bool,
}

impl Segment {
    /// Whether it is one link between two machines.
    pub fn is_point_to_point(&self) -> bool {
        self.bridges.is_empty() && self.externals.is_empty()
    }

    /// Whether its links and bridges form a loop, in which a broadcast circles for ever.
    pub fn has_loop(&self) -> bool {
        self.looped
    }
}

/// Frames on a link: which, and the VLAN of their tag.
type Wire = (usize, Option<u16>);

/// The broadcast domains of a topology, in the order of their first links.
pub fn segments(topology: &Topology) -> Vec<Segment> {
    let mut finder = Finder::new(topology);
    let mut found = Vec::new();
    for link in 0..topology.links.len() {
        let mut tags = vec![None];
        for end in &topology.links[link].ends {
            tags.extend(finder.tags(*end).into_iter().map(Some));
        }
        for tag in tags {
            // Frames that nobody gets without a tag are of interest only if they circle.
            let concerns = |s: &Segment| {
                tag.is_none() || s.looped || !s.interfaces.is_empty() || !s.externals.is_empty()
            };
            found.extend(finder.segment((link, tag)).filter(concerns));
        }
    }
    found
}

struct Finder<'a> {
    topology: &'a Topology,
    /// By bridge: the links at its ports, with port numbers.
    ports: HashMap<usize, Vec<(usize, usize)>>,
    seen: HashSet<Wire>,
}

impl<'a> Finder<'a> {
    fn new(topology: &'a Topology) -> Self {
        let mut ports: HashMap<usize, Vec<(usize, usize)>> = HashMap::new();
        for (link, entry) in topology.links.iter().enumerate() {
            for end in &entry.ends {
                ports.entry(end.node).or_default().push((end.port, link));
            }
        }
        Self {
            topology,
            ports,
            seen: HashSet::new(),
        }
    }

    fn switch(&self, node: usize) -> Option<&'a SwitchNode> {
        match &self.topology.nodes[node].kind {
            NodeKind::Switch(switch) => Some(switch),
            _ => None,
        }
    }

    /// The VLANs that `end` tags and some access port or native VLAN of its switch has.
    fn tags(&self, end: Endpoint) -> Vec<u16> {
        let Some(switch) = self.switch(end.node) else {
            return Vec::new();
        };
        let vlan = |port: usize| switch.ports.get(port).and_then(|port| port.vlan.as_ref());
        let Some(own) = vlan(end.port) else {
            return Vec::new();
        };
        let used = switch.ports.iter().filter_map(|port| port.vlan.as_ref());
        let mut used: Vec<u16> = used
            .filter_map(PortVlan::untagged)
            .filter(|vlan| own.is_tagged(*vlan))
            .collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    /// Where frames of a wire go on at one of its ends: the VLAN there, and the wires.
    fn beyond(&self, end: Endpoint, tag: Option<u16>) -> Option<(u16, Vec<Wire>)> {
        let others = self.ports.get(&end.node)?.iter();
        let others = others.filter(|(port, _)| *port != end.port);
        let ports = self
            .switch(end.node)
            .map_or(&[][..], |switch| &switch.ports);
        let vlan = |port: usize| ports.get(port).and_then(|port| port.vlan.as_ref());
        let Some(own) = vlan(end.port) else {
            // One that does not look at tags keeps those of different tags apart as well: they stay as they are.
            return Some((
                tag.unwrap_or(0),
                others.map(|(_, link)| (*link, tag)).collect(),
            ));
        };
        let inside = match tag {
            None => own.untagged()?,
            Some(vlan) => Some(vlan).filter(|vlan| own.is_tagged(*vlan))?,
        };
        let leave = |(port, link): &(usize, usize)| {
            let port = vlan(*port)?;
            if port.untagged() == Some(inside) {
                return Some((*link, None));
            }
            port.is_tagged(inside).then_some((*link, Some(inside)))
        };
        Some((inside, others.filter_map(leave).collect()))
    }

    /// All that frames of a wire reach, if that was not found before.
    fn segment(&mut self, first: Wire) -> Option<Segment> {
        if !self.seen.insert(first) {
            return None;
        }
        let mut segment = Segment {
            interfaces: Vec::new(),
            links: Vec::new(),
            bridges: Vec::new(),
            externals: Vec::new(),
            looped: false,
        };
        let mut wires = vec![first];
        // Ends of wires at bridges, and bridges: without a loop, the wires and the bridges form a tree.
        let (mut joints, mut inside) = (0, HashSet::new());
        let mut next = 0;
        while let Some((link, tag)) = wires.get(next).copied() {
            next += 1;
            for end in self.topology.links[link].ends {
                match &self.topology.nodes[end.node].kind {
                    NodeKind::Machine(_) | NodeKind::External(_) => {}
                    NodeKind::Switch(_) | NodeKind::Hub => {
                        let Some((vlan, further)) = self.beyond(end, tag) else {
                            continue;
                        };
                        joints += 1;
                        inside.insert((end.node, vlan));
                        for wire in further {
                            if self.seen.insert(wire) {
                                wires.push(wire);
                            }
                        }
                    }
                }
            }
        }
        segment.looped = joints >= wires.len() + inside.len();
        wires.sort_unstable();
        for (link, tag) in wires {
            if segment.links.last() != Some(&link) {
                segment.links.push(link);
            }
            for end in self.topology.links[link].ends {
                match &self.topology.nodes[end.node].kind {
                    NodeKind::Machine(_) if tag.is_none() => segment.interfaces.push(end),
                    NodeKind::Machine(_) => {}
                    NodeKind::External(_) => segment.externals.push(end.node),
                    NodeKind::Switch(_) | NodeKind::Hub => {
                        if !segment.bridges.contains(&end.node) {
                            segment.bridges.push(end.node);
                        }
                    }
                }
            }
        }
        Some(segment)
    }
}
