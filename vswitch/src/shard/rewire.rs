//! Ports, links and layer-2 nodes that come and go while traffic runs.

use super::engine::{Engine, Lane, Port};
use super::forward::Node;
use crate::clock::Time;
use crate::config::{DirectionPlan, LinkChange, ShardPort, Sink, TimedChange};
use crate::external::Device;
use crate::frame::Place;
use crate::guard::Guard;
use crate::link::Streams;
use crate::rewiring::{BridgeRewiring, ShardRewiring};

/// What a shard is to change, in one moment. It is made, and what the shard lets go of is freed, by the one who asks for it.
#[derive(Debug)]
pub struct Rewire {
    /// Afterwards with the guards that there were.
    ports: Vec<(usize, Option<usize>, Guard)>,
    externals: Vec<(usize, Option<usize>, Guard)>,
    lanes: Vec<(usize, Sink)>,
    bridges: Vec<(usize, BridgeRewiring)>,
    set: Vec<LinkChange>,
    schedule: Vec<TimedChange>,
    new_ports: Vec<ShardPort>,
    new_externals: Vec<ShardPort>,
    new_lanes: Vec<Lane>,
    new_bridges: Vec<Node>,
    /// Directions that are gone, and what takes their place; afterwards those.
    gone_lanes: Vec<(usize, Lane)>,
    gone_bridges: Vec<(usize, Node)>,
    gone_externals: Vec<usize>,
    devices: Vec<Device>,
}

impl Rewire {
    /// What `rewiring` asks for. Traces begin at `origin`.
    pub fn new(rewiring: ShardRewiring, origin: Time) -> Self {
        let ShardRewiring {
            new,
            gone_lanes,
            gone_externals,
            gone_bridges,
            ports,
            externals,
            lanes,
            bridges,
            set,
        } = rewiring;
        let lane = |plan: DirectionPlan| Lane::new(plan, origin);
        let streams = Streams::new(0).next_direction();
        let vacant = |slot| (slot, Lane::vacant(&streams, origin));
        Self {
            ports,
            externals,
            lanes,
            bridges,
            set,
            schedule: new.schedule,
            new_ports: new.ports,
            new_externals: new.externals,
            new_lanes: new.directions.into_iter().map(lane).collect(),
            new_bridges: new.bridges.into_iter().map(Node::new).collect(),
            gone_lanes: gone_lanes.into_iter().map(vacant).collect(),
            gone_bridges: gone_bridges
                .into_iter()
                .map(|slot| (slot, Node::vacant()))
                .collect(),
            devices: Vec::with_capacity(gone_externals.len()),
            gone_externals,
        }
    }
}

impl Engine {
    /// Changes what there is, between two turns. What stays is not touched, nor is any frame inside it; frames inside a direction that is
    /// gone are gone with it. What the engine has let go of is in `rewire` afterwards.
    pub fn rewire(&mut self, rewire: &mut Rewire, now: Time) {
        self.now = now;
        // What is due happens to what there was.
        while self.run_events(now) {
            self.publish();
        }
        self.flush_outside();
        for (slot, lane) in &mut rewire.gone_lanes {
            self.unplug(*slot, now);
            std::mem::swap(&mut self.lanes[*slot], lane);
        }
        for (slot, bridge) in &mut rewire.gone_bridges {
            std::mem::swap(&mut self.bridges[*slot], bridge);
        }
        let devices = &mut rewire.devices;
        devices.extend(
            rewire
                .gone_externals
                .iter()
                .filter_map(|slot| self.outside.remove(*slot)),
        );

        self.add(rewire);
        for (slot, egress, guard) in &mut rewire.ports {
            let port = &mut self.ports[*slot];
            port.egress = *egress;
            std::mem::swap(&mut port.guard, guard);
        }
        for (slot, egress, guard) in &mut rewire.externals {
            self.outside.lead(*slot, *egress, guard);
        }
        for (slot, sink) in &rewire.lanes {
            self.lanes[*slot].sink = *sink;
        }
        for (slot, bridge) in &mut rewire.bridges {
            self.bridges[*slot].rewire(bridge);
        }
        for change in &rewire.set {
            self.change_link(change, now);
        }
        self.classifies = self.lanes.iter().any(|l| l.shaper.looks_at_headers());
        self.publish();
    }

    fn add(&mut self, rewire: &mut Rewire) {
        let known = self.lanes.len();
        for port in rewire.new_ports.drain(..) {
            self.ports.push(Port::new(port));
            self.tx.push(None);
            self.rx.push(None);
        }
        for external in rewire.new_externals.drain(..) {
            self.outside.add(external);
        }
        self.lanes.append(&mut rewire.new_lanes);
        self.agenda.grow(self.lanes.len());
        self.bridges.append(&mut rewire.new_bridges);
        // What has become due since this was made has happened to the links that were there.
        let (now, origin) = (self.now, self.origin);
        let to_come = |change: &TimedChange| {
            let is_new = change.change.lanes.iter().any(|lane| *lane >= known);
            is_new || origin + change.at > now
        };
        let schedule = rewire.schedule.drain(..).filter(to_come);
        let schedule = schedule.map(|change| (origin + change.at, change.change));
        self.schedule = schedule.collect();
    }

    /// Takes all frames out of a direction that is about to go.
    fn unplug(&mut self, lane: usize, now: Time) {
        let mut places = Vec::new();
        self.lanes[lane]
            .shaper
            .each(&mut |frame| places.push(frame.place));
        let mut in_receiver = false;
        for place in places {
            in_receiver |= matches!(place, Place::Receiver { .. });
            self.release(place);
        }
        // No other direction leads to its receiver, so these are all that are set aside there.
        if in_receiver
            && let Sink::Port(port) = self.lanes[lane].sink
            && let Some(side) = &mut self.rx[port]
        {
            side.ring.take_back();
            if !side.dirty {
                side.dirty = true;
                self.dirty_rx.push(port);
            }
        }
        self.unblock(lane, now);
    }
}
