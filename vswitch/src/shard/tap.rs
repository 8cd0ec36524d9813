//! Frames shown to captures.

use super::engine::Engine;
use super::lay_out::{ROOM, lay_out, pieces};
use crate::capture::{Bytes, Point, Points, Tap, View};
use crate::clock::Time;
use crate::counters::Drop;
use crate::frame::{Info, Place};
use crate::memory::Segment;
use crate::ring::{Content, Part, Reservation, RxRing};

impl Engine {
    /// Lets a capture look at frames from now on.
    pub fn add_tap(&mut self, tap: Tap) {
        self.taps.push(tap);
        self.note_taps();
    }

    /// Lets go of the tap of a capture.
    pub fn remove_tap(&mut self, capture: u64) -> Option<Tap> {
        let index = self.taps.iter().position(|tap| tap.capture() == capture)?;
        let tap = self.taps.swap_remove(index);
        self.note_taps();
        Some(tap)
    }

    fn note_taps(&mut self) {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            let points = self.taps.iter().map(|tap| tap.points(number));
            lane.tapped = points.fold(Points::default(), Points::and);
        }
    }

    /// Shows a frame that passes a point of a lane to the captures that want it.
    #[inline]
    pub(super) fn tap(&mut self, lane: usize, point: Point, info: &Info, place: &Place) {
        if self.lanes[lane].tapped.has(point) {
            self.show((lane, point), *info, *place, None);
        }
    }

    /// The same for a frame that is dropped.
    pub(super) fn tap_drop(&mut self, lane: usize, info: Info, place: Place, reason: Drop) {
        if self.lanes[lane].tapped.has(Point::Drops) {
            self.show((lane, Point::Drops), info, place, Some(reason));
        }
    }

    // By value, so that what the caller has in registers is put into memory only when somebody looks.
    #[cold]
    #[inline(never)]
    fn show(&mut self, at: (usize, Point), info: Info, place: Place, reason: Option<Drop>) {
        let pooled: Segment;
        let pieces = match place {
            Place::Sender(_) => pieces(&self.tx, &self.ports, place).unwrap_or_default(),
            Place::Pool(slot) => {
                pooled = self.pool.segment(slot);
                std::slice::from_ref(&pooled)
            }
            // It is dropped with the ring whose buffers it was in, or has been nowhere.
            Place::Receiver { .. } | Place::Nowhere => &[],
        };
        let mut room = [0; ROOM];
        // Without pieces, or with headers that have changed in the meantime, there is nothing to be seen.
        let laid_out = Some(pieces).filter(|pieces| !pieces.is_empty());
        let laid_out = laid_out.and_then(|pieces| lay_out(&info, pieces, &mut room).ok());
        let (start, rest) = laid_out.unwrap_or_default();
        let offload = info.offload;
        let content = Content {
            start,
            rest,
            offload,
        };
        let checksum = content.checksum();
        let frame = View::new(&info, start, rest);
        for tap in &mut self.taps {
            tap.record(at, self.now, &frame, reason, &|mut bytes| {
                complete(checksum, &mut bytes);
                on_arrival(&info, bytes);
            });
        }
    }
}

/// Shows a frame that is in the buffers of its receiver to the captures that want it.
#[cold]
#[inline(never)]
pub(super) fn tap_delivered(
    taps: &mut [Tap],
    lane: usize,
    now: Time,
    info: &Info,
    ring: &RxRing,
    reservation: Reservation,
) {
    let pieces = ring.pieces(reservation);
    let rest = Part {
        pieces: &pieces,
        skip: 0,
        len: info.len,
    };
    // Where it was not left to the receiver, it is complete.
    let left = ring.layout().takes_partial() && info.flipped.is_none();
    let content = Content {
        start: &[],
        rest,
        offload: info.offload,
    };
    let checksum = content.checksum().filter(|_| left);
    let frame = View::new(info, &[], rest);
    for tap in taps {
        tap.record((lane, Point::After), now, &frame, None, &|mut bytes| {
            complete(checksum, &mut bytes);
        });
    }
}

/// Completes a checksum, as it is on a wire.
fn complete(checksum: Option<(u32, u16)>, bytes: &mut Bytes<'_>) {
    let Some((at, sum)) = checksum else { return };
    for (at, byte) in (at..).zip(sum.to_be_bytes()) {
        bytes.update(at, |_| byte);
    }
}

/// Does to the bytes what will be done to them when the frame arrives.
fn on_arrival(info: &Info, mut bytes: Bytes<'_>) {
    if info.marked
        && let Some(ecn) = info.class.ecn
    {
        ecn.mark(|at, change| bytes.update(at, change));
    }
    if let Some(bit) = info.flipped {
        bytes.update(bit / 8, |byte| byte ^ 1 << (bit % 8));
    }
}
