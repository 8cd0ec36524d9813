//! What there is in a running switch, for those who look at it.

use std::sync::Arc;

use topology::model::Direction;

use crate::attributes::Attributes;
use crate::clock::Time;
use crate::config::{ExternalPlan, LinkPlan, NodePlan};
use crate::port::{Port, Status, features};
use crate::rewiring::Present;
use crate::stats::{ExternalStats, LinkStats, NodeStats, PortStats, ReadDirection};

/// Everything there is. It is replaced as a whole when that changes.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) ports: Vec<Arc<Port>>,
    pub(crate) externals: Vec<External>,
    /// In the order of the topology.
    pub(crate) links: Vec<Link>,
    pub(crate) nodes: Vec<Node>,
}

/// A way out of the lab.
#[derive(Debug, Clone)]
pub(crate) struct External {
    pub(crate) plan: ExternalPlan,
    pub(crate) status: Arc<Status>,
}

/// A link.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) plan: LinkPlan,
    pub(crate) attributes: Arc<Attributes>,
}

/// A switch or hub.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) plan: NodePlan,
    pub(crate) status: Arc<Status>,
}

/// An external node that has lost its device: its shard, and its index there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lost {
    pub(crate) shard: usize,
    pub(crate) index: usize,
}

impl External {
    pub(crate) fn new(plan: ExternalPlan) -> Self {
        let status = Arc::new(Status::new(plan.name.clone()));
        Self { plan, status }
    }
}

impl Node {
    pub(crate) fn new(plan: NodePlan) -> Self {
        let status = Arc::new(Status::new(plan.name.clone()));
        Self { plan, status }
    }
}

impl Inventory {
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.plan.name == name)
    }

    pub(crate) fn external(&self, Lost { shard, index }: Lost) -> Option<&External> {
        let is_it = |e: &&External| e.plan.shard == shard && e.plan.index == index;
        self.externals.iter().find(is_it)
    }

    /// The plans of everything.
    pub(crate) fn present(&self) -> Present {
        Present {
            ports: self.ports.iter().map(|port| port.plan().clone()).collect(),
            externals: self.externals.iter().map(|e| e.plan.clone()).collect(),
            links: self.links.iter().map(|link| link.plan.clone()).collect(),
            nodes: self.nodes.iter().map(|node| node.plan.clone()).collect(),
        }
    }

    pub(crate) fn port_stats(&self) -> Vec<PortStats> {
        self.ports.iter().map(|port| port_stats(port)).collect()
    }

    pub(crate) fn external_stats(&self) -> Vec<ExternalStats> {
        let externals = self.externals.iter();
        externals
            .map(|e| external_stats(&e.plan, &e.status))
            .collect()
    }

    pub(crate) fn link_stats(&self, now: Time, direction: ReadDirection) -> Vec<LinkStats> {
        let links = self.links.iter();
        links
            .map(|link| link_stats(&link.plan, &link.attributes.at(now), direction))
            .collect()
    }

    pub(crate) fn node_stats(&self) -> Vec<NodeStats> {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| node_stats(&node.plan, &node.status))
            .collect()
    }
}

fn port_stats(port: &Port) -> PortStats {
    let status = port.status();
    let counters = &port.plan().counters;
    PortStats {
        name: port.plan().name.clone(),
        connected: status.connected,
        connections: status.connections,
        features: features::names(status.features.unwrap_or(0))
            .into_iter()
            .map(str::to_owned)
            .collect(),
        receiving: status.receiving,
        sending: status.sending,
        malformed: counters.malformed.get(),
        unlinked: counters.unlinked.get(),
        violations: counters.violations.get(),
        last_error: status.last_error,
    }
}

fn external_stats(plan: &ExternalPlan, status: &Status) -> ExternalStats {
    let status = status.read();
    ExternalStats {
        name: plan.name.clone(),
        leads_to: plan.external.to_string(),
        connected: status.connected,
        malformed: plan.counters.malformed.get(),
        unlinked: plan.counters.unlinked.get(),
        last_error: status.last_error,
    }
}

fn link_stats(link: &LinkPlan, attributes: &[Direction; 2], direction: ReadDirection) -> LinkStats {
    let [a, b] = &link.ends;
    let [there, back] = &link.directions;
    LinkStats {
        name: link.name.clone(),
        attributes: attributes.each_ref().map(Direction::written),
        directions: [direction(a, b, there), direction(b, a, back)],
    }
}

fn node_stats(node: &NodePlan, status: &Status) -> NodeStats {
    let c = &node.counters;
    NodeStats {
        name: node.name.clone(),
        kind: node.kind.to_owned(),
        frames: c.frames.get(),
        flooded: c.flooded.get(),
        filtered: c.filtered.get(),
        wrong_vlan: c.wrong_vlan.get(),
        storm: c.storm.get(),
        moved: c.moved.get(),
        looped: c.looped.get(),
        learnt: c.learnt.get(),
        last_error: status.read().last_error,
    }
}
