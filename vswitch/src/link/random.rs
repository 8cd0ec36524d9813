//! Random draws, reproducible from the lab's seed.

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Hands out the draws of each direction, in a fixed order: those of the n-th are always the same for a seed.
#[derive(Debug, Clone)]
pub struct Streams(Xoshiro256PlusPlus);

/// The draws of one direction: a stream for each purpose, none of which overlaps another of the lab. So what is drawn for one purpose
/// does not depend on what is drawn for any other.
#[derive(Debug, Clone)]
pub struct DirectionStreams {
    pub(super) loss: Xoshiro256PlusPlus,
    pub(super) bit_errors: Xoshiro256PlusPlus,
    pub(super) duplicate: Xoshiro256PlusPlus,
    pub(super) corrupt: Xoshiro256PlusPlus,
    pub(super) jitter: Xoshiro256PlusPlus,
    pub(super) reorder: Xoshiro256PlusPlus,
    pub(super) queue: Xoshiro256PlusPlus,
    /// Decides which flows share a bucket.
    pub(super) salt: u32,
}

impl Streams {
    /// The streams of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Leaves the streams of so many directions out.
    pub fn skip(&mut self, directions: usize) {
        for _ in 0..directions {
            self.0.long_jump();
        }
    }

    /// The streams of the next direction: 2^64 of 2^128 numbers each.
    pub fn next_direction(&mut self) -> DirectionStreams {
        let mut stream = self.0.clone();
        self.0.long_jump();
        let mut next = || {
            let this = stream.clone();
            stream.jump();
            this
        };
        DirectionStreams {
            loss: next(),
            bit_errors: next(),
            duplicate: next(),
            corrupt: next(),
            jitter: next(),
            reorder: next(),
            queue: next(),
            salt: (next().next_u64() >> 32) as u32,
        }
    }
}

/// Uniform in [0, 1), in steps of 2^-53.
#[inline]
pub(super) fn uniform(random: &mut Xoshiro256PlusPlus) -> f64 {
    (random.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// Uniform below `n`, which is not 0; the bias is below 2^-32.
#[inline]
pub(super) fn below(random: &mut Xoshiro256PlusPlus, n: u32) -> u32 {
    ((u128::from(random.next_u64()) * u128::from(n)) >> 64) as u32
}

/// Something that happens to a frame with a probability; one draw per frame if that is not 0.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    /// A draw of 64 bits below this is a hit; `None` is never, `u64::MAX` stands for always.
    below: Option<u64>,
}

impl Chance {
    /// With `probability`, 0 to 1, to 2^-64.
    pub(super) fn new(probability: f64) -> Self {
        // 2^64 as f64; the conversion saturates, so 1 becomes u64::MAX.
        let scaled = probability * 18_446_744_073_709_551_616.0;
        let below = (probability > 0.0).then_some(scaled as u64);
        Self { below }
    }

    /// Whether it can happen at all.
    pub(super) fn is_possible(&self) -> bool {
        self.below.is_some()
    }

    #[inline]
    pub(super) fn draw(&self, random: &mut Xoshiro256PlusPlus) -> bool {
        self.below
            .is_some_and(|below| random.next_u64() < below || below == u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(probability: f64, seed: u64, n: u32) -> u32 {
        let chance = Chance::new(probability);
        let mut random = Streams::new(seed).next_direction().loss;
        (0..n).filter(|_| chance.draw(&mut random)).count() as u32
    }

    #[test]
    fn never_and_always() {
        assert_eq!(count(0.0, 1, 1000), 0);
        assert_eq!(count(1.0, 1, 1000), 1000);
    }

    /// Within five standard deviations of the binomial distribution, for a fixed seed.
    #[test]
    fn frequency_is_the_probability() {
        for p in [0.001, 0.01, 0.1, 0.5] {
            let n = 200_000;
            let sigma = (f64::from(n) * p * (1.0 - p)).sqrt();
            let hits = f64::from(count(p, 42, n));
            assert!(
                (hits - f64::from(n) * p).abs() < 5.0 * sigma,
                "p {p}: {hits}"
            );
        }
    }

    #[test]
    fn every_stream_is_its_own() {
        let mut streams = Streams::new(7);
        let mut firsts = Vec::new();
        for _ in 0..50 {
            let d = streams.next_direction();
            for mut stream in [
                d.loss,
                d.bit_errors,
                d.duplicate,
                d.corrupt,
                d.jitter,
                d.reorder,
                d.queue,
            ] {
                firsts.push(stream.next_u64());
            }
        }
        let mut sorted = firsts.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), firsts.len());
        assert_eq!(Streams::new(7).next_direction().loss.next_u64(), firsts[0]);
        assert_ne!(Streams::new(8).next_direction().loss.next_u64(), firsts[0]);
    }
}
