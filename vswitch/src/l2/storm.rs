//! A limit on what a port may send to all.

use std::time::Duration;

use topology::quantity::{Rate, StormLimit};

use super::Size;
use crate::clock::Time;

/// How much of a second may come at once.
const BURST: Duration = Duration::from_millis(100);
const SECOND: u64 = 1_000_000_000;

/// Lets so much per second pass: the generic cell rate algorithm (ITU-T I.371), which keeps one time instead of a
/// number of tokens.
#[derive(Debug, Clone)]
pub struct Storm {
    limit: StormLimit,
    /// When the next frame would come if all came at equal distances.
    expected: Time,
}

impl Storm {
    /// A limit that has not been used yet.
    pub fn new(limit: StormLimit) -> Self {
        Self {
            limit,
            expected: Time::ZERO,
        }
    }

    /// Goes on from where `before`, perhaps with another limit, has been.
    pub fn resume(&mut self, before: &Self) {
        self.expected = before.expected;
    }

    /// Whether a frame that comes at `now` may pass. One always may after a while without any.
    pub fn passes(&mut self, size: Size, now: Time) -> bool {
        if self.expected > now + BURST {
            return false;
        }
        let cost = match self.limit {
            StormLimit::Packets(n) => u64::from(size.frames) * SECOND / n.max(1),
            StormLimit::Rate(Rate(bits)) => 8 * size.bytes * SECOND / bits.max(1),
        };
        self.expected = self.expected.max(now) + Duration::from_nanos(cost);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(limit: StormLimit, len: u32, interval: u64, time: u64) -> u64 {
        let mut storm = Storm::new(limit);
        let times = (0..time / interval).map(|n| Time::from_nanos(SECOND + n * interval));
        let size = Size {
            frames: 1,
            bytes: len.into(),
        };
        times.filter(|now| storm.passes(size, *now)).count() as u64
    }

    #[test]
    fn so_much_per_second() {
        // At 10000/s, ten times the limit: 100 at once, then 1000 in each second.
        let n = passed(StormLimit::Packets(1000), 64, 100_000, 10 * SECOND);
        assert!((10_090..=10_110).contains(&n), "{n}");
        // 1 Mbit/s in frames of 125 bytes are 1000 frames/s.
        let n = passed(StormLimit::Rate(Rate(1_000_000)), 125, 100_000, 10 * SECOND);
        assert!((10_090..=10_110).contains(&n), "{n}");
    }

    #[test]
    fn what_stays_below_passes() {
        assert_eq!(
            passed(StormLimit::Packets(10), 64, SECOND / 10, 100 * SECOND),
            1000
        );
        assert_eq!(
            passed(StormLimit::Packets(1), 64, 2 * SECOND, 20 * SECOND),
            10
        );
        let large = passed(
            StormLimit::Rate(Rate(1_000)),
            1500,
            20 * SECOND,
            200 * SECOND,
        );
        assert_eq!(large, 10, "a single frame passes however large");
    }
}
