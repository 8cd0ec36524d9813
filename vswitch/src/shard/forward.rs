//! The way of a frame from one end of a link to the next.
//!
//! A frame is handed on as a reference to where its bytes are. They are copied when the sender's descriptor is about to be
//! completed while the frame still has to wait ([`Engine::hold`]), or when it has arrived ([`Engine::deliver`]).

use std::sync::Arc;

use super::engine::{Engine, Queue, Stopped};
use crate::classify::Ecn;
use crate::clock::Time;
use crate::config::{BridgePlan, Sink};
use crate::counters::{BridgeCounters, Drop};
use crate::frame::{Frame, Info, Place, SenderRef};
use crate::l2::{Bridge, Verdict};
use crate::link::{Fate, Path, Transmitted};
use crate::memory::Segment;
use crate::ring::{NoBuffer, Reservation, RxRing, gather};

/// A layer-2 node in place.
#[derive(Debug)]
pub(super) struct Node {
    bridge: Bridge,
    /// The direction that leads away from each port.
    egress: Vec<usize>,
    counters: Arc<BridgeCounters>,
}

impl Node {
    pub(super) fn new(plan: BridgePlan) -> Self {
        Self {
            bridge: plan.bridge,
            egress: plan.egress,
            counters: plan.counters,
        }
    }
}

impl Engine {
    /// Lets a frame enter `lane` and go on, in the same moment, as far as no link holds it up. Its place still belongs to
    /// the caller afterwards.
    pub(super) fn send(&mut self, lane: usize, info: Info, place: Place, now: Time) {
        self.work.push((lane, info));
        self.run_work(place, now);
    }

    /// A frame's transmission has ended.
    pub(super) fn transmitted(&mut self, lane: usize, sent: Transmitted<Frame>, at: Time) {
        let Transmitted {
            item: mut frame,
            marked,
            flipped,
            again,
        } = sent;
        if again {
            let copy = self.duplicate(lane, frame.place);
            let copy = copy.map(|place| Frame { place, ..frame });
            self.lanes[lane].shaper.repeat(at, copy);
        }
        self.touch(lane, &mut frame.info, marked, flipped);
        // The sender's buffers are still needed for the copy.
        let lent = again && matches!(frame.place, Place::Sender(_));
        if self.lanes[lane].shaper.is_immediate() {
            if lent {
                return self.reach(lane, frame, at);
            }
            return self.arrived(lane, frame, at);
        }
        // The sender gets its buffers back now, not a propagation delay later.
        let place = match frame.place {
            Place::Sender(_) => {
                let held = self.hold(lane, frame.info, frame.place);
                if !lent {
                    self.release(frame.place);
                }
                match held {
                    Ok(place) => place,
                    Err(reason) => return self.drop(lane, reason),
                }
            }
            place => place,
        };
        self.lanes[lane]
            .shaper
            .propagate(at, Frame { place, ..frame });
        self.agenda.schedule(lane, self.lanes[lane].shaper.next());
    }

    /// A frame has reached the other end of a lane that held it up.
    pub(super) fn arrived(&mut self, lane: usize, frame: Frame, at: Time) {
        if matches!(frame.place, Place::Pool(_)) {
            self.lanes[lane].pooled -= 1;
        }
        self.reach(lane, frame, at);
        self.release(frame.place);
    }

    fn reach(&mut self, lane: usize, frame: Frame, at: Time) {
        self.leave(lane, frame.info, frame.place, at);
        self.run_work(frame.place, at);
    }

    /// A second user of where a frame is. A frame in the receiver's buffers came before the link began to duplicate.
    fn duplicate(&mut self, lane: usize, place: Place) -> Option<Place> {
        match place {
            Place::Pool(slot) => {
                self.pool.share(slot);
                self.lanes[lane].pooled += 1;
            }
            Place::Sender(_) | Place::Nowhere => {}
            Place::Receiver { .. } => return None,
        }
        self.lanes[lane].counters.duplicated.add(1);
        Some(place)
    }

