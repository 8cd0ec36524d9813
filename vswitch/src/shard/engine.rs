//! The data path of a shard, without threads and without a clock of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use topology::model::Direction;

use super::agenda::Agenda;
use super::pool::Pool;
use crate::classify::{self, Class, classify};
use crate::clock::Time;
use crate::config::{DirectionPlan, LinkChange, ShardPlan, Sink, TimedChange};
use crate::counters::{DirectionCounters, Drop, PortCounters, ShardCounters};
use crate::frame::{self, Frame, Info, Place, SenderRef};
use crate::l2::Addresses;
use crate::link::{Path, Shaper, Step};
use crate::ring::{EventFd, RxRing, Taken, TxRing, Violation};

/// Frames taken from one ring before others get their turn.
const BATCH: usize = 64;
/// Events worked off before rings get their turn.
const EVENTS: usize = 1024;
/// Bytes a shard may hold for frames that fit neither the sender's nor the receiver's buffers.
const POOL_BYTES: usize = 64 << 20;

/// One of the two rings of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The guest receives; ring 0 of a virtio-net device.
    Receive,
    /// The guest sends; ring 1.
    Transmit,
}

impl std::fmt::Display for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Receive => "receive",
            Self::Transmit => "transmit",
        })
    }
}

/// A ring was stopped because the guest broke the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Index of the port in the shard.
    pub port: usize,
    /// Which of its rings.
    pub queue: Queue,
    /// What it did.
    pub violation: Violation,
}

/// A port's transmit ring and what it is waiting for.
#[derive(Debug)]
pub(super) struct TxSide {
    pub(super) ring: Box<TxRing>,
    state: Polling,
    last_work: Time,
    dirty: bool,
}

/// How new frames of a ring are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Polling {
    /// In every turn; the guest does not kick.
    Polled,
    /// By a kick.
    Idle,
    /// Not: the link's transmitter has to make room first.
    Blocked,
    /// Never again.
    Broken,
}

/// A port's receive ring.
#[derive(Debug)]
pub(super) struct RxSide {
    pub(super) ring: Box<RxRing>,
    pub(super) broken: bool,
    pub(super) dirty: bool,
}

/// A machine's interface.
#[derive(Debug)]
pub(super) struct Port {
    egress: Option<usize>,
    pub(super) counters: Arc<PortCounters>,
    /// Counts the starts of each ring.
    pub(super) tx_generation: u32,
    pub(super) rx_generation: u32,
}

/// One direction of a link, in place.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) shaper: Shaper<Frame>,
    pub(super) attributes: Direction,
    pub(super) sink: Sink,
    /// The port whose ring feeds it, with `completion: nic`.
    held_port: Option<usize>,
    /// The bridge whose frames it carries on.
    pub(super) bridge: Option<usize>,
    /// When a frame last entered; see [`Engine::moment`].
    pub(super) entered: u64,
    /// Frames inside that are in the pool.
    pub(super) pooled: u32,
    pub(super) counters: Arc<DirectionCounters>,
}

impl Lane {
    fn new(plan: DirectionPlan, origin: Time) -> Self {
        Self {
            shaper: Shaper::new(&plan.attributes, &plan.streams, origin),
            attributes: plan.attributes,
            sink: plan.sink,
            held_port: plan.held_port,
            bridge: plan.bridge,
            entered: 0,
            pooled: 0,
            counters: plan.counters,
        }
    }

    /// The port whose ring waits for the transmitter.
    #[inline]
    fn holds_sender(&self) -> Option<usize> {
        self.held_port
            .filter(|_| self.shaper.path() == Path::Queued)
    }

    /// Whether frames of `port` wait in its buffers for the transmitter.
    pub(super) fn waits_for(&self, port: usize) -> bool {
        self.holds_sender() == Some(port)
    }

    #[inline]
    pub(super) fn is_up(&self) -> bool {
        self.attributes.up
    }

    #[inline]
    pub(super) fn count_in(&self, len: u32) {
        self.counters.in_frames.add(1);
        self.counters.in_bytes.add(len.into());
    }

    #[inline]
    pub(super) fn count_out(&self, len: u32) {
        self.counters.out_frames.add(1);
        self.counters.out_bytes.add(len.into());
    }
}

