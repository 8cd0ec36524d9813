//! The data path of a shard, without threads and without a clock of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use topology::model::Direction;

use super::agenda::Agenda;
use super::outside::Outside;
use super::pool::Pool;
use super::{Notice, Patience};
use crate::capture::{Points, Tap};
use crate::clock::Time;
use crate::config::{DirectionPlan, LinkChange, ShardPlan, ShardPort, Sink, TimedChange};
use crate::counters::{DirectionCounters, Drop, PortCounters, ShardCounters};
use crate::frame::{Frame, Info, Place, SenderRef};
use crate::guard::Guard;
use crate::link::{DirectionStreams, Path, Shaper, Step};
use crate::ring::{BATCH, EventFd, RxRing, Taken, TxRing, Violation};

/// Events worked off before rings get their turn.
const EVENTS: usize = 1024;
/// Notices that may wait to be told.
const NOTICES: usize = 64;
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
    pub(super) state: Polling,
    pub(super) last_work: Time,
    pub(super) dirty: bool,
}

/// How new frames of a ring are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Polling {
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
    pub(super) egress: Option<usize>,
    pub(super) guard: Guard,
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
    /// It leads from machine to machine, so what happens in it has no effect on other lanes and need not be in the order of
    /// time with what happens there.
    independent: bool,
    /// When a frame last entered; see [`Engine::moment`].
    pub(super) entered: u64,
    /// Frames inside that are in the pool.
    pub(super) pooled: u32,
    /// Where captures look at its frames.
    pub(super) tapped: Points,
    pub(super) counters: Arc<DirectionCounters>,
}

impl Port {
    pub(super) fn new(plan: ShardPort) -> Self {
        Self {
            egress: plan.egress,
            guard: plan.guard,
            counters: plan.counters,
            tx_generation: 0,
            rx_generation: 0,
        }
    }
}

impl Lane {
    /// What is in the place of a direction that is gone: no frame enters it.
    pub(super) fn vacant(streams: &DirectionStreams, origin: Time) -> Self {
        let plan = DirectionPlan {
            attributes: Direction::default(),
            streams: streams.clone(),
            sink: Sink::Port(usize::MAX),
            held_port: None,
            bridge: None,
            counters: Arc::default(),
        };
        Self::new(plan, origin)
    }

    pub(super) fn new(plan: DirectionPlan, origin: Time) -> Self {
        Self {
            shaper: Shaper::new(&plan.attributes, &plan.streams, origin),
            attributes: plan.attributes,
            independent: plan.bridge.is_none() && matches!(plan.sink, Sink::Port(_)),
            sink: plan.sink,
            held_port: plan.held_port,
            bridge: plan.bridge,
            entered: 0,
            pooled: 0,
            tapped: Points::default(),
            counters: plan.counters,
        }
    }