    /// Notes what is to be done to a frame on delivery.
    #[inline]
    fn touch(&self, lane: usize, info: &mut Info, marked: bool, flipped: Option<u32>) {
        let counters = &self.lanes[lane].counters;
        if marked {
            counters.marked.add(1);
            info.marked = true;
        }
        if flipped.is_some() {
            counters.corrupted.add(1);
            info.flipped = info.flipped.or(flipped);
        }
    }

    /// Puts a frame that was admitted into the queue of a lane.
    pub(super) fn enqueue(
        &mut self,
        lane: usize,
        frame: Frame,
        marked: bool,
        fate: Option<Fate>,
        now: Time,
    ) {
        let shaper = &mut self.lanes[lane].shaper;
        shaper.enqueue(now, frame, frame.info.header(), marked, fate);
        self.agenda.schedule(lane, self.lanes[lane].shaper.next());
        self.release_dropped(lane);
        self.note_queue(lane);
    }

    pub(super) fn note_queue(&self, lane: usize) {
        let lane = &self.lanes[lane];
        lane.counters.queued.set(lane.shaper.queued() as u64);
    }

    fn run_work(&mut self, place: Place, now: Time) {
        self.moment += 1;
        while let Some((lane, info)) = self.work.pop() {
            // Without a loop a frame enters each direction once; with one, it must not circle in no time.
            if std::mem::replace(&mut self.lanes[lane].entered, self.moment) == self.moment {
                if let Some(bridge) = self.lanes[lane].bridge {
                    self.bridges[bridge].counters.looped.add(1);
                }
                continue;
            }
            match self.enter(lane, info, place, now) {
                Ok(Some(info)) => self.leave(lane, info, place, now),
                Ok(None) => {}
                Err(reason) => self.drop(lane, reason),
            }
        }
    }

    fn drop(&self, lane: usize, reason: Drop) {
        self.lanes[lane].counters.drops.count(reason);
    }

    /// Lets a frame into a lane. If it is at the other end already, what is known of it there.
    #[inline]
    fn enter(
        &mut self,
        lane: usize,
        mut info: Info,
        place: Place,
        now: Time,
    ) -> Result<Option<Info>, Drop> {
        let l = &mut self.lanes[lane];
        l.count_in(info.len);
        if !l.is_up() {
            return Err(Drop::Carrier);
        }
        match l.shaper.path() {
            Path::Straight => {
                let fate = l.shaper.fate(info.len);
                if let Some(reason) = fate.lost {
                    return Err(reason.into());
                }
                self.touch(lane, &mut info, false, fate.flipped);
                Ok(Some(info))
            }
            Path::Delayed => {
                let fate = l.shaper.fate(info.len);
                if let Some(reason) = fate.lost {
                    return Err(reason.into());
                }
                if fate.duplicated {
                    l.counters.duplicated.add(1);
                    let fate = l.shaper.fate_of_duplicate(info.len);
                    self.depart(lane, info, place, fate, now);
                }
                self.depart(lane, info, place, fate, now);
                Ok(None)
            }
            Path::Queued => {
                let admitted = l.shaper.admit(now, info.header(), false);
                // Room is made before the frame that has come needs it.
                self.release_dropped(lane);
                let marked = admitted?;
                let fate = self.lanes[lane].shaper.foretell(info.len);
                let place = match fate {
                    Some(Fate { lost: Some(_), .. }) => Place::Nowhere,
                    _ => self.hold(lane, info, place)?,
                };
                self.enqueue(lane, Frame { info, place }, marked, fate, now);
                Ok(None)
            }
        }
    }

    /// Sends a frame on its way over a lane without a transmitter, or drops it.
    fn depart(&mut self, lane: usize, mut info: Info, place: Place, fate: Fate, now: Time) {
        if let Some(reason) = fate.lost {
            return self.drop(lane, reason.into());
        }
        self.touch(lane, &mut info, false, fate.flipped);
        match self.hold(lane, info, place) {
            Ok(place) => {
                let frame = Frame { info, place };
                self.lanes[lane].shaper.propagate(now, frame);
                self.agenda.schedule(lane, self.lanes[lane].shaper.next());
            }
            Err(reason) => self.drop(lane, reason),
        }
    }

