//! The way of frames over a link that does nothing to them, from machine to machine: a batch at a time.
//!
//! It does what [`Engine::send`] would do to each, in steps over the whole batch, so that the processor can fetch the
//! buffers of the later ones, which the guests' processors have, while it works on the first.

use super::engine::Engine;
use crate::capture::Points;
use crate::config::Sink;
use crate::frame;
use crate::ring::{BATCH, Content, Part, Taken};

impl Engine {
    /// Hands frames just taken from `port` to the port where `lane` leads, if `lane` does nothing to them: from the first to the last
    /// that is as frames nearly always are. Returns how many.
    pub(super) fn pass(&mut self, port: usize, lane: usize, batch: &[Taken]) -> usize {
        let l = &self.lanes[lane];
        let Sink::Port(receiver) = l.sink else {
            return 0;
        };
        if !l.is_up() || !l.shaper.is_transparent() || l.tapped != Points::default() {
            return 0;
        }
        let Some(rx) = self.rx[receiver].as_mut().filter(|side| !side.broken) else {
            return 0;
        };
        let Some(tx) = &mut self.tx[port] else {
            return 0;
        };
        let is_plain = |taken: &Taken| {
            taken.offload.is_ok_and(|o| o.gso.is_none()) && frame::LENGTHS.contains(&taken.len)
        };
        let plain = batch.iter().take_while(|taken| is_plain(taken)).count();
        let mut heads = [0; BATCH];
        let n = rx.ring.reserve_batch(&batch[..plain], &mut heads);
        if n == 0 {
            return 0;
        }
        let (batch, heads) = (&batch[..n], &heads[..n]);

        let mut bytes = 0;
        for (taken, head) in batch.iter().zip(heads) {
            let offload = taken.offload.unwrap_or_default();
            let plain = offload.checksum.is_none();
            let piece = tx.ring.single(taken.head).filter(|_| plain);
            if !piece.is_some_and(|piece| rx.ring.fill_single(*head, piece)) {
                let rest = Part {
                    pieces: tx.ring.pieces(taken.head),
                    skip: 0,
                    len: taken.len,
                };
                let content = Content {
                    start: &[],
                    rest,
                    offload,
                };
                rx.ring.fill_one(*head, content);
            }
            bytes += u64::from(taken.len);
        }
        rx.ring.deliver_batch(heads);
        tx.ring.complete_batch(batch);
        if !rx.dirty {
            rx.dirty = true;
            self.dirty_rx.push(receiver);
        }
        if !tx.dirty {
            tx.dirty = true;
            self.dirty_tx.push(port);
        }
        let (counters, n) = (&l.counters, n as u64);
        counters.in_frames.add(n);
        counters.in_bytes.add(bytes);
        counters.out_frames.add(n);
        counters.out_bytes.add(bytes);
        counters.bytes_copied.add(bytes);
        n as usize
    }
}
