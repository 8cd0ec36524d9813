//! Broadcast domains: what a frame to all reaches.

use crate::model::{Endpoint, NodeKind, Topology};

/// Interfaces and ports that see each other's broadcasts: one link, or several joined by switches and hubs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The interfaces of machines in it, in the order of the links.
    pub interfaces: Vec<Endpoint>,
    /// Indices into [`Topology::links`].
    pub links: Vec<usize>,
    /// The switches and hubs in it: indices into [`Topology::nodes`]. None: a point-to-point link.
    pub bridges: Vec<usize>,
}

impl Segment {
    /// Whether it is one link between two machines.
    pub fn is_point_to_point(&self) -> bool {
        self.bridges.is_empty()
    }

    /// Whether its links and bridges form a loop, in which a broadcast circles for ever.
    pub fn has_loop(&self) -> bool {
        let between = self.links.len() - self.interfaces.len().min(self.links.len());
        !self.bridges.is_empty() && between >= self.bridges.len()
    }
}

/// The broadcast domains of a topology, in the order of their first links.
pub fn segments(topology: &Topology) -> Vec<Segment> {
    let is_bridge = |end: &Endpoint| !matches!(topology.nodes[end.node].kind, NodeKind::Machine(_));
    let mut found: Vec<Segment> = Vec::new();
    for (index, link) in topology.links.iter().enumerate() {
        let mut segment = Segment {
            interfaces: Vec::new(),
            links: vec![index],
            bridges: Vec::new(),
        };
        for end in &link.ends {
            if !is_bridge(end) {
                segment.interfaces.push(*end);
            } else if !segment.bridges.contains(&end.node) {
                segment.bridges.push(end.node);
            }
        }
        // Whatever shares a bridge with the new link becomes one with it, at the place of the earliest.
        let mut merged: Option<usize> = None;
        let mut at = 0;
        while at < found.len() {
            if !found[at]
                .bridges
                .iter()
                .any(|bridge| segment.bridges.contains(bridge))
            {
                at += 1;
                continue;
            }
            match merged {
                None => {
                    merged = Some(at);
                    at += 1;
                }
                Some(first) => {
                    let other = found.remove(at);
                    absorb(&mut found[first], other);
                }
            }
        }
        match merged {
            Some(first) => absorb(&mut found[first], segment),
            None => found.push(segment),
        }
    }
    found
}

fn absorb(segment: &mut Segment, other: Segment) {
    segment.interfaces.extend(other.interfaces);
    segment.links.extend(other.links);
    for bridge in other.bridges {
        if !segment.bridges.contains(&bridge) {
            segment.bridges.push(bridge);
        }
    }
}