    /// A frame is at the other end of a lane: a machine gets it, a bridge puts the lanes it goes on to into `work`.
    #[inline]
    fn leave(&mut self, lane: usize, info: Info, place: Place, at: Time) {
        match self.lanes[lane].sink {
            Sink::Port(port) => match self.deliver(lane, port, info, place) {
                Ok(()) => self.lanes[lane].count_out(info.len),
                Err(reason) => self.drop(lane, reason),
            },
            Sink::Bridge { bridge, port } => {
                self.lanes[lane].count_out(info.len);
                self.bridge(bridge, port, info, at);
            }
        }
    }

    fn bridge(&mut self, bridge: usize, port: usize, info: Info, at: Time) {
        let node = &mut self.bridges[bridge];
        node.counters.frames.add(1);
        // Every lane that leads to a bridge has had the addresses read.
        let Some(addresses) = info.addresses_on_arrival() else {
            return;
        };
        match node.bridge.decide(port, &addresses, at) {
            Verdict::Forward(to) => self.work.push((node.egress[to], info)),
            Verdict::Filter => node.counters.filtered.add(1),
            Verdict::Flood => {
                node.counters.flooded.add(1);
                let others = node.egress.iter().enumerate().filter(|(p, _)| *p != port);
                self.work.extend(others.map(|(_, lane)| (*lane, info)));
            }
        }
        node.counters.learnt.set(node.bridge.learnt() as u64);
    }

    /// Finds a place for a frame that has to wait in `lane` and must not stay where it is. The present place still belongs to
    /// the caller.
    fn hold(&mut self, lane: usize, info: Info, place: Place) -> Result<Place, Drop> {
        if let Sink::Port(port) = self.lanes[lane].sink
            && let Place::Sender(sender) = place
        {
            match self.rx[port].as_ref() {
                // Nobody there to receive it: it takes its time on the wire all the same.
                None => return Ok(Place::Nowhere),
                // Buffers are returned in the order in which they were set aside, so that is only for frames that arrive in
                // the order in which they come here.
                Some(_) if !self.keeps_order(lane, sender) => {}
                // Buffers set aside for later frames would be missing when those in the pool arrive; so once one is in the
                // pool, all are until it is empty.
                Some(_) if self.lanes[lane].pooled == 0 => {
                    if let Ok(reservation) = self.write(lane, port, info, place) {
                        let generation = self.ports[port].rx_generation;
                        return Ok(Place::Receiver {
                            generation,
                            reservation,
                        });
                    }
                }
                Some(_) => {}
            }
        }
        let slot = match place {
            Place::Sender(sender) => {
                let pieces = self.tx[sender.port]
                    .as_ref()
                    .filter(|_| self.ports[sender.port].tx_generation == sender.generation)
                    .map(|side| side.ring.pieces(sender.head))
                    .ok_or(Drop::SenderGone)?;
                let fill = |bytes: &mut [u8]| {
                    gather(pieces, bytes);
                    if let Some(addresses) = info.addresses {
                        bytes[..addresses.len()].copy_from_slice(&addresses);
                    }
                };
                let slot = self.pool.store(info.len as usize, fill).ok_or(Drop::Pool)?;
                let counters = &self.lanes[lane].counters;
                counters.bytes_copied.add(info.len.into());
                counters.pool_copies.add(1);
                slot
            }
            Place::Pool(slot) => {
                self.pool.share(slot);
                slot
            }
            Place::Receiver { .. } | Place::Nowhere => return Ok(place),
        };
        self.lanes[lane].pooled += 1;
        Ok(Place::Pool(slot))
    }

    /// Whether frames that come from `sender` and need a place now arrive in this order, and all of them.
    fn keeps_order(&self, lane: usize, sender: SenderRef) -> bool {
        let l = &self.lanes[lane];
        // Frames that have waited in the sender's buffers have left the queue.
        if l.waits_for(sender.port) {
            !l.shaper.may_reorder()
        } else {
            l.shaper.is_ordered()
        }
    }

