//! From a topology to what each shard has to do.
//!
//! Everything that can exchange frames without passing through a machine is one group; a group stays on one shard, so
//! shards share nothing on the packet path.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use topology::model::{
    Completion, Direction, Endpoint, External, Interface, NodeKind, Patch, Topology,
};

use crate::counters::{BridgeCounters, DirectionCounters, PortCounters, ShardCounters};
use crate::guard::Guard;
use crate::l2::Bridge;
use crate::link::{DirectionStreams, Streams};

/// What is wrong with a topology that its own checks let through.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("link {link}: one end names a node or interface that does not exist")]
    NoSuchEnd { link: String },
    #[error("link {link}: {end} already has a link")]
    TwoLinks { link: String, end: String },
    #[error("node {node}: its port {port} has no link, although a later one has")]
    Gap { node: String, port: usize },
    #[error(
        "{} and {} would be connected, but different threads of the packet path serve them; run the switch with one thread (without --shards), or start it again", .ends[0], .ends[1]
    )]
    Apart { ends: [String; 2] },
}

/// A machine's interface: one vhost-user socket.
#[derive(Debug, Clone)]
pub struct PortPlan {
    /// `node.interface`.
    pub name: String,
    /// The shard that serves it.
    pub shard: usize,
    /// Its index there.
    pub index: usize,
    /// Offloads are offered.
    pub offloads: bool,
    /// What the shard counts.
    pub counters: Arc<PortCounters>,
}

impl PortPlan {
    /// Whether `other` is the plan of the same interface, in the same place.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.shard, self.index) == (other.shard, other.index)
    }
}

/// A port to the outside world.
#[derive(Debug, Clone)]
pub struct ExternalPlan {
    /// The node's name.
    pub name: String,
    /// Where it leads.
    pub external: External,
    /// The shard that serves it.
    pub shard: usize,
    /// Its index there.
    pub index: usize,
    /// What the shard counts.
    pub counters: Arc<PortCounters>,
}

/// A link, for those who read counters.
#[derive(Debug, Clone)]
pub struct LinkPlan {
    /// Its name.
    pub name: String,
    /// Its ends: `node.interface`, or the name of a switch or hub.
    pub ends: [String; 2],
    /// First the direction from the first end to the second.
    pub directions: [Arc<DirectionCounters>; 2],
    /// The shard that serves both.
    pub shard: usize,
    /// Their indices there.
    pub lanes: [usize; 2],
}

impl LinkPlan {
    /// Its directions, as `FROM > TO`.
    pub fn ways(&self) -> [String; 2] {
        let [a, b] = &self.ends;
        [format!("{a} > {b}"), format!("{b} > {a}")]
    }
}

/// A switch or hub, for those who read counters.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// `switch` or `hub`.
    pub kind: &'static str,
    /// The shard that serves it.
    pub shard: usize,
    /// Its index there.
    pub index: usize,
    /// For each port the other end of its link.
    pub ports: Vec<String>,
    /// What the shard counts.
    pub counters: Arc<BridgeCounters>,
}

/// What one shard does. Indices are within the shard.
#[derive(Debug, Default)]
pub struct ShardPlan {
    /// Interfaces of machines.
    pub ports: Vec<ShardPort>,
    /// External nodes.
    pub externals: Vec<ShardPort>,
    /// Directions of links.
    pub directions: Vec<DirectionPlan>,
    /// Switches and hubs.
    pub bridges: Vec<BridgePlan>,
    /// Changes of links, in the order of time.
    pub schedule: Vec<TimedChange>,
    /// What it counts of itself.
    pub counters: Arc<ShardCounters>,
}

