//! The way of a frame from one end of a link to the next.
//!
//! A frame is handed on as a reference to where its bytes are. They are copied when the sender's descriptor is about to be
//! completed while the frame still has to wait ([`Engine::hold`]), or when it has arrived ([`Engine::deliver`]).

use std::sync::Arc;

use super::engine::{Engine, Queue, Stopped};
use crate::clock::Time;
use crate::config::{BridgePlan, Sink};
use crate::counters::{BridgeCounters, Drop};
use crate::frame::{Frame, Info, Place};
use crate::l2::{Bridge, Verdict};
use crate::link::Path;
use crate::memory::Segment;
use crate::ring::{NoBuffer, Reservation, gather};

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
        self.work.push(lane);
        self.run_work(info, place, now);
    }

    /// A frame's transmission has ended.
    pub(super) fn transmitted(&mut self, lane: usize, frame: Frame, at: Time) {
        self.note_queue(lane);
        if frame.lost {
            self.drop(lane, Drop::Loss);
            return self.release(frame.place);
        }
        if self.lanes[lane].shaper.is_immediate() {
            return self.arrived(lane, frame, at);
        }
        // The sender gets its buffers back now, not a propagation delay later.
        let place = match frame.place {
            Place::Sender(_) => {
                let held = self.hold(lane, frame.info, frame.place);
                self.release(frame.place);
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
        self.leave(lane, frame.info, frame.place, at);
        self.run_work(frame.info, frame.place, at);
        self.release(frame.place);
    }

    /// Puts a frame into the queue of a lane.
    pub(super) fn enqueue(&mut self, lane: usize, frame: Frame, now: Time) {
        self.lanes[lane].shaper.enqueue(now, frame, frame.info.len);
        self.agenda.schedule(lane, self.lanes[lane].shaper.next());
        self.note_queue(lane);
    }

    fn note_queue(&self, lane: usize) {
        let lane = &self.lanes[lane];
        lane.counters.queued.set(lane.shaper.queued() as u64);
    }

    fn run_work(&mut self, info: Info, place: Place, now: Time) {
        self.moment += 1;
        while let Some(lane) = self.work.pop() {
            // Without a loop a frame enters each direction once; with one, it must not circle in no time.
            if std::mem::replace(&mut self.lanes[lane].entered, self.moment) == self.moment {
                if let Some(bridge) = self.lanes[lane].bridge {
                    self.bridges[bridge].counters.looped.add(1);
                }
                continue;
            }
            match self.enter(lane, info, place, now) {
                Ok(true) => self.leave(lane, info, place, now),
                Ok(false) => {}
                Err(reason) => self.drop(lane, reason),
            }
        }
    }

    fn drop(&self, lane: usize, reason: Drop) {
        self.lanes[lane].counters.drops.count(reason);
    }

    /// Lets a frame into a lane. `true` if it is at the other end already.
    #[inline]
    fn enter(&mut self, lane: usize, info: Info, place: Place, now: Time) -> Result<bool, Drop> {
        let l = &mut self.lanes[lane];
        l.count_in(info.len);
        if !l.up {
            return Err(Drop::Carrier);
        }
        match l.shaper.path() {
            Path::Straight if l.shaper.draw_loss() => Err(Drop::Loss),
            Path::Straight => Ok(true),
            Path::Delayed => {
                if l.shaper.draw_loss() {
                    return Err(Drop::Loss);
                }
                let place = self.hold(lane, info, place)?;
                self.lanes[lane].shaper.propagate(
                    now,
                    Frame {
                        info,
                        place,
                        lost: false,
                    },
                );
                self.agenda.schedule(lane, self.lanes[lane].shaper.next());
                Ok(false)
            }
            Path::Queued => {
                l.shaper.check_room(info.len).map_err(|_| Drop::Queue)?;
                let lost = l.shaper.draw_loss();
                let place = if lost {
                    Place::Nowhere
                } else {
                    self.hold(lane, info, place)?
                };
                self.enqueue(lane, Frame { info, place, lost }, now);
                Ok(false)
            }
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
        let Some(addresses) = info.addresses else {
            return;
        };
        match node.bridge.decide(port, &addresses, at) {
            Verdict::Forward(to) => self.work.push(node.egress[to]),
            Verdict::Filter => node.counters.filtered.add(1),
            Verdict::Flood => {
                node.counters.flooded.add(1);
                let others = node.egress.iter().enumerate().filter(|(p, _)| *p != port);
                self.work.extend(others.map(|(_, lane)| *lane));
            }
        }
        node.counters.learnt.set(node.bridge.learnt() as u64);
    }

    /// Finds a place for a frame that has to wait in `lane` and must not stay where it is. The present place still belongs to
    /// the caller.
    fn hold(&mut self, lane: usize, info: Info, place: Place) -> Result<Place, Drop> {
        if let Sink::Port(port) = self.lanes[lane].sink
            && matches!(place, Place::Sender(_))
        {
            match self.rx[port].as_ref() {
                // Nobody there to receive it: it takes its time on the wire all the same.
                None => return Ok(Place::Nowhere),
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
