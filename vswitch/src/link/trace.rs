//! Transmission at the times of a Mahimahi trace.

use std::sync::Arc;
use std::time::Duration;

use topology::model;

use crate::clock::Time;

/// Bytes of an opportunity: an IP packet of 1500 bytes and the four of Mahimahi's TUN device.
const OPPORTUNITY: u32 = 1504;
/// What a frame counts as: without its Ethernet header, with the four bytes of a TUN device.
const LESS: u32 = 10;

/// A transmitter that can send [`OPPORTUNITY`] bytes at each time of a trace, again and again.
///
/// An opportunity at *t* serves the frames that came before *t*, the oldest first, as far as it goes; a frame larger than what is left
/// takes the rest from the following ones and is transmitted when it is complete. What nobody needs is wasted.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    times: Arc<model::Trace>,
    /// When the trace began.
    origin: Time,
    /// The number of the present opportunity, counted through all repetitions.
    present: u64,
    /// Bytes left in it.
    left: u32,
    /// Whether any opportunity has been used.
    used: bool,
}

impl Trace {
    pub(super) fn new(times: Arc<model::Trace>, origin: Time) -> Self {
        Self {
            times,
            origin,
            present: 0,
            left: OPPORTUNITY,
            used: false,
        }
    }

    /// When opportunity `n` is.
    fn at(&self, n: u64) -> Time {
        let times = &self.times.opportunities;
        let count = times.len() as u64;
        let period = times.last().copied().unwrap_or_default();
        let round = period.as_nanos().saturating_mul(u128::from(n / count));
        let round = Duration::from_nanos(u64::try_from(round).unwrap_or(u64::MAX));
        self.origin + round + times[(n % count) as usize]
    }

    /// The first opportunity after `now`.
    fn first_after(&self, now: Time) -> u64 {
        let times = &self.times.opportunities;
        let since = now.since(self.origin);
        let period = times.last().map_or(1, Duration::as_nanos).max(1);
        let round = since.as_nanos() / period;
        let within = Duration::from_nanos((since.as_nanos() % period) as u64);
        if now < self.origin {
            return 0;
        }
        // At a multiple of the period the last opportunity of the round before is now as well, but not after it.
        let index = times.partition_point(|at| *at <= within);
        (round as u64) * times.len() as u64 + index as u64
    }

    /// When the next transmission can begin: of a frame that has come at `arrived` and found none before it, or, without that, of
    /// one that was waiting when the last was complete.
    pub(super) fn begin(&mut self, arrived: Option<Time>) -> Time {
        if arrived.is_some() || self.left == 0 {
            let next = if self.used { self.present + 1 } else { 0 };
            let after = arrived.map_or(0, |at| self.first_after(at));
            self.present = next.max(after);
            self.left = OPPORTUNITY;
            self.used = true;
        }
        self.at(self.present)
    }

    /// Transmits a frame of `len` bytes from where [`Trace::begin`] said on; returns when it is complete.
    pub(super) fn transmit(&mut self, len: u32) -> Time {
        let mut missing = len.saturating_sub(LESS);
        while missing > self.left {
            missing -= self.left;
            self.present += 1;
            self.left = OPPORTUNITY;
        }
        self.left -= missing;
        self.at(self.present)
    }

    /// The mean time for 1000 bytes.
    pub(super) fn typical(&self) -> Duration {
        let times = &self.times.opportunities;
        let period = times.last().map_or(0, Duration::as_nanos);
        let ns = period * 1000 / (u128::from(OPPORTUNITY) * times.len() as u128);
        Duration::from_nanos(ns as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn trace(ms: &[u64]) -> Trace {
        let opportunities = ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        Trace::new(Arc::new(model::Trace { opportunities }), Time::ZERO)
    }

    /// The end of the transmission of a frame that came at `since`.
    fn send(trace: &mut Trace, since: u64, len: u32) -> u64 {
        let waited = trace.used && since < trace.at(trace.present).as_nanos();
        trace.begin((!waited).then_some(Time::from_nanos(since)));
        trace.transmit(len).as_nanos()
    }

    #[test]
    fn one_full_packet_per_opportunity() {
        let mut t = trace(&[1, 3, 3, 10]);
        let ends: Vec<u64> = (0..6).map(|_| send(&mut t, 0, 1514) / MS).collect();
        assert_eq!(ends, [1, 3, 3, 10, 11, 13], "it repeats after 10 ms");
    }

    #[test]
    fn what_is_left_serves_the_next_and_what_is_missing_comes_later() {
        let mut t = trace(&[1, 2, 3, 4]);
        // 752 bytes twice are one opportunity; the third needs the next.
        assert_eq!(
            [762, 762, 762].map(|len| send(&mut t, 0, len) / MS),
            [1, 1, 2]
        );
        // 752 of 1504 are left at 2 ms, the rest of 1504 comes at 3 ms.
        assert_eq!(send(&mut t, 0, 1514) / MS, 3);
        // One that needs more than two.
        assert_eq!(send(&mut t, 0, 10 + 752 + 1504 + 1) / MS, 5);
    }

    #[test]
    fn opportunities_without_frames_are_wasted() {
        let mut t = trace(&[1, 2, 3, 4]);
        assert_eq!(send(&mut t, 0, 110) / MS, 1);
        // Came at the moment of an opportunity: that is over.
        assert_eq!(send(&mut t, MS, 110) / MS, 2);
        assert_eq!(send(&mut t, 2 * MS + 1, 110) / MS, 3);
        assert_eq!(send(&mut t, 10 * MS + 1, 110) / MS, 11);
    }

    proptest! {
        /// Against a list of all opportunities, walked from the front for each frame, as Mahimahi does it.
        #[test]
        fn as_a_walk_through_the_list(
            gaps in prop::collection::vec(0u64..4, 1..12),
            frames in prop::collection::vec((0u64..6_000_000, 14u32..4000), 1..60),
        ) {
            let mut at = 0;
            let mut times: Vec<u64> = gaps.iter().map(|gap| { at += gap; at }).collect();
            if at == 0 {
                times.push(1);
            }
            let mut t = trace(&times);
            let period = *times.last().unwrap();
            let all: Vec<u64> = (0..4000).flat_map(|round| times.iter().map(move |t| (t + round * period) * MS)).collect();
            let (mut now, mut end, mut index, mut left) = (0, 0, 0, 1504);
            for (gap, len) in frames {
                now += gap;
                // Those that were not there before the frame came, or are used up, do not serve it.
                while left == 0 || all[index] <= now || all[index] < end {
                    index += 1;
                    left = 1504;
                }
                let mut missing = len.saturating_sub(10);
                while missing > left {
                    missing -= left;
                    index += 1;
                    left = 1504;
                }
                left -= missing;
                end = all[index];
                prop_assert_eq!(send(&mut t, now, len), end);
            }
        }
    }
}
