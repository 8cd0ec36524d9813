//! Changes of links while traffic runs.

use topology::model::Patch;

use super::Notice;
use super::engine::Engine;
use crate::clock::Time;
use crate::config::{LinkChange, Sink};
use crate::frame::Place;
use crate::l2::Head;

impl Engine {
    /// Sets new attributes of a link, all from `now` on.
    pub fn change(&mut self, change: &LinkChange, now: Time) {
        self.now = now;
        // What was due before it follows the old ones.
        self.run_events(now);
        self.change_link(change, now);
    }

    /// As [`Engine::change`], when nothing is due before it.
    pub(super) fn change_link(&mut self, change: &LinkChange, now: Time) {
        for (lane, patch) in change.lanes.into_iter().zip(&change.set) {
            self.change_lane(lane, patch, now);
        }
    }

    fn change_lane(&mut self, lane: usize, patch: &Patch, now: Time) {
        if patch.is_empty() {
            return;
        }
        let l = &mut self.lanes[lane];
        let was_up = l.attributes.up;
        patch.apply(&mut l.attributes);
        let up = l.attributes.up;
        if up != was_up {
            // However many there are: somebody acts on each.
            self.notices.push(Notice::Carrier { lane, up });
        }
        let was_ordered = l.shaper.is_ordered();
        l.shaper.change(now, &l.attributes);
        self.classifies |= l.shaper.looks_at_headers();
        if was_ordered && !l.shaper.is_ordered() {
            self.unbind(lane);
        }
        self.agenda.schedule(lane, self.lanes[lane].shaper.next());
        self.release_dropped(lane);
        self.note_queue(lane);
        self.unblock(lane, now);
    }

    /// Moves frames that wait in the receiver's buffers for their transmission to the pool, as they may be dropped, or overtaken, from now
    /// on. Theirs are the last buffers that were set aside: those before them are of frames on their way.
    fn unbind(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        let Sink::Port(port) = lane.sink else { return };
        let Some(side) = &mut self.rx[port] else {
            return;
        };
        let (pool, current) = (&mut self.pool, self.ports[port].rx_generation);
        let (pooled, counters) = (&mut lane.pooled, &lane.counters);
        let mut buffers = 0;
        lane.shaper.each_unsent(&mut |frame| {
            let Place::Receiver {
                generation,
                reservation,
            } = frame.place
            else {
                return;
            };
            if generation != current {
                return;
            }
            buffers += reservation.count();
            let read = |out: &mut [u8]| side.ring.read(reservation, out);
            frame.info = frame.info.alone();
            if !side.ring.layout().takes_partial() {
                // It was completed when the frame was copied.
                frame.info.offload.checksum = None;
            }
            frame.place = match pool.store(frame.info.len as usize, read) {
                Some(slot) => {
                    // What was written is how the frame begins on the wire.
                    frame.info.head = frame.info.head.map(Head::written);
                    *pooled += 1;
                    counters.pool_copies.add(1);
                    counters.bytes_copied.add(frame.info.len.into());
                    Place::Pool(slot)
                }
                None => Place::Nowhere,
            };
        });
        side.ring.unreserve(buffers);
    }
}
