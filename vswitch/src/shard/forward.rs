//! The way of a frame from one end of a link to the next.
//!
//! A frame is handed on as a reference to where its bytes are. They are copied when the sender's descriptor is about to be
//! completed while the frame still has to wait ([`Engine::hold`]), or when it has arrived ([`Engine::deliver`]).

use std::sync::Arc;

use super::Notice;
use super::engine::{Engine, Queue, Stopped};
use super::lay_out::{ROOM, lay_out, pieces};
use super::pool::Slot;
use super::tap::tap_delivered;
use crate::capture::{Point, Points};
use crate::clock::Time;
use crate::config::{BridgePlan, Sink};
use crate::counters::{BridgeCounters, Drop};
use crate::frame::{Frame, Info, Place, SenderRef};
use crate::l2::{self, Bridge, Verdict};
use crate::link::{Fate, Path, Transmitted};
use crate::memory::Segment;
use crate::rewiring::BridgeRewiring;
use crate::ring::{Content, NoBuffer, Part, Reservation};

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

    /// What is in the place of a node that is gone.
    pub(super) fn vacant() -> Self {
        Self {
            bridge: Bridge::Hub,
            egress: Vec::new(),
            counters: Arc::default(),
        }
    }

    /// Has other ports, and perhaps other attributes, from now on. The old egress is in `rewiring` afterwards.
    pub(super) fn rewire(&mut self, rewiring: &mut BridgeRewiring) {
        let BridgeRewiring {
            attributes,
            moved,
            egress,
        } = rewiring;
        if let (Bridge::Switch(switch), Some(attributes)) = (&mut self.bridge, attributes) {
            switch.rewire(attributes, moved);
        }
        std::mem::swap(&mut self.egress, egress);
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
        if matches!(frame.place, Place::Sender(_)) {
            let held = self.hold(lane, frame.info, frame.place);
            if let Err(reason) = held {
                self.drop(lane, frame.info, frame.place, reason);
            }
            if !lent {
                self.release(frame.place);
            }
            let Ok(held) = held else { return };
            frame = held;
        }
        self.lanes[lane].shaper.propagate(at, frame);
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
        if self.leave(lane, frame.info, frame.place, at) {
            self.arrivals.push((lane, at));
        }
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
    pub(super) fn touch(&self, lane: usize, info: &mut Info, marked: bool, flipped: Option<u32>) {
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
        let queued = lane.shaper.queued() as u64;
        lane.counters.queued.set(queued);
        lane.counters.queued_max.raise(queued);
    }

    /// Sends a frame through everything it can pass in no time, then what has to be cut, segment by segment.
    fn run_work(&mut self, place: Place, now: Time) {
        self.run_moment(place, now);
        while let Some((lane, info)) = self.to_cut.pop() {
            for n in 0..info.frames() {
                self.work.push((lane, info.segment(n)));
                self.run_moment(place, now);
            }
        }
    }

    fn run_moment(&mut self, place: Place, now: Time) {
        self.moment += 1;
        while let Some((lane, info)) = self.work.pop() {
            // Without a loop a frame enters each direction once; with one, it must not circle in no time.
            if std::mem::replace(&mut self.lanes[lane].entered, self.moment) == self.moment {
                if let Some(bridge) = self.lanes[lane].bridge {
                    self.bridges[bridge].counters.looped.add(1);
                }
                continue;
            }
            if info.superframe().is_some() && self.must_cut(lane, &info) {
                self.to_cut.push((lane, info));
                continue;
            }
            match self.enter(lane, info, place, now) {
                Ok(Some(info)) => {
                    self.leave(lane, info, place, now);
                }
                Ok(None) => {}
                Err(reason) => self.drop(lane, info, place, reason),
            }
        }
    }

    /// Whether a lane tells a superframe from its segments: by the time they take, by what may happen to each, because somebody looks at
    /// them or they leave the lab by a device that takes none whole, or because the receiver's buffers are needed before it arrives and the receiver takes none whole.
    fn must_cut(&self, lane: usize, info: &Info) -> bool {
        let l = &self.lanes[lane];
        if l.tapped != Points::default() {
            return true;
        }
        if let Sink::External(external) = l.sink
            && !self.exports_whole(external, info)
        {
            return true;
        }
        match l.shaper.path() {
            Path::Queued => true,
            Path::Straight => !l.shaper.treats_all_alike(),
            Path::Delayed => {
                let taken = match l.sink {
                    Sink::Port(port) => self.takes_whole(port, info),
                    Sink::Bridge { .. } | Sink::External(_) => true,
                };
                !taken || !l.shaper.treats_all_alike()
            }
        }
    }

    fn takes_whole(&self, port: usize, info: &Info) -> bool {
        let layout = self.rx[port].as_ref().map(|side| side.ring.layout());
        layout.is_none_or(|layout| layout.takes_whole(&info.offload))
    }

    /// A frame that has entered a lane will not leave it. Its place still belongs to the caller.
    #[inline(never)]
    pub(super) fn drop(&mut self, lane: usize, info: Info, place: Place, reason: Drop) {
        self.lanes[lane].counters.drops.count(reason, info.frames());
        self.tap_drop(lane, info, place, reason);
    }

    /// Drops a frame that its sender's guard does not let into a lane. Its place still belongs to the caller.
    #[cold]
    pub(super) fn turn_away(&mut self, lane: usize, info: Info, place: Place, reason: Drop) {
        self.lanes[lane].count_in(&info);
        self.drop(lane, info, place, reason);
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
        l.count_in(&info);
        let up = l.is_up();
        self.tap(lane, Point::Before, &info, &place);
        if !up {
            return Err(Drop::Carrier);
        }
        let l = &mut self.lanes[lane];
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
                let mut fate = self.lanes[lane].shaper.foretell(info.len);
                let frame = match &mut fate {
                    Some(Fate { lost: Some(_), .. }) => self.hold_doomed(lane, info, place),
                    Some(Fate { flipped, .. }) => {
                        let mut frame = self.hold(lane, info, place)?;
                        self.touch(lane, &mut frame.info, false, flipped.take());
                        frame
                    }
                    None => self.hold(lane, info, place)?,
                };
                self.enqueue(lane, frame, marked, fate, now);
                Ok(None)
            }
        }
    }

    /// Sends a frame on its way over a lane without a transmitter, or drops it.
    fn depart(&mut self, lane: usize, mut info: Info, place: Place, fate: Fate, now: Time) {
        if let Some(reason) = fate.lost {
            return self.drop(lane, info, place, reason.into());
        }
        self.touch(lane, &mut info, false, fate.flipped);
        match self.hold(lane, info, place) {
            Ok(frame) => {
                self.lanes[lane].shaper.propagate(now, frame);
                self.agenda.schedule(lane, self.lanes[lane].shaper.next());
            }
            Err(reason) => self.drop(lane, info, place, reason),
        }
    }

    /// A frame is at the other end of a lane: a machine gets it, a bridge puts the lanes it goes on to into `work`. `false` if it was
    /// dropped.
    #[inline]
    fn leave(&mut self, lane: usize, info: Info, place: Place, at: Time) -> bool {
        match self.lanes[lane].sink {
            Sink::Port(port) => {
                let whole = info.superframe().is_none()
                    || matches!(place, Place::Receiver { .. })
                    || self.takes_whole(port, &info);
                let done = if whole {
                    self.deliver(lane, port, &info, place)
                } else {
                    Err(Drop::TooBig)
                };
                match done {
                    Ok(()) => {
                        self.lanes[lane].count_out(&info);
                        true
                    }
                    // Its segments may be welcome.
                    Err(Drop::TooBig) if info.superframe().is_some() => {
                        self.deliver_segments(lane, port, &info, place)
                    }
                    Err(reason) => {
                        self.drop(lane, info, place, reason);
                        false
                    }
                }
            }
            Sink::External(external)
                if info.superframe().is_some() && !self.exports_whole(external, &info) =>
            {
                // Its device is another one than when it set out.
                self.drop(lane, info, place, Drop::TooBig);
                false
            }
            Sink::External(external) => {
                let exported = self.export(lane, external, info, place);
                if let Err(reason) = exported {
                    self.drop(lane, info, place, reason);
                }
                exported.is_ok()
            }
            Sink::Bridge { bridge, port } => {
                self.lanes[lane].count_out(&info);
                self.tap(lane, Point::After, &info, &place);
                self.bridge(bridge, port, info, at);
                true
            }
        }
    }

    /// Hands a superframe that has arrived to the guest of `port` segment by segment; whether it got any.
    fn deliver_segments(&mut self, lane: usize, port: usize, whole: &Info, place: Place) -> bool {
        let mut any = false;
        for n in 0..whole.frames() {
            let info = whole.segment(n);
            match self.deliver(lane, port, &info, place) {
                Ok(()) => {
                    self.lanes[lane].count_out(&info);
                    any = true;
                }
                Err(reason) => self.drop(lane, info, place, reason),
            }
        }
        any
    }

    fn bridge(&mut self, bridge: usize, port: usize, info: Info, at: Time) {
        let node = &mut self.bridges[bridge];
        node.counters.frames.add(info.frames().into());
        let size = l2::Size {
            frames: info.frames(),
            bytes: info.bytes(),
        };
        let frames = u64::from(size.frames);
        let info = info.settled();
        // Every lane that leads to a bridge has had the head read.
        let Some(head) = info.head else {
            return;
        };
        let l2::Decision {
            verdict,
            vlan,
            notice,
        } = node.bridge.decide(port, &head, size, at);
        match verdict {
            Verdict::Forward(to) => match node.bridge.leave(to, vlan, head) {
                Some(head) => self.work.push((node.egress[to], info.with_head(head))),
                None => node.counters.wrong_vlan.add(frames),
            },
            Verdict::Filter => node.counters.filtered.add(frames),
            Verdict::WrongVlan => node.counters.wrong_vlan.add(frames),
            Verdict::Storm => node.counters.storm.add(frames),
            Verdict::Flood => {
                node.counters.flooded.add(frames);
                let others = node.egress.iter().enumerate().filter(|(p, _)| *p != port);
                self.work.extend(others.filter_map(|(to, lane)| {
                    let head = node.bridge.leave(to, vlan, head)?;
                    Some((*lane, info.with_head(head)))
                }));
            }
        }
        node.counters.learnt.set(node.bridge.learnt() as u64);
        node.counters.moved.set(node.bridge.moved());
        if let Some(notice) = notice {
            self.notice(Notice::Bridge { bridge, notice });
        }
    }

    /// Finds a place for a frame that has to wait in `lane` and must not stay where it is. The present place still belongs to
    /// the caller.
    fn hold(&mut self, lane: usize, info: Info, place: Place) -> Result<Frame, Drop> {
        if let Sink::Port(port) = self.lanes[lane].sink
            && let Place::Sender(sender) = place
        {
            match self.rx[port].as_ref() {
                // Nobody there to receive it: it takes its time on the wire all the same.
                None => return Ok(self.hold_doomed(lane, info, place)),
                // Buffers are returned in the order in which they were set aside, so that is only for frames that arrive in
                // the order in which they come here.
                Some(_) if !self.keeps_order(lane, sender) => {}
                // Buffers set aside for later frames would be missing when those in the pool arrive; so once one is in the
                // pool, all are until it is empty.
                Some(_) if self.lanes[lane].pooled == 0 => {
                    if let Ok(reservation) = self.write(lane, port, &info, place) {
                        let generation = self.ports[port].rx_generation;
                        let place = Place::Receiver {
                            generation,
                            reservation,
                        };
                        return Ok(Frame { info, place });
                    }
                }
                Some(_) => {}
            }
        }
        self.hold_in_pool(lane, info, place)
    }

    /// A place for a frame that will not arrive: none, unless somebody wants to see it when it is dropped.
    fn hold_doomed(&mut self, lane: usize, info: Info, place: Place) -> Frame {
        let wanted = self.lanes[lane].tapped.has(Point::Drops);
        let held = wanted.then(|| self.hold_in_pool(lane, info, place));
        held.and_then(Result::ok).unwrap_or(Frame {
            info,
            place: Place::Nowhere,
        })
    }

    /// Copies a frame to the pool, unless it is there already or with its receiver.
    fn hold_in_pool(&mut self, lane: usize, info: Info, place: Place) -> Result<Frame, Drop> {
        let (slot, info) = match place {
            Place::Sender(_) => self.copy_to_pool(lane, info, place)?,
            Place::Pool(slot) => {
                self.pool.share(slot);
                (slot, info)
            }
            Place::Receiver { .. } | Place::Nowhere => return Ok(Frame { info, place }),
        };
        self.lanes[lane].pooled += 1;
        let place = Place::Pool(slot);
        Ok(Frame { info, place })
    }

    /// Copies a frame from its sender's buffers to the pool; what is known of it there.
    pub(super) fn copy_to_pool(
        &mut self,
        lane: usize,
        info: Info,
        place: Place,
    ) -> Result<(Slot, Info), Drop> {
        let pieces = pieces(&self.tx, &self.ports, place)?;
        let mut room = [0; ROOM];
        // A segment is put together; anything else stays as it lies, its head is written when it is copied again.
        let (start, rest, len, info) = if info.segment.is_some() {
            let (start, rest) = lay_out(&info, pieces, &mut room)?;
            (start, rest, info.len, info.alone())
        } else {
            let (skip, len) = (0, info.stored_len());
            (&[][..], Part { pieces, skip, len }, len, info)
        };
        let fill = |bytes: &mut [u8]| {
            let (head, tail) = bytes.split_at_mut(start.len());
            head.copy_from_slice(start);
            rest.copy(tail);
        };
        let slot = self.pool.store(len as usize, fill).ok_or(Drop::Pool)?;
        let counters = &self.lanes[lane].counters;
        counters.bytes_copied.add(info.bytes());
        counters.pool_copies.add(info.frames().into());
        Ok((slot, info))
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
    fn deliver(&mut self, lane: usize, port: usize, info: &Info, place: Place) -> Result<(), Drop> {
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
            ecn.mark(|at, change| side.ring.update(reservation, at, change));
        }
        if let Some(bit) = info.flipped {
            // On a wire there was a checksum before there was an error.
            if let Some(checksum) = info.offload.checksum
                && side.ring.layout().takes_partial()
            {
                side.ring.complete_checksum(reservation, checksum);
            }
            let flip = |byte| byte ^ 1 << (bit % 8);
            side.ring.update(reservation, bit / 8, flip);
        }
        if self.lanes[lane].tapped.has(Point::After) {
            tap_delivered(
                &mut self.taps,
                lane,
                self.now,
                info,
                &side.ring,
                reservation,
            );
        }
        side.ring.deliver(reservation);
        side.mark_dirty(port, &mut self.dirty_rx);
        Ok(())
    }

    /// Copies a frame into buffers of the guest of `port`, which does not see them yet.
    #[inline]
    fn write(
        &mut self,
        lane: usize,
        port: usize,
        info: &Info,
        place: Place,
    ) -> Result<Reservation, Drop> {
        let pooled: Segment;
        let pieces = match place {
            Place::Sender(_) => pieces(&self.tx, &self.ports, place)?,
            Place::Pool(slot) => {
                pooled = self.pool.segment(slot);
                std::slice::from_ref(&pooled)
            }
            Place::Receiver { .. } | Place::Nowhere => return Err(Drop::Disconnected),
        };
        let side = self.rx[port]
            .as_mut()
            .filter(|side| !side.broken)
            .ok_or(Drop::Disconnected)?;
        let mut room;
        let (start, rest) = if info.offload.gso.is_some() || info.head.is_some() {
            room = [0; ROOM];
            lay_out(info, pieces, &mut room)?
        } else {
            let (skip, len) = (0, info.len);
            (&[][..], Part { pieces, skip, len })
        };
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
        let content = Content {
            start,
            rest,
            offload: info.alone().offload,
        };
        side.ring.fill(reservation, content);
        let counters = &self.lanes[lane].counters;
        counters.bytes_copied.add(info.bytes());
        Ok(reservation)
    }
}
