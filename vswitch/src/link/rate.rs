//! Transmission times in exact integer arithmetic.

use std::time::Duration;

use crate::clock::Time;

/// The most bytes of overhead per frame; keeps the arithmetic below within 64 bits.
pub const MAX_OVERHEAD: u32 = 65_535;
/// The most bytes a frame may have.
pub const MAX_FRAME: u32 = 1 << 20;

const NANOS: u64 = 1_000_000_000;

/// A transmitter's rate, with the moment when it is next free.
///
/// A frame of *b* bits takes *b*/rate seconds, mostly not a whole number of nanoseconds. The part below a nanosecond is
/// carried from frame to frame, so that within a busy period frame *n* ends at exactly
/// ⌊start + Σ bits · 10⁹ / rate⌋. No credit is saved while idle.
#[derive(Debug, Clone)]
pub struct Rate {
    /// Bit/s, not 0.
    bits_per_second: u64,
    /// Bytes added to each frame.
    overhead: u32,
    free: Time,
    /// Below a nanosecond, in units of 1/rate ns.
    remainder: u64,
}

impl Rate {
    /// A transmitter of `bits_per_second` (at least 1, at most 10¹⁵) that adds `overhead` bytes to each frame.
    pub fn new(bits_per_second: u64, overhead: u32) -> Self {
        Self {
            bits_per_second: bits_per_second.clamp(1, 1_000_000_000_000_000),
            overhead: overhead.min(MAX_OVERHEAD),
            free: Time::ZERO,
            remainder: 0,
        }
    }

    /// Changes what [`Rate::new`] was given. A transmission under way ends as it began.
    pub fn change(&mut self, bits_per_second: u64, overhead: u32) {
        let new = Self::new(bits_per_second, overhead);
        if new.bits_per_second != self.bits_per_second {
            self.remainder = 0;
        }
        self.bits_per_second = new.bits_per_second;
        self.overhead = new.overhead;
    }

    /// When it is next free.
    #[inline]
    pub fn free(&self) -> Time {
        self.free
    }

    /// The part of a nanosecond that is carried over to the next frame of a busy period.
    #[inline]
    pub(super) fn remainder(&self) -> u64 {
        self.remainder
    }

    /// Takes back the transmission that was to begin at `begin` with `remainder` carried over, and all after it.
    pub(super) fn rewind(&mut self, begin: Time, remainder: u64) {
        self.free = begin;
        self.remainder = remainder;
    }

    /// How long `bytes` take, overhead not counted.
    pub fn duration(&self, bytes: u32) -> Duration {
        let bits = u64::from(bytes.min(MAX_FRAME)) * 8;
        Duration::from_nanos(bits * NANOS / self.bits_per_second)
    }

    /// Transmits a frame of `len` bytes that has been ready since `ready`, as soon as the transmitter is free; returns
    /// the end of its transmission.
    #[inline]
    pub fn transmit(&mut self, ready: Time, len: u32) -> Time {
        if ready > self.free {
            self.free = ready;
            self.remainder = 0;
        }
        // At most (2^20 + 2^16) · 8 · 10^9 + 10^15 < 2^64.
        let bits = (u64::from(len.min(MAX_FRAME)) + u64::from(self.overhead)) * 8;
        let units = bits * NANOS + self.remainder;
        self.remainder = units % self.bits_per_second;
        self.free = Time::from_nanos(
            self.free
                .as_nanos()
                .saturating_add(units / self.bits_per_second),
        );
        self.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        // 1514 + 24 bytes at 1 Gbit/s are 12.304 µs.
        let mut r = Rate::new(1_000_000_000, 24);
        assert_eq!(r.transmit(Time::from_nanos(5), 1514).as_nanos(), 5 + 12_304);
        // At 3 bit/s a byte takes 2 666 666 666.67 ns; the third ends on a whole number.
        let mut r = Rate::new(3, 0);
        let ends: Vec<u64> = (0..3)
            .map(|_| r.transmit(Time::ZERO, 1).as_nanos())
            .collect();
        assert_eq!(ends, [2_666_666_666, 5_333_333_333, 8_000_000_000]);
    }

    #[test]
    fn no_credit_is_saved_while_idle() {
        let mut r = Rate::new(8_000, 0);
        assert_eq!(r.transmit(Time::ZERO, 1).as_nanos(), 1_000_000);
        assert_eq!(
            r.transmit(Time::from_nanos(9_000_000), 1).as_nanos(),
            10_000_000
        );
    }

    /// Back-to-back frames for a second: never more than a nanosecond from the ideal.
    #[test]
    fn rate_error_over_a_second() {
        for rate in [
            1_000_000,
            33_333_333,
            155_520_000,
            9_999_999_937,
            40_000_000_000,
        ] {
            let mut r = Rate::new(rate, 24);
            let (mut bits, mut end) = (0u128, Time::ZERO);
            while end < Time::from_nanos(NANOS) {
                end = r.transmit(Time::ZERO, 1514);
                bits += 1538 * 8;
            }
            let ideal = bits * u128::from(NANOS) / u128::from(rate);
            assert_eq!(u128::from(end.as_nanos()), ideal, "{rate}");
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut r = Rate::new(u64::MAX, u32::MAX);
        r.transmit(Time::ZERO, u32::MAX);
        r.transmit(Time::from_nanos(u64::MAX), u32::MAX);
        let mut slow = Rate::new(0, 0);
        for _ in 0..100 {
            slow.transmit(Time::ZERO, u32::MAX);
        }
    }

    proptest! {
        /// Against rational arithmetic: end = max(ready, end of the one before) + bits / rate, shown rounded down.
        #[test]
        fn exact_against_fractions(
            rate in prop_oneof![1u64..1000, 1_000u64..100_000_000_000],
            overhead in 0u32..100,
            frames in prop::collection::vec((0u64..3_000_000, 14u32..9000), 1..200),
        ) {
            let mut r = Rate::new(rate, overhead);
            let (mut ready, mut end) = (0u64, 0u128); // `end` in 1/rate ns
            for (gap, len) in frames {
                ready += gap;
                end = end.max(u128::from(ready) * u128::from(rate));
                end += u128::from(len + overhead) * 8 * 1_000_000_000;
                prop_assert_eq!(u128::from(r.transmit(Time::from_nanos(ready), len).as_nanos()), end / u128::from(rate));
            }
        }
    }
}
