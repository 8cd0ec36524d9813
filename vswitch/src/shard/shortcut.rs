//! The way of frames from machine to machine as it nearly always is: a batch at a time.
//!
//! It does what [`Engine::send`] and [`Engine::arrived`] would do to each, in steps over the whole batch, so that the processor can fetch
//! the buffers of the later ones, which the guests' processors have, while it works on the first.

use super::engine::{Engine, Lane, RxSide, TxSide};
use crate::capture::Points;
use crate::clock::Time;
use crate::config::Sink;
use crate::frame::{self, Frame, Info, Place};
use crate::offload::Offload;
use crate::ring::{BATCH, Content, Part, Reservation, RxRing, Taken, TxRing};

impl Engine {
    /// Sends frames just taken from `port` to the port where `lane` leads, if `lane` does nothing to them or lets them wait in the
    /// receiver's buffers: from the first to the last that is as frames nearly always are. Returns how many.
    pub(super) fn pass(&mut self, port: usize, lane: usize, batch: &[Taken], now: Time) -> usize {
        let l = &mut self.lanes[lane];
        let Sink::Port(receiver) = l.sink else {
            return 0;
        };
        let transparent = l.shaper.is_transparent();
        let waits = l.shaper.foresees() && l.holds_sender().is_none() && l.pooled == 0;
        if !l.is_up() || !(transparent || waits) || l.tapped != Points::default() {
            return 0;
        }
        let Some(rx) = self.rx[receiver].as_mut().filter(|side| !side.broken) else {
            return 0;
        };
        let Some(tx) = &mut self.tx[port] else {
            return 0;
        };
        let guard = &self.ports[port].guard;
        if guard.is_locked() {
            return 0;
        }
        let lengths = frame::MIN_LEN..=guard.longest();
        let is_plain = |taken: &Taken| {
            taken.offload.is_ok_and(|o| o.gso.is_none()) && lengths.contains(&taken.len)
        };
        let plain = batch.iter().take_while(|taken| is_plain(taken)).count();
        let mut heads = [0; BATCH];
        let n = rx.ring.reserve_batch(&batch[..plain], &mut heads);
        if n == 0 {
            return 0;
        }
        let (batch, heads) = (&batch[..n], &heads[..n]);
        let n = if transparent {
            show(l, tx, rx, batch, heads);
            rx.mark_dirty(receiver, &mut self.dirty_rx);
            n
        } else {
            let generation = self.ports[receiver].rx_generation;
            let classifies = self.classifies;
            let kept = Kept {
                generation,
                classifies,
                now,
            };
            let n = l.keep(tx, rx, batch, heads, kept);
            self.agenda.schedule(lane, l.shaper.next());
            self.note_queue(lane);
            n
        };
        if let Some(tx) = &mut self.tx[port] {
            tx.ring.complete_batch(&batch[..n]);
            tx.mark_dirty(port, &mut self.dirty_tx);
        }
        n
    }

    /// Shows the guest where `lane` leads what has arrived not after `until`, no more than `most` frames: from the first to the last that
    /// is as frames nearly always are. Returns how many.
    pub(super) fn land(&mut self, lane: usize, until: Time, most: usize) -> usize {
        let l = &mut self.lanes[lane];
        let Sink::Port(receiver) = l.sink else {
            return 0;
        };
        // What is in the place of a direction that is gone leads nowhere, and may still be on the agenda.
        let rx = self.rx.get_mut(receiver).and_then(Option::as_mut);
        let Some(rx) = rx.filter(|side| !side.broken) else {
            return 0;
        };
        if l.tapped != Points::default() {
            return 0;
        }
        let current = self.ports[receiver].rx_generation;
        let most = most.min(BATCH);
        let arrivals = &mut self.arrivals;
        let mut heads = [0; BATCH];
        let (mut n, mut bytes) = (0, 0);
        l.shaper.arrive(until, |at, frame| {
            let Frame { info, place } = frame;
            let Place::Receiver {
                generation,
                reservation,
            } = place
            else {
                return false;
            };
            let is_plain = info.superframe().is_none() && !info.marked && info.flipped.is_none();
            let head = reservation
                .single()
                .filter(|_| is_plain && *generation == current);
            let Some(head) = head.filter(|_| n < most) else {
                return false;
            };
            heads[n] = head;
            n += 1;
            bytes += u64::from(info.len);
            arrivals.push((lane, at));
            true
        });
        if n == 0 {
            return 0;
        }
        rx.ring.deliver_batch(&heads[..n]);
        rx.mark_dirty(receiver, &mut self.dirty_rx);
        l.counters.out_frames.add(n as u64);
        l.counters.out_bytes.add(bytes);
        n
    }
}