    /// The port whose ring waits for the transmitter.
    #[inline]
    pub(super) fn holds_sender(&self) -> Option<usize> {
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
    pub(super) fn count_in(&self, info: &Info) {
        self.counters.in_frames.add(info.frames().into());
        self.counters.in_bytes.add(info.bytes());
    }

    #[inline]
    pub(super) fn count_out(&self, info: &Info) {
        self.counters.out_frames.add(info.frames().into());
        self.counters.out_bytes.add(info.bytes());
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
    pub(super) outside: Outside,
    pub(super) pool: Pool,
    pub(super) agenda: Agenda,
    /// Changes of links, in the order of time.
    pub(super) schedule: VecDeque<(Time, LinkChange)>,
    /// The discipline of a link looks at headers.
    pub(super) classifies: bool,
    /// Directions frames have yet to enter in the present moment.
    pub(super) work: Vec<(usize, Info)>,
    /// Superframes that have yet to enter directions segment by segment.
    pub(super) to_cut: Vec<(usize, Info)>,
    /// Counts the times a frame was sent on its way through the directions it can pass in no time.
    pub(super) moment: u64,
    pub(super) dirty_rx: Vec<usize>,
    pub(super) dirty_tx: Vec<usize>,
    pub(super) polled: Vec<usize>,
    pub(super) patience: Patience,
    pub(super) stopped: Vec<Stopped>,
    pub(super) notices: Vec<Notice>,
    /// Frames just taken.
    pub(super) batch: Vec<Taken>,
    /// Captures.
    pub(super) taps: Vec<Tap>,
    /// The time of the present call.
    pub(super) now: Time,
    /// When schedules and traces begin.
    pub(super) origin: Time,
    /// Directions whose frames have arrived and are not shown to their receivers yet, with the ideal times.
    pub(super) arrivals: Vec<(usize, Time)>,
    /// Reads the time at which they are shown; without, it is the time of the call.
    pub(super) clock: Option<fn() -> Time>,
    /// Rings whose call descriptors have blocked.
    pub(super) held_up: Vec<(usize, Queue)>,
    pub(super) counters: Arc<ShardCounters>,
}

impl Engine {
    /// The data path of `plan`; `patience` says how long a ring is polled before the guest is asked to kick again. Schedules and
    /// traces begin at `origin`.
    pub fn new(plan: ShardPlan, patience: Patience, origin: Time) -> Self {
        let ports: Vec<Port> = plan.ports.into_iter().map(Port::new).collect();
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
            to_cut: Vec::with_capacity(lanes.len()),
            moment: 0,
            bridges: plan
                .bridges
                .into_iter()
                .map(super::forward::Node::new)
                .collect(),
            outside: Outside::new(plan.externals),
            pool: Pool::new(POOL_BYTES),
            patience,
            stopped: Vec::new(),
            batch: Vec::with_capacity(BATCH),
            notices: Vec::new(),
            taps: Vec::new(),
            now: origin,
            origin,
            arrivals: Vec::with_capacity(EVENTS),
            clock: None,
            held_up: Vec::new(),
            counters: plan.counters,
            ports,
            lanes,
        }
    }

    /// How many ports there have been.
    pub fn port_count(&self) -> usize {
        self.ports.len()
    }

    /// Measures lateness by `clock` from now on.
    pub fn measure_by(&mut self, clock: fn() -> Time) {
        self.clock = Some(clock);
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
        self.flush_outside();
        let mut side = self.tx[port].take()?;
        self.polled.retain(|p| *p != port);
        self.dirty_tx.retain(|p| *p != port);
        side.ring.ring().publish();
        if side.ring.ring().call_blocks() {
            self.held_up.push((port, Queue::Transmit));
        }
        Some(side.ring)
    }

    /// Lets go of a receive ring: what has arrived is shown to the guest, buffers set aside go back.
    pub fn remove_rx(&mut self, port: usize) -> Option<Box<RxRing>> {
        let mut side = self.rx[port].take()?;
        self.dirty_rx.retain(|p| *p != port);
        side.ring.ring().publish();
        if side.ring.ring().call_blocks() {
            self.held_up.push((port, Queue::Receive));
        }
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
            if ring.call_blocks() {
                self.held_up.push((port, queue));
            }
        }
    }

