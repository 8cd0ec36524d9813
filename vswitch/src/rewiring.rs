//! From a topology and another one to what each shard has to change.
//!
//! What stays keeps its slot in its shard, and with it everything it has there. What is new gets the next slot; those of what is gone are
//! not used again, so that what still names one means nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use topology::difference::{Difference, LinkChange as LinkDifference};
use topology::model::{NodeKind, Patch, SwitchNode, Topology};

use crate::config::{
    BridgePlan, ConfigError, DirectionPlan, ExternalPlan, LinkChange, LinkPlan, NodePlan, Plan,
    PortPlan, ShardPlan, ShardPort, Sink, TimedChange,
};
use crate::guard::Guard;
use crate::link::Streams;

/// How many slots of a shard have been used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slots {
    /// Of ports.
    pub ports: usize,
    /// Of external nodes.
    pub externals: usize,
    /// Of directions.
    pub lanes: usize,
    /// Of layer-2 nodes.
    pub bridges: usize,
}

impl From<&ShardPlan> for Slots {
    fn from(plan: &ShardPlan) -> Self {
        Self {
            ports: plan.ports.len(),
            externals: plan.externals.len(),
            lanes: plan.directions.len(),
            bridges: plan.bridges.len(),
        }
    }
}

/// What there is.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// Interfaces of machines.
    pub ports: Vec<PortPlan>,
    /// External nodes.
    pub externals: Vec<ExternalPlan>,
    /// In the order of the topology.
    pub links: Vec<LinkPlan>,
    /// Switches and hubs.
    pub nodes: Vec<NodePlan>,
}

/// What one shard has to change. Slots are of the shard.
#[derive(Debug, Default)]
pub struct ShardRewiring {
    /// What is new; it gets the slots after those there are, in this order. Its schedule is that of all links, from now on.
    pub new: ShardPlan,
    /// Directions that are gone.
    pub gone_lanes: Vec<usize>,
    /// External nodes that are gone.
    pub gone_externals: Vec<usize>,
    /// Layer-2 nodes that are gone.
    pub gone_bridges: Vec<usize>,
    /// The direction that now leads away from a port, and what it may send; from one that is gone, none.
    pub ports: Vec<(usize, Option<usize>, Guard)>,
    /// The same of external nodes.
    pub externals: Vec<(usize, Option<usize>, Guard)>,
    /// Where a direction that stays leads now.
    pub lanes: Vec<(usize, Sink)>,
    /// Layer-2 nodes that stay.
    pub bridges: Vec<(usize, BridgeRewiring)>,
    /// Attributes of links that stay.
    pub set: Vec<LinkChange>,
}

/// What changes about a layer-2 node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeRewiring {
    /// Its attributes, if it is a switch.
    pub attributes: Option<SwitchNode>,
    /// For each port it had, which it is now; those beyond the end are gone.
    pub moved: Vec<Option<usize>>,
    /// For each port it has now, the direction that leads away.
    pub egress: Vec<usize>,
}

/// What the whole switch has to change.
#[derive(Debug)]
pub struct Rewiring {
    /// What there will be.
    pub present: Present,
    /// For each link there will be, which it was.
    pub kept_links: Vec<Option<usize>>,
    /// For links that stay, by their new index: the attributes that are different.
    pub set: HashMap<usize, [Patch; 2]>,
    /// What the shards have to change.
    pub shards: Vec<ShardRewiring>,
    /// Slots used afterwards.
    pub slots: Vec<Slots>,
}

impl Rewiring {
    /// What makes of a switch that runs `old`, and of that has what is in `before`, one that runs `new`. New links draw from the next of `streams`, and are what
    /// their schedules have made of them by now, `elapsed` after the start.
    pub fn new(
        old: &Topology,
        before: &Present,
        new: &Topology,
        streams: &mut Streams,
        slots: &[Slots],
        elapsed: Duration,
    ) -> Result<Self, ConfigError> {
        let difference = Difference::between(old, new);
        let mut kept_links = vec![None; new.links.len()];
        for (from, to) in &difference.kept_links {
            kept_links[*to] = Some(*from);
        }
        let kept = Kept::new(old, before, new, &difference.kept_nodes);
        let plan = Plan::lay_out(
            new,
            slots.len(),
            |name| kept.shard(name),
            |link| match kept_links[link] {
                // It has its own.
                Some(_) => Streams::new(0).next_direction(),
                None => streams.next_direction(),
            },
        )?;
        let mut work = Work {
            before,
            used: slots,
            maps: slots.iter().map(|_| Maps::default()).collect(),
            out: Self {
                present: Present::default(),
                set: HashMap::new(),
                shards: slots.iter().map(|_| ShardRewiring::default()).collect(),
                slots: slots.to_vec(),
                kept_links,
            },
        };
        let shards = work.place(plan, &kept);
        for (number, shard) in shards.into_iter().enumerate() {
            work.wire(number, shard, elapsed);
        }
        work.bridges(old, new, &difference);
        work.set(&difference);
        work.gone(&kept);
        Ok(work.out)
    }
}