/// An interface or external node, as its shard sees it.
#[derive(Debug)]
pub struct ShardPort {
    /// The direction that leads away from it, if it has a link.
    pub egress: Option<usize>,
    /// What it may send.
    pub guard: Guard,
    /// What is counted.
    pub counters: Arc<PortCounters>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct DirectionPlan {
    /// How it is shaped.
    pub attributes: Direction,
    /// Its own streams of draws.
    pub streams: DirectionStreams,
    /// Where it leads.
    pub sink: Sink,
    /// The port that feeds it, if that port's descriptors are completed at the end of transmission.
    pub held_port: Option<usize>,
    /// The bridge that feeds it.
    pub bridge: Option<usize>,
    /// What is counted.
    pub counters: Arc<DirectionCounters>,
}

/// New attributes for a link, to be set in one moment.
#[derive(Debug, Clone)]
pub struct LinkChange {
    /// The indices of its directions.
    pub lanes: [usize; 2],
    /// For each what is to be set.
    pub set: [Patch; 2],
}

/// A change that is planned.
#[derive(Debug, Clone)]
pub struct TimedChange {
    /// Since the start of the switch.
    pub at: Duration,
    /// What.
    pub change: LinkChange,
}

/// Where a direction leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// To a machine.
    Port(usize),
    /// Out of the lab.
    External(usize),
    /// To a layer-2 node.
    Bridge {
        /// Which.
        bridge: usize,
        /// By which of its ports.
        port: usize,
    },
}

/// A switch or hub.
#[derive(Debug)]
pub struct BridgePlan {
    /// How it behaves.
    pub bridge: Bridge,
    /// For each of its ports the direction that leads away.
    pub egress: Vec<usize>,
    /// What is counted.
    pub counters: Arc<BridgeCounters>,
}

/// The whole switch.
#[derive(Debug)]
pub struct Plan {
    /// The lab's name.
    pub name: String,
    /// In the order of the topology.
    pub ports: Vec<PortPlan>,
    /// In the order of the topology.
    pub externals: Vec<ExternalPlan>,
    /// In the order of the topology.
    pub links: Vec<LinkPlan>,
    /// In the order of the topology.
    pub nodes: Vec<NodePlan>,
    /// What the shards do.
    pub shards: Vec<ShardPlan>,
}

/// Something frames start from or end at: an interface of a machine, a way out of the lab, or a layer-2 node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Vertex {
    Interface(usize, usize),
    /// An interface of a container.
    Tap(usize, usize),
    External(usize),
    Bridge(usize),
}

impl Plan {
    /// Plans `topology` for `shards` threads, of which there is at least one.
    pub fn new(topology: &Topology, shards: usize) -> Result<Self, ConfigError> {
        let mut streams = Streams::new(topology.seed);
        Self::lay_out(topology, shards, |_| None, |_| streams.next_direction())
    }

