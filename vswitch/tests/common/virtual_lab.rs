//! The packet path on a clock set by hand.

use std::collections::HashMap;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use topology::model::{Timing, Topology};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vswitch::clock::Time;
use vswitch::config::{LinkPlan, Plan, PortPlan};
use vswitch::counters::ShardCounters;
use vswitch::link::Streams;
use vswitch::memory::{Memory, Region, RegionSpec};
use vswitch::net_header::Layout;
use vswitch::port::features::VERSION_1;
use vswitch::rewiring::{Present, Rewiring, Slots};
use vswitch::ring::{EventFd, RingLayout, RxRing, SplitRing, TxRing};
use vswitch::shard::{Engine, Rewire};
use vswitch::stats::{DirectionStats, ShardStats};

use super::driver::{DriverRing, Guest, Header, Shape};

pub struct VirtualLab {
    pub engine: Engine,
    present: Present,
    topology: Topology,
    streams: Streams,
    slots: Vec<Slots>,
    shard: Arc<ShardCounters>,
    guests: HashMap<String, Guest>,
    shape: Shape,
    pub now: Time,
}

/// When every lab starts.
const START: Time = Time::from_nanos(1_000_000_000);

impl VirtualLab {
    /// A running lab with a guest at each interface.
    pub fn new(topology: &Topology, shape: Shape) -> Self {
        Self::with_shapes(topology, shape, &[])
    }

    /// With guests of another shape at some interfaces.
    pub fn with_shapes(topology: &Topology, shape: Shape, others: &[(&str, Shape)]) -> Self {
        let mut plan = Plan::new(topology, 1).unwrap();
        let now = START;
        let slots = plan.shards.iter().map(Slots::from).collect();
        let mut streams = Streams::new(topology.seed);
        streams.skip(2 * topology.links.len());
        let shard = Arc::clone(&plan.shards[0].counters);
        let engine = Engine::new(plan.shards.remove(0), Timing::Eco.into(), now);
        let mut lab = Self {
            engine,
            present: Present {
                ports: plan.ports,
                externals: plan.externals,
                links: plan.links,
                nodes: plan.nodes,
            },
            topology: topology.clone(),
            streams,
            slots,
            shard,
            guests: HashMap::new(),
            shape,
            now,
        };
        for name in lab
            .ports()
            .iter()
            .map(|p| p.name.clone())
            .collect::<Vec<_>>()
        {
            let other = others.iter().find(|(n, _)| *n == name);
            let shape = other.map_or(shape, |(_, shape)| *shape);
            lab.guests.insert(name.clone(), Guest::new(shape));
            lab.start_rx(&name, 0);
            lab.start_tx(&name, 0);
        }
        lab
    }

    pub fn shard(&self) -> ShardStats {
        ShardStats::read(&self.shard, self.now)
    }

    pub fn links(&self) -> &[LinkPlan] {
        &self.present.links
    }

    fn ports(&self) -> &[PortPlan] {
        &self.present.ports
    }

    /// Makes it a lab of `topology` from now on. Guests whose interface is gone are gone, new interfaces get new ones.
    pub fn rewire(&mut self, topology: &Topology) {
        let rewiring = Rewiring::new(
            &self.topology,
            &self.present,
            topology,
            &mut self.streams,
            &self.slots,
            self.now.since(START),
        );
        let mut rewiring = rewiring.unwrap();
        let stays = |port: &PortPlan| rewiring.present.ports.iter().any(|p| p.name == port.name);
        for port in self.present.ports.iter().filter(|port| !stays(port)) {
            self.engine.remove_rx(port.index);
            self.engine.remove_tx(port.index);
            self.guests.remove(&port.name);
        }
        let mut rewire = Rewire::new(rewiring.shards.remove(0), START);
        self.engine.rewire(&mut rewire, self.now);
        self.present = rewiring.present;
        self.slots = rewiring.slots;
        self.topology = topology.clone();
        for name in self
            .ports()
            .iter()
            .map(|p| p.name.clone())
            .collect::<Vec<_>>()
        {
            if !self.guests.contains_key(&name) {
                self.guests.insert(name.clone(), Guest::new(self.shape));
                self.start_rx(&name, 0);
                self.start_tx(&name, 0);
            }
        }
    }

    pub fn index(&self, name: &str) -> usize {
        let found = self.ports().iter().find(|p| p.name == name);
        found.unwrap().index
    }

    pub fn guest(&mut self, name: &str) -> &mut Guest {
        self.guests.get_mut(name).unwrap()
    }

