//! A histogram with one writer, read by anyone at any time.
//!
//! Buckets as in HdrHistogram: exact below 64, above that 32 to each power of two, so that a value is known to within 1/32. The
//! crate of that name cannot be written by one thread and read by another without a lock; it reckons the quantiles of
//! what is read.

use serde::{Deserialize, Serialize};

use crate::counters::Counter;

/// Buckets to each power of two, as a power of two.
const BITS: u32 = 5;
const PER_OCTAVE: u64 = 1 << BITS;
/// Larger values are counted as this one, about 69 s.
const LARGEST: u64 = (1 << 36) - 1;
const BUCKETS: usize = bucket(LARGEST) + 1;

/// Counts values by size.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Counter; BUCKETS]>,
    max: Counter,
}

const fn bucket(value: u64) -> usize {
    if value < 2 * PER_OCTAVE {
        return value as usize;
    }
    let shift = value.ilog2() - BITS;
    ((shift as u64) * PER_OCTAVE + (value >> shift)) as usize
}

/// The largest value that falls into a bucket.
const fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * PER_OCTAVE {
        return bucket;
    }
    let shift = bucket / PER_OCTAVE - 1;
    ((bucket % PER_OCTAVE + PER_OCTAVE + 1) << shift) - 1
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: Box::new([const { Counter::new() }; BUCKETS]),
            max: Counter::default(),
        }
    }
}

impl Histogram {
    /// Counts a value. Only the thread that owns the histogram may call this.
    #[inline]
    pub fn record(&self, value: u64) {
        self.buckets[bucket(value.min(LARGEST))].add(1);
        self.max.raise(value);
    }

    /// What was counted so far.
    pub fn read(&self) -> Distribution {
        // Read first, so that it is not below the largest bucket by much.
        let max = self.max.get();
        let counted = self.buckets.iter().map(Counter::get).enumerate();
        let buckets: Vec<_> = counted
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (upper(bucket).min(max), count))
            .collect();
        Distribution::new(buckets, max)
    }
}

/// A histogram as it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// Values counted.
    pub count: u64,
    /// Half of the values are not greater; like all quantiles to within 1/32.
    pub p50: u64,
    /// 90 % of the values are not greater.
    pub p90: u64,
    /// 99 % of the values are not greater.
    pub p99: u64,
    /// 99.9 % of the values are not greater.
    pub p999: u64,
    /// The greatest, exactly.
    pub max: u64,
    /// All of it: the greatest value that falls into a bucket, and how many did; empty buckets are left out.
    pub buckets: Vec<(u64, u64)>,
}

impl Distribution {
    fn new(buckets: Vec<(u64, u64)>, max: u64) -> Self {
        let mut new = Self {
            max,
            buckets,
            ..Self::default()
        };
        // Three digits are finer than the buckets. That it grows as needed leaves no value it could refuse.
        if let Ok(mut histogram) = hdrhistogram::Histogram::<u64>::new(3) {
            for (value, count) in &new.buckets {
                let _ = histogram.record_n(*value, *count);
            }
            let quantile = |q| histogram.value_at_quantile(q).min(max);
            new.count = histogram.len();
            [new.p50, new.p90, new.p99, new.p999] = [0.5, 0.9, 0.99, 0.999].map(quantile);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other() {
        for b in 1..BUCKETS {
            assert_eq!(bucket(upper(b)), b);
            assert_eq!(bucket(upper(b - 1) + 1), b);
        }
        assert_eq!(upper(BUCKETS - 1), LARGEST);
    }

    #[test]
    fn nothing_yet() {
        assert_eq!(Histogram::default().read(), Distribution::default());
    }

    #[test]
    fn beyond_the_range() {
        let h = Histogram::default();
        h.record(u64::MAX);
        h.record(0);
        let read = h.read();
        assert_eq!((read.count, read.max, read.p50), (2, u64::MAX, 0));
        assert_eq!(read.buckets, [(0, 1), (LARGEST, 1)]);
    }

    proptest! {
        /// Quantiles are those of the values, to within a bucket.
        #[test]
        fn quantiles(values in prop::collection::vec(prop_oneof![0u64..100, 0u64..1_000_000, 0..LARGEST], 1..500)) {
            let h = Histogram::default();
            for v in &values {
                h.record(*v);
            }
            let read = h.read();
            let mut sorted = values.clone();
            sorted.sort_unstable();
            prop_assert_eq!(read.count, values.len() as u64);
            prop_assert_eq!(read.max, sorted[sorted.len() - 1]);
            for (q, told) in [(0.5, read.p50), (0.9, read.p90), (0.99, read.p99), (0.999, read.p999)] {
                let rank = (q * values.len() as f64).ceil() as usize;
                let exact = sorted[rank.max(1) - 1];
                prop_assert!(told >= exact && told <= exact + exact / 30 + 1, "{q}: {told} instead of {exact}");
            }
        }
    }
}