/// All rings, links and layer-2 nodes of a shard.
///
/// Calls come with times that do not decrease. Nothing in here allocates per frame once its buffers have grown, takes a
/// lock, logs, or makes a system call other than signalling a guest.
#[derive(Debug)]
pub struct Engine {
    pub(super) ports: Vec<Port>,
    pub(super) tx: Vec<Option<TxSide>>,
    pub(super) rx: Vec<Option<RxSide>>,
    pub(super) lanes: Vec<Lane>,
    pub(super) bridges: Vec<super::forward::Node>,
    pub(super) pool: Pool,
    pub(super) agenda: Agenda,
    /// Changes of links, in the order of time.
    schedule: VecDeque<(Time, LinkChange)>,
    /// The discipline of a link looks at headers.
    pub(super) classifies: bool,
    /// Directions frames have yet to enter in the present moment.
    pub(super) work: Vec<(usize, Info)>,
    /// Counts the times a frame was sent on its way through the directions it can pass in no time.
    pub(super) moment: u64,
    pub(super) dirty_rx: Vec<usize>,
    dirty_tx: Vec<usize>,
    polled: Vec<usize>,
    /// How long a ring is polled after its last frame.
    linger: Duration,
    pub(super) stopped: Vec<Stopped>,
    counters: Arc<ShardCounters>,
}

impl Engine {
    /// The data path of `plan`; `linger` is how long a ring is polled after its last frame before the guest is asked to kick
    /// again. Schedules and traces begin at `origin`.
    pub fn new(plan: ShardPlan, linger: Duration, origin: Time) -> Self {
        let port = |p: crate::config::ShardPort| Port {
            egress: p.egress,
            counters: p.counters,
            tx_generation: 0,
            rx_generation: 0,
        };
        let ports: Vec<Port> = plan.ports.into_iter().map(port).collect();
        let lane = |plan| Lane::new(plan, origin);
        let lanes: Vec<Lane> = plan.directions.into_iter().map(lane).collect();
        let timed = |change: TimedChange| (origin + change.at, change.change);
        Self {
            tx: ports.iter().map(|_| None).collect(),
            rx: ports.iter().map(|_| None).collect(),
            dirty_rx: Vec::with_capacity(ports.len()),
            dirty_tx: Vec::with_capacity(ports.len()),
            polled: Vec::with_capacity(ports.len()),
            agenda: Agenda::new(lanes.len()),
            schedule: plan.schedule.into_iter().map(timed).collect(),
            classifies: lanes.iter().any(|l| l.shaper.looks_at_headers()),
            work: Vec::with_capacity(lanes.len()),
            moment: 0,
            bridges: plan
                .bridges
                .into_iter()
                .map(super::forward::Node::new)
                .collect(),
            pool: Pool::new(POOL_BYTES),
            linger,
            stopped: Vec::new(),
            counters: plan.counters,
            ports,
            lanes,
        }
    }

    /// Starts to serve a transmit ring; hands back the one that was there.
    pub fn add_tx(&mut self, port: usize, mut ring: Box<TxRing>, now: Time) -> Option<Box<TxRing>> {
        let old = self.remove_tx(port);
        ring.ring().suppress_kicks();
        self.ports[port].tx_generation += 1;
        self.tx[port] = Some(TxSide {
            ring,
            state: Polling::Polled,
            last_work: now,
            dirty: false,
        });
        self.polled.push(port);
        old
    }

    /// Starts to serve a receive ring; hands back the one that was there. Its kicks tell of new buffers, which are
    /// looked for when they are needed, so none are asked for.
    pub fn add_rx(&mut self, port: usize, mut ring: Box<RxRing>) -> Option<Box<RxRing>> {
        let old = self.remove_rx(port);
        ring.ring().suppress_kicks();
        self.ports[port].rx_generation += 1;
        self.rx[port] = Some(RxSide {
            ring,
            broken: false,
            dirty: false,
        });
        old
    }

    /// Lets go of a transmit ring: what is completed is shown to the guest, the rest will be taken again by the next owner.
    pub fn remove_tx(&mut self, port: usize) -> Option<Box<TxRing>> {
        let mut side = self.tx[port].take()?;
        self.polled.retain(|p| *p != port);
        self.dirty_tx.retain(|p| *p != port);
        side.ring.ring().publish();
        Some(side.ring)
    }

    /// Lets go of a receive ring: what has arrived is shown to the guest, buffers set aside go back.
    pub fn remove_rx(&mut self, port: usize) -> Option<Box<RxRing>> {
        let mut side = self.rx[port].take()?;
        self.dirty_rx.retain(|p| *p != port);
        side.ring.ring().publish();
        Some(side.ring)
    }

    /// Interrupts the guest by `call` from now on.
    pub fn set_call(&mut self, port: usize, queue: Queue, call: Option<EventFd>) {
        let ring = match queue {
            Queue::Transmit => self.tx[port].as_mut().map(|side| side.ring.ring()),
            Queue::Receive => self.rx[port].as_mut().map(|side| side.ring.ring()),
        };
        if let Some(ring) = ring {
            ring.set_call(call);
        }
    }