    /// Hands a frame that has arrived to the guest of `port`; it sees it with the next publication.
    fn deliver(&mut self, lane: usize, port: usize, info: Info, place: Place) -> Result<(), Drop> {
        let reservation = match place {
            Place::Receiver {
                generation,
                reservation,
            } => {
                if self.ports[port].rx_generation != generation {
                    return Err(Drop::Disconnected);
                }
                reservation
            }
            Place::Nowhere => return Err(Drop::Disconnected),
            Place::Sender(_) | Place::Pool(_) => self.write(lane, port, info, place)?,
        };
        let side = self.rx[port]
            .as_mut()
            .filter(|side| !side.broken)
            .ok_or(Drop::Disconnected)?;
        if info.marked
            && let Some(ecn) = info.class.ecn
        {
            mark(&mut side.ring, reservation, ecn);
        }
        if let Some(bit) = info.flipped {
            let flip = |byte| byte ^ 1 << (bit % 8);
            side.ring.update(reservation, bit / 8, flip);
        }
        side.ring.deliver(reservation);
        if !side.dirty {
            side.dirty = true;
            self.dirty_rx.push(port);
        }
        Ok(())
    }

    /// Copies a frame into buffers of the guest of `port`, which does not see them yet.
    #[inline]
    fn write(
        &mut self,
        lane: usize,
        port: usize,
        info: Info,
        place: Place,
    ) -> Result<Reservation, Drop> {
        let pooled: Segment;
        let (pieces, start) = match place {
            Place::Sender(sender) => {
                let side = self.tx[sender.port]
                    .as_ref()
                    .filter(|_| self.ports[sender.port].tx_generation == sender.generation)
                    .ok_or(Drop::SenderGone)?;
                (side.ring.pieces(sender.head), info.addresses.as_ref())
            }
            Place::Pool(slot) => {
                pooled = self.pool.segment(slot);
                (std::slice::from_ref(&pooled), None)
            }
            Place::Receiver { .. } | Place::Nowhere => return Err(Drop::Disconnected),
        };
        let side = self.rx[port]
            .as_mut()
            .filter(|side| !side.broken)
            .ok_or(Drop::Disconnected)?;
        let reservation = match side.ring.reserve(info.len) {
            Ok(reservation) => reservation,
            Err(NoBuffer::Empty) => return Err(Drop::NoRxBuffer),
            Err(NoBuffer::TooSmall) => return Err(Drop::TooBig),
            Err(NoBuffer::Violation(violation)) => {
                side.broken = true;
                self.stop(Stopped {
                    port,
                    queue: Queue::Receive,
                    violation,
                });
                return Err(Drop::Disconnected);
            }
        };
        side.ring
            .fill(reservation, start.map_or(&[], |a| &a[..]), pieces);
        self.lanes[lane].counters.bytes_copied.add(info.len.into());
        Ok(reservation)
    }
}

/// Sets CE (RFC 3168) in a frame that has been copied to its receiver, whose header was checked when it was taken. What the receiver
/// does to it in the meantime harms only itself.
fn mark(ring: &mut RxRing, reservation: Reservation, ecn: Ecn) {
    match ecn {
        Ecn::V6(ip) => {
            ring.update(reservation, u32::from(ip) + 1, |byte| byte | 0x30);
        }
        Ecn::V4(ip) => {
            let ip = u32::from(ip);
            let before = ring.update(reservation, ip + 1, |tos| tos | 3);
            let added = before.map_or(0, |tos| 3 - (tos & 3));
            let high = ring.update(reservation, ip + 10, |byte| byte).unwrap_or(0);
            let low = ring.update(reservation, ip + 11, |byte| byte).unwrap_or(0);
            // RFC 1624: HC' = ~(~HC + (m' - m)).
            let sum = u32::from(!u16::from_be_bytes([high, low])) + u32::from(added);
            let [high, low] = (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes();
            ring.update(reservation, ip + 10, |_| high);
            ring.update(reservation, ip + 11, |_| low);
        }
    }
}