    pub fn start_rx(&mut self, name: &str, base: u16) {
        let (index, guest) = (self.index(name), &self.guests[name]);
        let ring = split(guest, &guest.rx, base);
        let ring = RxRing::new(
            ring,
            Layout::from_features(VERSION_1 | guest.offloads),
            guest.mergeable,
        );
        self.engine.add_rx(index, Box::new(ring));
    }

    pub fn start_tx(&mut self, name: &str, base: u16) {
        let (index, guest) = (self.index(name), &self.guests[name]);
        let ring = split(guest, &guest.tx, base);
        let ring = TxRing::new(ring, Layout::from_features(VERSION_1 | guest.offloads));
        self.engine.add_tx(index, Box::new(ring), self.now);
    }

    /// Sends without letting time pass.
    pub fn send(&mut self, name: &str, frame: &[u8]) {
        assert!(self.guest(name).queue(frame), "the ring is full");
        self.kick(name);
    }

    /// Sends what is in the ring.
    pub fn kick(&mut self, name: &str) {
        let index = self.index(name);
        self.guest(name).tx.publish();
        self.engine.kicked(index, self.now);
        self.engine.turn(self.now);
    }

    /// Lets `ns` nanoseconds pass, with a turn at every deadline.
    pub fn pass(&mut self, ns: u64) {
        let until = self.now + Duration::from_nanos(ns);
        self.engine.turn(self.now);
        while let Some(next) = self.engine.next_deadline().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.engine.turn(self.now);
        }
        self.now = until;
        self.engine.turn(self.now);
    }

    pub fn receive(&mut self, name: &str) -> Option<Vec<u8>> {
        self.guest(name).receive()
    }

    /// Frames received and buffers posted again at every step until `ns` nanoseconds have passed; with the time of each
    /// since the start of the lab.
    pub fn collect(&mut self, name: &str, ns: u64) -> Vec<(u64, Vec<u8>)> {
        let all = self.collect_with_headers(name, ns).into_iter();
        all.map(|(at, header, frame)| {
            assert_eq!(header, [0; 12], "the header asks for something");
            (at, frame)
        })
        .collect()
    }

    /// As [`VirtualLab::collect`], with headers.
    pub fn collect_with_headers(&mut self, name: &str, ns: u64) -> Vec<(u64, Header, Vec<u8>)> {
        let until = self.now + Duration::from_nanos(ns);
        let mut got = Vec::new();
        self.engine.turn(self.now);
        loop {
            let next = self.engine.next_deadline().filter(|next| *next <= until);
            self.now = self.now.max(next.unwrap_or(until));
            self.engine.turn(self.now);
            let at = self.now.as_nanos() - 1_000_000_000;
            let new = self.guest(name).receive_with_headers();
            got.extend(new.into_iter().map(|(header, frame)| (at, header, frame)));
            if next.is_none() {
                return got;
            }
        }
    }

    pub fn direction(&self, from: &str, to: &str) -> DirectionStats {
        let all = self.links().iter().flat_map(|l| {
            let [a, b] = &l.ends;
            [
                DirectionStats::read(a, b, &l.directions[0]),
                DirectionStats::read(b, a, &l.directions[1]),
            ]
        });
        all.into_iter()
            .find(|d| d.from == from && d.to == to)
            .unwrap()
    }

    pub fn directions(&self) -> Vec<DirectionStats> {
        let all = self.links().iter().flat_map(|l| {
            let [a, b] = &l.ends;
            [
                DirectionStats::read(a, b, &l.directions[0]),
                DirectionStats::read(b, a, &l.directions[1]),
            ]
        });
        all.collect()
    }
}

/// The switch's view of a guest's memory.
pub fn memory(guest: &Guest) -> Arc<Memory> {
    let mut memory = Memory::default();
    for r in guest.memory.iter() {
        let file = r.file_offset().unwrap().file().try_clone().unwrap();
        let spec = RegionSpec {
            guest: r.start_addr().0,
            size: r.len(),
            user: r.as_ptr() as u64,
            offset: 0,
        };
        memory = memory
            .with(Region::map(spec, file, false).unwrap())
            .unwrap();
    }
    Arc::new(memory)
}

/// The switch's half of a guest's ring.
pub fn split(guest: &Guest, ring: &DriverRing, base: u16) -> SplitRing {
    let layout = RingLayout {
        size: ring.size,
        descriptors: guest.user(ring.descriptors),
        available: guest.user(ring.available),
        used: guest.user(ring.used),
        base,
        event_idx: ring.event_idx,
        indirect: true,
    };
    let call = ring.call.try_clone().unwrap().into_raw_fd();
    // SAFETY: the clone owned it and has given it up.
    let call = EventFd::new(unsafe { OwnedFd::from_raw_fd(call) }).unwrap();
    SplitRing::new(memory(guest), layout, Some(call)).unwrap()
}