    /// The guest of `port` says that it has sent something.
    pub fn kicked(&mut self, port: usize, now: Time) {
        if let Some(side) = &mut self.tx[port]
            && side.state == Polling::Idle
        {
            side.state = Polling::Polled;
            side.last_work = now;
            side.ring.ring().suppress_kicks();
            self.polled.push(port);
        }
    }

    /// Does what is due at `now`, takes what guests have sent, shows them what has arrived. `true` if there was anything.
    pub fn turn(&mut self, now: Time) -> bool {
        let mut busy = self.run_events(now);
        busy |= self.poll_rings(now);
        busy |= self.run_events(now);
        self.publish();
        self.counters.turns.add(1);
        self.counters.busy_turns.add(u64::from(busy));
        self.counters.pool_bytes.set(self.pool.allocated() as u64);
        busy
    }

    /// Whether rings are polled, so that the next turn should come at once.
    pub fn is_polling(&self) -> bool {
        !self.polled.is_empty()
    }

    /// When the next turn is due if nobody kicks.
    pub fn next_deadline(&self) -> Option<Time> {
        let change = self.schedule.front().map(|(at, _)| *at);
        match (self.agenda.next(), change) {
            (Some(event), Some(change)) => Some(event.min(change)),
            (event, change) => event.or(change),
        }
    }

    /// Whether no frame is inside a link.
    pub fn is_empty(&self) -> bool {
        self.pool.in_use() == 0 && self.lanes.iter().all(|l| l.shaper.is_empty())
    }

    /// Rings stopped since the last call.
    pub fn take_stopped(&mut self) -> impl Iterator<Item = Stopped> {
        self.stopped.drain(..)
    }

    fn run_events(&mut self, now: Time) -> bool {
        for n in 0..EVENTS {
            let change = self.schedule.front().map(|(at, _)| *at);
            let change = change.filter(|at| *at <= now);
            if let Some((at, lane)) = self.agenda.pop(change.unwrap_or(now)) {
                self.run_event(lane, at, now);
            } else if change.is_some()
                && let Some((at, change)) = self.schedule.pop_front()
            {
                self.change(&change, at);
            } else {
                return n > 0;
            }
        }
        true
    }

    fn run_event(&mut self, lane: usize, at: Time, now: Time) {
        let step = self.lanes[lane].shaper.step(at);
        let freed = !matches!(step, None | Some((_, Step::Arrived(_))));
        match step {
            Some((at, Step::Transmitted(sent))) => self.transmitted(lane, sent, at),
            Some((_, Step::Lost(frame, reason))) => self.discard(lane, frame, reason.into()),
            Some((at, Step::Arrived(frame))) => self.arrived(lane, frame, at),
            Some((_, Step::Begun)) | None => {}
        }
        self.agenda.schedule(lane, self.lanes[lane].shaper.next());
        if freed {
            self.release_dropped(lane);
            self.note_queue(lane);
            self.unblock(lane, now);
        }
    }

    /// The transmitter of a lane has become free; the ring that feeds it may go on.
    pub(super) fn unblock(&mut self, lane: usize, now: Time) {
        if let Some(port) = self.lanes[lane].held_port
            && let Some(side) = &mut self.tx[port]
            && side.state == Polling::Blocked
        {
            side.state = Polling::Polled;
            side.last_work = now;
            self.polled.push(port);
        }
    }

    fn poll_rings(&mut self, now: Time) -> bool {
        let mut busy = false;
        let mut i = 0;
        while i < self.polled.len() {
            let port = self.polled[i];
            let taken = self.poll(port, now);
            if taken > 0 {
                busy = true;
                self.publish();
            }
            let linger = self.linger;
            let Some(side) = &mut self.tx[port] else {
                self.polled.swap_remove(i);
                continue;
            };
            if taken > 0 {
                side.last_work = now;
            } else if side.state == Polling::Polled && now.since(side.last_work) >= linger {
                if side.ring.ring().allow_kicks() {
                    side.ring.ring().suppress_kicks();
                } else {
                    side.state = Polling::Idle;
                }
            }
            if side.state == Polling::Polled {
                i += 1;
            } else {
                self.polled.swap_remove(i);
            }
        }
        busy
    }

    /// Takes a batch from a ring; returns how many frames.
    fn poll(&mut self, port: usize, now: Time) -> usize {
        let egress = self.ports[port].egress;
        for n in 0..BATCH {
            let held_by = egress.filter(|lane| self.lanes[*lane].holds_sender().is_some());
            let full = held_by.is_some_and(|lane| !self.lanes[lane].shaper.has_room(0));
            let Some(side) = &mut self.tx[port] else {
                return n;
            };
            if full {
                side.state = Polling::Blocked;
                return n;
            }
            let taken = match side.ring.take() {
                Ok(Some(taken)) => taken,
                Ok(None) => return n,
                Err(violation) => {
                    side.state = Polling::Broken;
                    self.stop(Stopped {
                        port,
                        queue: Queue::Transmit,
                        violation,
                    });
                    return n;
                }
            };
            self.taken(port, egress, taken, now);
        }
        BATCH
    }