/// Copies frames into the buffers `heads` and shows them to the guest.
fn show(lane: &Lane, tx: &TxSide, rx: &mut RxSide, batch: &[Taken], heads: &[u16]) {
    let mut bytes = 0;
    for (taken, head) in batch.iter().zip(heads) {
        copy(&tx.ring, &mut rx.ring, taken, *head);
        bytes += u64::from(taken.len);
    }
    rx.ring.deliver_batch(heads);
    let (counters, n) = (&lane.counters, batch.len() as u64);
    counters.in_frames.add(n);
    counters.in_bytes.add(bytes);
    counters.out_frames.add(n);
    counters.out_bytes.add(bytes);
    counters.bytes_copied.add(bytes);
}

/// How frames are kept that wait in the buffers of their receiver.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// The start of the receiver's ring.
    generation: u32,
    /// A discipline of the shard looks at headers.
    classifies: bool,
    now: Time,
}

impl Lane {
    /// Copies those of the frames that will arrive into as many of the buffers `heads`, and gives the others back. Returns how many frames
    /// have entered.
    fn keep(
        &mut self,
        tx: &TxSide,
        rx: &mut RxSide,
        batch: &[Taken],
        heads: &[u16],
        kept: Kept,
    ) -> usize {
        let now = kept.now;
        let (mut entered, mut used) = (0, 0);
        let (mut bytes, mut copied) = (0, 0);
        for taken in batch {
            // Buffers that were set aside for other frames.
            if rx.ring.room(heads[used]) < taken.len {
                break;
            }
            entered += 1;
            bytes += u64::from(taken.len);
            let mut info = Info {
                class: tx.class(taken.head, kept.classifies),
                ..Info::new(taken.len, taken.offload.unwrap_or_default())
            };
            let header = info.header();
            if let Err(reason) = self.shaper.admit(now, header, false) {
                self.counters.drops.count(reason.into(), 1);
                continue;
            }
            // What is foreseen leaves in order, so it can be foretold.
            let fate = self.shaper.foretell(taken.len).unwrap_or_default();
            let place = if fate.lost.is_some() {
                Place::Nowhere
            } else {
                let head = heads[used];
                used += 1;
                copied += u64::from(taken.len);
                copy(&tx.ring, &mut rx.ring, taken, head);
                if fate.flipped.is_some() {
                    self.counters.corrupted.add(1);
                    info.flipped = fate.flipped;
                }
                Place::Receiver {
                    generation: kept.generation,
                    reservation: Reservation::of(head),
                }
            };
            let frame = Frame { info, place };
            self.shaper.enqueue(now, frame, header, false, Some(fate));
        }
        rx.ring.unreserve((heads.len() - used) as u16);
        self.counters.in_frames.add(entered as u64);
        self.counters.in_bytes.add(bytes);
        self.counters.bytes_copied.add(copied);
        entered
    }
}

/// Copies a frame into the buffer `head` of its receiver.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call for each frame shows")]
fn copy(tx: &TxRing, rx: &mut RxRing, taken: &Taken, head: u16) {
    let offload = taken.offload.unwrap_or_default();
    let piece = tx.single(taken.head).filter(|_| offload.checksum.is_none());
    if !piece.is_some_and(|piece| rx.fill_single(head, piece)) {
        copy_pieces(tx, rx, taken, head, offload);
    }
}

/// The same, if it is not one piece into one piece.
#[inline(never)]
fn copy_pieces(tx: &TxRing, rx: &mut RxRing, taken: &Taken, head: u16, offload: Offload) {
    let rest = Part {
        pieces: tx.pieces(taken.head),
        skip: 0,
        len: taken.len,
    };
    let content = Content {
        start: &[],
        rest,
        offload,
    };
    rx.fill(Reservation::of(head), content);
}