    /// The same, where the shard of an interface (`node.interface`) or node may be given; `streams` has those of each link's directions, which
    /// it is asked for in order.
    pub(crate) fn lay_out(
        topology: &Topology,
        shards: usize,
        given: impl Fn(&str) -> Option<usize>,
        mut streams: impl FnMut(usize) -> DirectionStreams,
    ) -> Result<Self, ConfigError> {
        let vertices = vertices(topology);
        let index: HashMap<Vertex, usize> =
            vertices.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let find = |link: &str, end: Endpoint| {
            let interface = Vertex::Interface(end.node, end.port);
            let found = index
                .get(&interface)
                .or_else(|| index.get(&Vertex::Tap(end.node, end.port)))
                .or_else(|| index.get(&Vertex::Bridge(end.node)))
                .or_else(|| index.get(&Vertex::External(end.node)));
            found.copied().ok_or_else(|| ConfigError::NoSuchEnd {
                link: link.to_owned(),
            })
        };
        let mut ends = Vec::with_capacity(topology.links.len());
        for link in &topology.links {
            ends.push([
                find(&link.name, link.ends[0])?,
                find(&link.name, link.ends[1])?,
            ]);
        }
        let names = vertices.iter().map(|v| end_name(topology, *v));
        let names: Vec<String> = names.collect();
        let given: Vec<_> = names.iter().map(|name| given(name)).collect();
        let apart = |ends: [usize; 2]| ConfigError::Apart {
            ends: ends.map(|vertex| names[vertex].clone()),
        };
        let shard_of = assign(&given, &ends, shards.max(1)).map_err(apart)?;

        let mut plan = Self {
            name: topology.name.clone(),
            ports: Vec::new(),
            externals: Vec::new(),
            links: Vec::new(),
            nodes: Vec::new(),
            shards: std::iter::repeat_with(ShardPlan::default)
                .take(shards.max(1))
                .collect(),
        };
        let local: Vec<usize> = vertices
            .iter()
            .zip(&shard_of)
            .map(|(v, shard)| plan.add_vertex(topology, *v, *shard))
            .collect();
        let mut bridge_ports: Vec<Vec<Option<usize>>> = vec![Vec::new(); vertices.len()];
        let mut bridge_names: HashMap<usize, Vec<String>> = HashMap::new();
        for (number, (link, ends)) in topology.links.iter().zip(&ends).enumerate() {
            let counters: [Arc<DirectionCounters>; 2] = Default::default();
            let mut lanes = [0; 2];
            for (way, counters) in counters.iter().enumerate() {
                let (from, to) = (ends[way], ends[1 - way]);
                let shard = &mut plan.shards[shard_of[from]];
                let lane = shard.directions.len();
                lanes[way] = lane;
                let sink = match vertices[to] {
                    Vertex::Interface(..) => Sink::Port(local[to]),
                    Vertex::External(_) | Vertex::Tap(..) => Sink::External(local[to]),
                    Vertex::Bridge(_) => Sink::Bridge {
                        bridge: local[to],
                        port: link.ends[1 - way].port,
                    },
                };
                let machine = matches!(vertices[from], Vertex::Interface(..));
                let bridge = matches!(vertices[from], Vertex::Bridge(_));
                let attributes = link.directions[way].clone();
                shard.directions.push(DirectionPlan {
                    streams: streams(number),
                    attributes,
                    sink,
                    held_port: (machine && link.completion == Completion::Nic)
                        .then_some(local[from]),
                    bridge: bridge.then_some(local[from]),
                    counters: Arc::clone(counters),
                });
                let slot = match vertices[from] {
                    Vertex::Interface(..) => &mut shard.ports[local[from]].egress,
                    Vertex::External(_) | Vertex::Tap(..) => {
                        &mut shard.externals[local[from]].egress
                    }
                    Vertex::Bridge(_) => {
                        let port = link.ends[way].port;
                        let ports = &mut bridge_ports[from];
                        ports.resize(ports.len().max(port + 1), None);
                        &mut ports[port]
                    }
                };
                if slot.replace(lane).is_some() {
                    let end = end_name(topology, vertices[from]);
                    return Err(ConfigError::TwoLinks {
                        link: link.name.clone(),
                        end,
                    });
                }
            }
            for way in [0, 1] {
                if let Vertex::Bridge(node) = vertices[ends[way]] {
                    let other = end_name(topology, vertices[ends[1 - way]]);
                    bridge_names.entry(node).or_default().push(other);
                }
            }
            plan.links.push(LinkPlan {
                name: link.name.clone(),
                ends: ends.map(|e| end_name(topology, vertices[e])),
                directions: counters,
                shard: shard_of[ends[0]],
                lanes,
            });
            let schedule = &mut plan.shards[shard_of[ends[0]]].schedule;
            schedule.extend(link.schedule.iter().map(|change| TimedChange {
                at: change.at,
                change: LinkChange {
                    lanes,
                    set: change.set.clone(),
                },
            }));
        }
        for shard in &mut plan.shards {
            shard.schedule.sort_by_key(|change| change.at);
        }
        for (vertex, ports) in bridge_ports.into_iter().enumerate() {
            let Vertex::Bridge(node) = vertices[vertex] else {
                continue;
            };
            let gap = |port| ConfigError::Gap {
                node: topology.nodes[node].name.clone(),
                port,
            };
            let egress: Result<_, _> = ports
                .iter()
                .enumerate()
                .map(|(p, lane)| lane.ok_or_else(|| gap(p)))
                .collect();
            let egress = egress?;
            let shard = shard_of[vertex];
            plan.shards[shard].bridges[local[vertex]].egress = egress;
        }
        for node in &mut plan.nodes {
            let index = topology.nodes.iter().position(|n| n.name == node.name);
            node.ports = index
                .and_then(|index| bridge_names.remove(&index))
                .unwrap_or_default();
        }
        Ok(plan)
    }