/// What stays, by name.
struct Kept<'a> {
    ports: HashMap<&'a str, &'a PortPlan>,
    externals: HashMap<&'a str, &'a ExternalPlan>,
    nodes: HashMap<&'a str, &'a NodePlan>,
}

impl<'a> Kept<'a> {
    fn new(old: &Topology, before: &'a Present, new: &Topology, kept: &[(usize, usize)]) -> Self {
        let mut names = HashSet::new();
        for (from, to) in kept {
            let name = &old.nodes[*from].name;
            match &new.nodes[*to].kind {
                NodeKind::Machine(machine) => {
                    let interfaces = machine.interfaces.iter();
                    names.extend(interfaces.map(|i| format!("{name}.{}", i.name)));
                }
                NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => {
                    names.insert(name.clone());
                }
            }
        }
        let ports = before.ports.iter().map(|port| (&*port.name, port));
        let externals = before.externals.iter().map(|e| (&*e.name, e));
        let nodes = before.nodes.iter().map(|node| (&*node.name, node));
        Self {
            ports: ports.filter(|(name, _)| names.contains(*name)).collect(),
            externals: externals.filter(|(n, _)| names.contains(*n)).collect(),
            nodes: nodes.filter(|(name, _)| names.contains(*name)).collect(),
        }
    }

    fn shard(&self, name: &str) -> Option<usize> {
        let port = self.ports.get(name).map(|port| port.shard);
        let external = || self.externals.get(name).map(|external| external.shard);
        let node = || self.nodes.get(name).map(|node| node.shard);
        port.or_else(external).or_else(node)
    }
}

/// For the indices of a plan that is made from nothing, the slots, of one shard.
#[derive(Debug, Default)]
struct Maps {
    ports: Vec<usize>,
    externals: Vec<usize>,
    lanes: Vec<usize>,
    bridges: Vec<usize>,
}

impl Maps {
    fn sink(&self, sink: Sink) -> Sink {
        match sink {
            Sink::Port(port) => Sink::Port(self.ports[port]),
            Sink::External(external) => Sink::External(self.externals[external]),
            Sink::Bridge { bridge, port } => Sink::Bridge {
                bridge: self.bridges[bridge],
                port,
            },
        }
    }
}

struct Work<'a> {
    before: &'a Present,
    /// Slots used before.
    used: &'a [Slots],
    maps: Vec<Maps>,
    out: Rewiring,
}