    /// Sends a frame just taken on its way.
    #[inline]
    fn taken(&mut self, port: usize, egress: Option<usize>, taken: Taken, now: Time) {
        let Taken {
            head,
            len,
            header_ok,
        } = taken;
        let sender = SenderRef {
            port,
            generation: self.ports[port].tx_generation,
            head,
        };
        let place = Place::Sender(sender);
        if !header_ok || !(frame::MIN_LEN..=frame::MAX_LEN).contains(&len) {
            self.ports[port].counters.malformed.add(1);
            return self.release(place);
        }
        let Some(lane) = egress else {
            self.ports[port].counters.unlinked.add(1);
            return self.release(place);
        };
        let addresses = match self.lanes[lane].sink {
            Sink::Port(_) => None,
            Sink::Bridge { .. } => self.tx[port].as_ref().map(|side| {
                let mut addresses: Addresses = [0; 12];
                side.ring.peek(head, &mut addresses);
                addresses
            }),
        };
        let class = match self.tx[port].as_ref() {
            Some(side) if self.classifies => {
                let mut headers = [0; classify::HEADER_BYTES];
                let len = side.ring.peek(head, &mut headers);
                classify(&headers[..len])
            }
            _ => Class::default(),
        };
        let info = Info {
            len,
            class,
            marked: false,
            flipped: None,
            addresses,
        };
        if self.lanes[lane].holds_sender().is_some() {
            self.enter_held(lane, info, place, now);
        } else {
            self.send(lane, info, place, now);
            self.release(place);
        }
    }

    /// `completion: nic`: the frame waits in the sender's buffers until it is transmitted.
    fn enter_held(&mut self, lane: usize, info: Info, place: Place, now: Time) {
        let l = &mut self.lanes[lane];
        l.count_in(info.len);
        if !l.is_up() {
            l.counters.drops.count(Drop::Carrier);
            return self.release(place);
        }
        let admitted = l.shaper.admit(now, info.header(), true);
        self.release_dropped(lane);
        match admitted {
            Ok(marked) => self.enqueue(lane, Frame { info, place }, marked, None, now),
            Err(reason) => {
                self.lanes[lane].counters.drops.count(reason.into());
                self.release(place);
            }
        }
    }

    /// Gives back what frames occupy that a queue has let in and dropped.
    pub(super) fn release_dropped(&mut self, lane: usize) {
        while let Some((frame, reason)) = self.lanes[lane].shaper.dropped() {
            self.discard(lane, frame, reason.into());
        }
    }

    /// Drops a frame that is inside a lane.
    pub(super) fn discard(&mut self, lane: usize, frame: Frame, reason: Drop) {
        let l = &mut self.lanes[lane];
        l.counters.drops.count(reason);
        // Frames in the receiver's buffers are not dropped: see `Engine::unbind`.
        if matches!(frame.place, Place::Pool(_)) {
            l.pooled -= 1;
        }
        self.release(frame.place);
    }

    /// Gives back what a frame occupies. A frame in the receiver's buffers has been delivered, or has gone with its ring.
    #[inline]
    pub(super) fn release(&mut self, place: Place) {
        match place {
            Place::Sender(SenderRef {
                port,
                generation,
                head,
            }) => {
                if self.ports[port].tx_generation == generation
                    && let Some(side) = &mut self.tx[port]
                {
                    side.ring.complete(head);
                    if !side.dirty {
                        side.dirty = true;
                        self.dirty_tx.push(port);
                    }
                }
            }
            Place::Pool(slot) => self.pool.release(slot),
            Place::Receiver { .. } | Place::Nowhere => {}
        }
    }

    /// Stops a ring for good and remembers to say so.
    #[cold]
    pub(super) fn stop(&mut self, stopped: Stopped) {
        self.ports[stopped.port].counters.violations.add(1);
        self.stopped.push(stopped);
    }

    fn publish(&mut self) {
        for port in self.dirty_rx.drain(..) {
            if let Some(side) = &mut self.rx[port] {
                side.dirty = false;
                side.ring.ring().publish();
            }
        }
        for port in self.dirty_tx.drain(..) {
            if let Some(side) = &mut self.tx[port] {
                side.dirty = false;
                side.ring.ring().publish();
            }
        }
    }
}