    /// Adds a vertex to a shard; its index there.
    fn add_vertex(&mut self, topology: &Topology, vertex: Vertex, shard: usize) -> usize {
        let plan = &mut self.shards[shard];
        match vertex {
            Vertex::Interface(node, interface) => {
                let offloads = match &topology.nodes[node].kind {
                    NodeKind::Machine(machine) => machine.interfaces[interface].offloads,
                    NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => false,
                };
                let index = plan.ports.len();
                let counters = Arc::<PortCounters>::default();
                plan.ports.push(ShardPort {
                    egress: None,
                    guard: guard(topology, vertex),
                    counters: Arc::clone(&counters),
                });
                self.ports.push(PortPlan {
                    name: end_name(topology, vertex),
                    shard,
                    index,
                    offloads,
                    counters,
                });
                index
            }
            Vertex::External(_) | Vertex::Tap(..) => {
                let index = plan.externals.len();
                let counters = Arc::<PortCounters>::default();
                plan.externals.push(ShardPort {
                    egress: None,
                    guard: guard(topology, vertex),
                    counters: Arc::clone(&counters),
                });
                self.externals
                    .extend(external(topology, vertex).map(|external| ExternalPlan {
                        name: end_name(topology, vertex),
                        external,
                        shard,
                        index,
                        counters,
                    }));
                index
            }
            Vertex::Bridge(node) => {
                let index = plan.bridges.len();
                let counters = Arc::<BridgeCounters>::default();
                let (kind, bridge) = match &topology.nodes[node].kind {
                    NodeKind::Switch(attributes) => ("switch", Bridge::switch(attributes)),
                    _ => ("hub", Bridge::Hub),
                };
                plan.bridges.push(BridgePlan {
                    bridge,
                    egress: Vec::new(),
                    counters: Arc::clone(&counters),
                });
                self.nodes.push(NodePlan {
                    name: topology.nodes[node].name.clone(),
                    kind,
                    shard,
                    index,
                    ports: Vec::new(),
                    counters,
                });
                index
            }
        }
    }
}

/// What a vertex may send.
fn guard(topology: &Topology, vertex: Vertex) -> Guard {
    match vertex {
        Vertex::Interface(node, interface) | Vertex::Tap(node, interface) => {
            match &topology.nodes[node].kind {
                NodeKind::Machine(machine) => Guard::of(&machine.interfaces[interface]),
                NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => Guard::default(),
            }
        }
        Vertex::External(_) | Vertex::Bridge(_) => Guard::default(),
    }
}

fn vertices(topology: &Topology) -> Vec<Vertex> {
    let of_node = |(n, node): (usize, &topology::model::Node)| match &node.kind {
        NodeKind::Machine(m) => {
            let interfaces = m.interfaces.iter().enumerate();
            let vertex = |(i, interface): (usize, &Interface)| match interface.device {
                None => Vertex::Interface(n, i),
                Some(_) => Vertex::Tap(n, i),
            };
            interfaces.map(vertex).collect()
        }
        NodeKind::Switch(_) | NodeKind::Hub => vec![Vertex::Bridge(n)],
        NodeKind::External(_) => vec![Vertex::External(n)],
    };
    topology
        .nodes
        .iter()
        .enumerate()
        .flat_map(of_node)
        .collect()
}