impl Work<'_> {
    /// Gives everything in `plan` a slot: its old one, or the next.
    fn place(&mut self, plan: Plan, kept: &Kept<'_>) -> Vec<ShardPlan> {
        let Self { maps, out, .. } = self;
        for mut port in plan.ports {
            let next = &mut out.slots[port.shard].ports;
            port.index = match kept.ports.get(&*port.name) {
                Some(old) => {
                    port.counters = Arc::clone(&old.counters);
                    old.index
                }
                None => take(next),
            };
            maps[port.shard].ports.push(port.index);
            out.present.ports.push(port);
        }
        for mut external in plan.externals {
            let next = &mut out.slots[external.shard].externals;
            external.index = match kept.externals.get(&*external.name) {
                Some(old) => {
                    external.counters = Arc::clone(&old.counters);
                    old.index
                }
                None => take(next),
            };
            maps[external.shard].externals.push(external.index);
            out.present.externals.push(external);
        }
        for mut node in plan.nodes {
            let next = &mut out.slots[node.shard].bridges;
            node.index = match kept.nodes.get(&*node.name) {
                Some(old) => {
                    node.counters = Arc::clone(&old.counters);
                    old.index
                }
                None => take(next),
            };
            maps[node.shard].bridges.push(node.index);
            out.present.nodes.push(node);
        }
        for (mut link, from) in plan.links.into_iter().zip(&out.kept_links) {
            let next = &mut out.slots[link.shard].lanes;
            link.lanes = match from {
                Some(from) => {
                    let old = &self.before.links[*from];
                    link.directions.clone_from(&old.directions);
                    old.lanes
                }
                None => [take(next), take(next)],
            };
            maps[link.shard].lanes.extend(link.lanes);
            out.present.links.push(link);
        }
        plan.shards
    }

    /// Takes over what a plan that is made from nothing has for a shard.
    fn wire(&mut self, number: usize, plan: ShardPlan, elapsed: Duration) {
        let (maps, used) = (&self.maps[number], self.used[number]);
        let out = &mut self.out.shards[number];
        let lane = |lane: Option<usize>| lane.map(|lane| maps.lanes[lane]);
        for (port, slot) in plan.ports.into_iter().zip(&maps.ports) {
            let egress = lane(port.egress);
            if *slot < used.ports {
                out.ports.push((*slot, egress, port.guard));
            } else {
                out.new.ports.push(ShardPort { egress, ..port });
            }
        }
        for (external, slot) in plan.externals.into_iter().zip(&maps.externals) {
            let egress = lane(external.egress);
            if *slot < used.externals {
                out.externals.push((*slot, egress, external.guard));
            } else {
                let external = ShardPort { egress, ..external };
                out.new.externals.push(external);
            }
        }
        // What a schedule has made of a link that is new, and what it still will.
        let mut past: HashMap<usize, Vec<&Patch>> = HashMap::new();
        for TimedChange { at, change } in &plan.schedule {
            let LinkChange { lanes, set } = change;
            if *at <= elapsed {
                for (lane, patch) in lanes.iter().zip(set) {
                    past.entry(*lane).or_default().push(patch);
                }
            } else {
                let change = LinkChange {
                    lanes: lanes.map(|lane| maps.lanes[lane]),
                    set: set.clone(),
                };
                out.new.schedule.push(TimedChange { at: *at, change });
            }
        }
        for (number, (mut direction, slot)) in
            plan.directions.into_iter().zip(&maps.lanes).enumerate()
        {
            direction.sink = maps.sink(direction.sink);
            if *slot < used.lanes {
                out.lanes.push((*slot, direction.sink));
                continue;
            }
            for patch in past.get(&number).into_iter().flatten() {
                patch.apply(&mut direction.attributes);
            }
            out.new.directions.push(DirectionPlan {
                held_port: direction.held_port.map(|port| maps.ports[port]),
                bridge: direction.bridge.map(|bridge| maps.bridges[bridge]),
                ..direction
            });
        }
        for (bridge, slot) in plan.bridges.into_iter().zip(&maps.bridges) {
            let egress = bridge.egress.iter().map(|lane| maps.lanes[*lane]).collect();
            if *slot < used.bridges {
                let rewiring = BridgeRewiring {
                    attributes: None,
                    moved: Vec::new(),
                    egress,
                };
                out.bridges.push((*slot, rewiring));
            } else {
                out.new.bridges.push(BridgePlan { egress, ..bridge });
            }
        }
    }

    /// Says of layer-2 nodes that stay what they are now, and which port is which.
    fn bridges(&mut self, old: &Topology, new: &Topology, difference: &Difference) {
        let mut moved: HashMap<&str, Vec<Option<usize>>> = HashMap::new();
        for (from, to) in &difference.kept_links {
            let ends = old.links[*from].ends.iter().zip(&new.links[*to].ends);
            for (was, is) in ends {
                let ports = moved.entry(&new.nodes[is.node].name).or_default();
                ports.resize(ports.len().max(was.port + 1), None);
                ports[was.port] = Some(is.port);
            }
        }
        let attributes = new.nodes.iter().filter_map(|node| match &node.kind {
            NodeKind::Switch(switch) => Some((&*node.name, switch)),
            _ => None,
        });
        let attributes: HashMap<&str, &SwitchNode> = attributes.collect();
        for node in &self.out.present.nodes {
            let bridges = &mut self.out.shards[node.shard].bridges;
            if let Some((_, rewiring)) = bridges.iter_mut().find(|(slot, _)| *slot == node.index) {
                rewiring.moved = moved.remove(&*node.name).unwrap_or_default();
                rewiring.attributes = attributes.get(&*node.name).map(|a| (*a).clone());
            }
        }
    }

    /// Sets what is different about links that stay.
    fn set(&mut self, difference: &Difference) {
        for change in &difference.links {
            if let LinkDifference::Changed { new, set, .. } = change {
                let link = &self.out.present.links[*new];
                self.out.shards[link.shard].set.push(LinkChange {
                    lanes: link.lanes,
                    set: (**set).clone(),
                });
                self.out.set.insert(*new, (**set).clone());
            }
        }
    }

    /// Takes out what is gone.
    fn gone(&mut self, kept: &Kept<'_>) {
        let (before, shards) = (self.before, &mut self.out.shards);
        let links: HashSet<usize> = self.out.kept_links.iter().flatten().copied().collect();
        let gone = before.links.iter().enumerate();
        for (_, link) in gone.filter(|(number, _)| !links.contains(number)) {
            shards[link.shard].gone_lanes.extend(link.lanes);
        }
        for port in &before.ports {
            if !kept.ports.contains_key(&*port.name) {
                shards[port.shard]
                    .ports
                    .push((port.index, None, Guard::default()));
            }
        }
        for external in &before.externals {
            if !kept.externals.contains_key(&*external.name) {
                let shard = &mut shards[external.shard];
                shard.gone_externals.push(external.index);
                shard
                    .externals
                    .push((external.index, None, Guard::default()));
            }
        }
        for node in &before.nodes {
            if !kept.nodes.contains_key(&*node.name) {
                shards[node.shard].gone_bridges.push(node.index);
            }
        }
    }
}

fn take(next: &mut usize) -> usize {
    *next += 1;
    *next - 1
}
