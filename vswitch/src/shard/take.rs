//! Frames out of the guests' rings, into the lanes they lead to.

use super::Patience;
use super::engine::{Engine, Polling, Queue, RxSide, Stopped, TxSide};
use crate::capture::Point;
use crate::classify::{self, Class, classify};
use crate::clock::Time;
use crate::config::Sink;
use crate::counters::Drop;
use crate::frame::{self, Frame, Info, Place, SenderRef};
use crate::l2::{HEAD_BYTES, Head};
use crate::ring::Taken;

/// Frames sent from one ring before others get their turn; a superframe counts as its segments.
const TURN: usize = 64;

impl TxSide {
    /// What disciplines may know of the frame at `head`, if there are any that ask.
    #[inline]
    pub(super) fn class(&self, head: u16, asked: bool) -> Class {
        if !asked {
            return Class::default();
        }
        let mut headers = [0; classify::HEADER_BYTES];
        let len = self.ring.peek(head, &mut headers);
        classify(&headers[..len])
    }

    /// Remembers that the guest is to be shown what is completed.
    #[inline]
    pub(super) fn mark_dirty(&mut self, port: usize, dirty: &mut Vec<usize>) {
        if !self.dirty {
            self.dirty = true;
            dirty.push(port);
        }
    }
}

impl RxSide {
    /// Remembers that the guest is to be shown what has arrived.
    #[inline]
    pub(super) fn mark_dirty(&mut self, port: usize, dirty: &mut Vec<usize>) {
        if !self.dirty {
            self.dirty = true;
            dirty.push(port);
        }
    }
}

impl Engine {
    pub(super) fn poll_rings(&mut self, now: Time) -> bool {
        let mut busy = false;
        let mut i = 0;
        while i < self.polled.len() {
            let port = self.polled[i];
            let taken = self.poll(port, now);
            if taken > 0 {
                busy = true;
                self.counters.batches.add(1);
                self.counters.batch_frames.add(taken as u64);
                self.publish();
            }
            let Patience { linger, keep, .. } = self.patience;
            let is_one_too_many = self.polled.len() > keep;
            let Some(side) = &mut self.tx[port] else {
                self.polled.swap_remove(i);
                continue;
            };
            if taken > 0 {
                side.last_work = now;
            } else if is_one_too_many
                && side.state == Polling::Polled
                && now.since(side.last_work) >= linger
            {
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
        let mut batch = std::mem::take(&mut self.batch);
        let taken = self.poll_batch(port, &mut batch, now);
        batch.clear();
        self.batch = batch;
        taken
    }

    fn poll_batch(&mut self, port: usize, batch: &mut Vec<Taken>, now: Time) -> usize {
        let Some(side) = &mut self.tx[port] else {
            return 0;
        };
        let violation = side.ring.take_batch(batch);
        let egress = self.ports[port].egress;
        let passed = egress.map_or(0, |lane| self.pass(port, lane, batch, now));
        let mut sent = passed;
        for (n, taken) in batch.iter().enumerate().skip(passed) {
            let is_blocked = egress.is_some_and(|lane| self.is_blocked(lane));
            if is_blocked || sent >= TURN {
                if let Some(side) = &mut self.tx[port] {
                    side.ring.put_back((batch.len() - n) as u16);
                    if is_blocked {
                        side.state = Polling::Blocked;
                    }
                }
                return n;
            }
            sent += self.taken(port, egress, *taken, now) as usize;
        }
        if let Some(violation) = violation {
            if let Some(side) = &mut self.tx[port] {
                side.state = Polling::Broken;
            }
            self.stop(Stopped {
                port,
                queue: Queue::Transmit,
                violation,
            });
        }
        batch.len()
    }

    /// Whether the ring that feeds a lane has to wait for its transmitter.
    #[inline]
    fn is_blocked(&self, lane: usize) -> bool {
        let lane = &self.lanes[lane];
        lane.holds_sender().is_some() && !lane.shaper.has_room(0)
    }

    /// Sends a frame just taken on its way; returns how many it is on a wire.
    #[inline]
    fn taken(&mut self, port: usize, egress: Option<usize>, taken: Taken, now: Time) -> u32 {
        let Taken { head, len, offload } = taken;
        let sender = SenderRef {
            port,
            generation: self.ports[port].tx_generation,
            head,
        };
        let place = Place::Sender(sender);
        let Some(offload) = offload.ok().filter(|_| frame::LENGTHS.contains(&len)) else {
            self.ports[port].counters.malformed.add(1);
            self.release(place);
            return 1;
        };
        let Some(lane) = egress else {
            self.ports[port].counters.unlinked.add(1);
            self.release(place);
            return 1;
        };
        let mut info = Info::new(len, offload);
        let guard = &self.ports[port].guard;
        let allowed = guard.check_len(len, info.superframe());
        if guard.is_locked() || allowed.is_err() {
            match allowed {
                Ok(()) => self.send_guarded(lane, info, sender, now),
                Err(reason) => self.turn_away(lane, info, place, reason),
            }
            self.release(place);
            return info.frames();
        }
        if let Some(side) = &self.tx[port] {
            if matches!(self.lanes[lane].sink, Sink::Bridge { .. }) {
                let mut start = [0; HEAD_BYTES];
                let len = side.ring.peek(head, &mut start);
                info.head = Head::read(&start[..len]);
            }
            info.class = side.class(head, self.classifies);
        }
        if self.lanes[lane].holds_sender().is_some() {
            self.enter_held(lane, info, sender, now);
        } else {
            self.send(lane, info, place, now);
            self.release(place);
        }
        info.frames()
    }

    /// Sends a frame of a locked interface, if it is in the right name: what is looked at is a copy, and goes on in the frame's place.
    fn send_guarded(&mut self, lane: usize, mut info: Info, sender: SenderRef, now: Time) {
        let place = Place::Sender(sender);
        let copy = match self.copy_to_pool(lane, info, place) {
            Ok((slot, _)) => slot,
            Err(reason) => return self.turn_away(lane, info, place, reason),
        };
        let bytes = self.pool.bytes(copy);
        let allowed = self.ports[sender.port].guard.check(bytes);
        if matches!(self.lanes[lane].sink, Sink::Bridge { .. }) {
            info.head = Head::read(bytes);
        }
        if self.classifies {
            info.class = classify(&bytes[..bytes.len().min(classify::HEADER_BYTES)]);
        }
        let place = Place::Pool(copy);
        match allowed {
            Ok(()) => self.send(lane, info, place, now),
            Err(reason) => self.turn_away(lane, info, place, reason),
        }
        self.release(place);
    }

    /// `completion: nic`: the frame waits in the sender's buffers until it is transmitted, a superframe until all its segments are.
    fn enter_held(&mut self, lane: usize, info: Info, sender: SenderRef, now: Time) {
        let place = Place::Sender(sender);
        let frames = info.frames();
        if frames > 1
            && let Some(side) = &mut self.tx[sender.port]
        {
            side.ring.share(sender.head, frames as u16 - 1);
        }
        for n in 0..frames {
            let info = info.segment(n);
            self.lanes[lane].count_in(&info);
            self.tap(lane, Point::Before, &info, &place);
            if !self.lanes[lane].is_up() {
                self.drop(lane, info, place, Drop::Carrier);
                self.release(place);
                continue;
            }
            let admitted = self.lanes[lane].shaper.admit(now, info.header(), true);
            self.release_dropped(lane);
            match admitted {
                Ok(marked) => self.enqueue(lane, Frame { info, place }, marked, None, now),
                Err(reason) => {
                    self.drop(lane, info, place, reason.into());
                    self.release(place);
                }
            }
        }
    }
}