/// Where a vertex leads out of the lab, or into a container.
fn external(topology: &Topology, vertex: Vertex) -> Option<External> {
    match (vertex, &topology.nodes) {
        (Vertex::External(node), nodes) => match &nodes[node].kind {
            NodeKind::External(external) => Some(external.clone()),
            _ => None,
        },
        (Vertex::Tap(node, interface), nodes) => {
            let interface = nodes[node].machine()?.interfaces.get(interface)?;
            Some(External::Tap {
                name: interface.device.clone()?.name,
                mtu: interface.mtu,
            })
        }
        _ => None,
    }
}

fn end_name(topology: &Topology, vertex: Vertex) -> String {
    match vertex {
        Vertex::Bridge(n) | Vertex::External(n) => topology.nodes[n].name.clone(),
        Vertex::Interface(n, i) | Vertex::Tap(n, i) => {
            let node = &topology.nodes[n];
            match &node.kind {
                NodeKind::Machine(m) => format!("{}.{}", node.name, m.interfaces[i].name),
                _ => node.name.clone(),
            }
        }
    }
}

/// Who stands for the group of `v`.
fn root(parent: &mut [usize], mut v: usize) -> usize {
    while parent[v] != v {
        parent[v] = parent[parent[v]];
        v = parent[v];
    }
    v
}

/// The shard of each vertex, which may be given: connected ones share one; the largest groups are placed first, each where the fewest
/// vertices are. Fails with two that are connected and were given different ones.
fn assign(
    given: &[Option<usize>],
    links: &[[usize; 2]],
    shards: usize,
) -> Result<Vec<usize>, [usize; 2]> {
    let vertices = given.len();
    let mut parent: Vec<usize> = (0..vertices).collect();
    for [a, b] in links {
        let (a, b) = (root(&mut parent, *a), root(&mut parent, *b));
        parent[a.max(b)] = a.min(b);
    }
    let mut groups: HashMap<usize, Vec<usize>> = HashMap::new();
    for v in 0..vertices {
        groups.entry(root(&mut parent, v)).or_default().push(v);
    }
    let mut load = vec![0; shards];
    let mut shard_of = vec![0; vertices];
    let mut place = |group: &[usize], shard: Option<usize>| {
        let least = (0..shards).min_by_key(|s| load[*s]);
        let shard = shard.or(least).unwrap_or(0);
        load[shard] += group.len();
        for v in group {
            shard_of[*v] = shard;
        }
    };
    let mut free = Vec::new();
    for group in groups.into_values() {
        let mut with = group.iter().filter_map(|v| Some((*v, given[*v]?)));
        let Some((first, shard)) = with.next() else {
            free.push(group);
            continue;
        };
        if let Some((other, _)) = with.find(|(_, another)| *another != shard) {
            return Err([first, other]);
        }
        place(&group, Some(shard));
    }
    free.sort_by_key(|g| (std::cmp::Reverse(g.len()), g[0]));
    for group in free {
        place(&group, None);
    }
    Ok(shard_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_together_and_spread_over_shards() {
        let free = |n: usize| vec![None; n];
        // 0-1-2 and 3-4 and 5.
        let links = [[0, 1], [2, 1], [4, 3]];
        let shards = assign(&free(6), &links, 2);
        assert_eq!(shards, Ok(vec![0, 0, 0, 1, 1, 1]));
        assert_eq!(assign(&free(3), &[], 8), Ok(vec![0, 1, 2]));
        let mut given = free(6);
        given[1] = Some(1);
        assert_eq!(assign(&given, &links, 2), Ok(vec![1, 1, 1, 0, 0, 0]));
        given[2] = Some(0);
        assert_eq!(assign(&given, &links, 2), Err([1, 2]));
    }
}