    /// Interrupts guests no more whose front-ends held this thread up with that.
    #[cold]
    fn give_up_calls(&mut self) {
        while let Some((port, queue)) = self.held_up.pop() {
            if let Some(side) = &mut self.tx[port] {
                side.ring.ring().set_call(None);
            }
            if let Some(side) = &mut self.rx[port] {
                side.ring.ring().set_call(None);
            }
            self.stop(Stopped {
                port,
                queue,
                violation: Violation::CallBlocks,
            });
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
        self.now = now;
        let mut busy = self.run_events(now);
        busy |= self.poll_rings(now);
        busy |= self.poll_outside(now);
        busy |= self.run_events(now);
        self.publish();
        self.counters.turns.add(1);
        self.counters.busy_turns.add(u64::from(busy));
        self.counters.pool_bytes.set(self.pool.allocated() as u64);
        let pooled = self.pool.in_use() as u64;
        self.counters.pool_frames.set(pooled);
        self.counters.pool_frames_max.raise(pooled);
        busy
    }

    /// Whether rings are polled, so that the next turn should come at once.
    pub fn is_polling(&self) -> bool {
        !self.polled.is_empty() || self.outside.is_ready()
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
        self.pool.in_use() == self.outside.spare() && self.lanes.iter().all(|l| l.shaper.is_empty())
    }

    /// Rings stopped since the last call.
    pub fn take_stopped(&mut self) -> impl Iterator<Item = Stopped> {
        self.stopped.drain(..)
    }

    /// What people should know that has happened since the last call.
    pub fn take_notices(&mut self) -> impl Iterator<Item = Notice> {
        self.notices.drain(..)
    }

    /// Remembers to tell people of something. If nobody asks, the counters still tell.
    #[cold]
    pub(super) fn notice(&mut self, notice: Notice) {
        if self.notices.len() < NOTICES {
            self.notices.push(notice);
        }
    }

    pub(super) fn run_events(&mut self, now: Time) -> bool {
        let mut left = EVENTS;
        while left > 0 {
            let change = self.schedule.front().map(|(at, _)| *at);
            let change = change.filter(|at| *at <= now);
            let until = change.unwrap_or(now);
            if let Some((at, lane)) = self.agenda.pop(until) {
                left -= if self.lanes[lane].independent {
                    self.run_lane(lane, until, left, now)
                } else {
                    self.run_lane(lane, at, 1, now)
                };
            } else if change.is_some()
                && let Some((at, change)) = self.schedule.pop_front()
            {
                self.change_link(&change, at);
                left -= 1;
            } else {
                break;
            }
        }
        left < EVENTS
    }

    /// Works off what is due in a lane at `until`, at most `most` events; returns how many.
    fn run_lane(&mut self, lane: usize, until: Time, most: usize, now: Time) -> usize {
        let mut freed = false;
        let mut done = 0;
        while done < most {
            done += self.land(lane, until, most - done);
            if done == most {
                break;
            }
            done += 1;
            let Some((at, step)) = self.lanes[lane].shaper.step(until) else {
                break;
            };
            match step {
                Step::Arrived(frame) => self.arrived(lane, frame, at),
                Step::Transmitted(sent) => {
                    freed = true;
                    self.transmitted(lane, sent, at);
                }
                Step::Lost(frame, reason) => {
                    freed = true;
                    self.discard(lane, frame, reason.into());
                }
                Step::Begun => freed = true,
            }
        }
        self.agenda.schedule(lane, self.lanes[lane].shaper.next());
        self.note_queue(lane);
        if freed {
            self.release_dropped(lane);
            self.unblock(lane, now);
        }
        done
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

    /// Gives back what frames occupy that a queue has let in and dropped.
    pub(super) fn release_dropped(&mut self, lane: usize) {
        while let Some((frame, reason)) = self.lanes[lane].shaper.dropped() {
            self.discard(lane, frame, reason.into());
        }
    }

    /// Drops a frame that is inside a lane.
    pub(super) fn discard(&mut self, lane: usize, frame: Frame, reason: Drop) {
        self.drop(lane, frame.info, frame.place, reason);
        let l = &mut self.lanes[lane];
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
                    side.mark_dirty(port, &mut self.dirty_tx);
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

    pub(super) fn publish(&mut self) {
        // Before their senders get the buffers back.
        self.flush_outside();
        for port in self.dirty_rx.drain(..) {
            if let Some(side) = &mut self.rx[port] {
                side.dirty = false;
                side.ring.ring().publish();
                if side.ring.ring().call_blocks() {
                    self.held_up.push((port, Queue::Receive));
                }
            }
        }
        for port in self.dirty_tx.drain(..) {
            if let Some(side) = &mut self.tx[port] {
                side.dirty = false;
                side.ring.ring().publish();
                if side.ring.ring().call_blocks() {
                    self.held_up.push((port, Queue::Transmit));
                }
            }
        }
        if !self.arrivals.is_empty() {
            self.note_lateness();
        }
        if !self.held_up.is_empty() {
            self.give_up_calls();
        }
    }

    /// What has arrived has been shown to its receivers.
    fn note_lateness(&mut self) {
        let shown = self.clock.map_or(self.now, |clock| clock());
        for (lane, ideal) in self.arrivals.drain(..) {
            let late = shown.as_nanos().saturating_sub(ideal.as_nanos());
            self.lanes[lane].counters.lateness.record(late);
        }
    }
}
