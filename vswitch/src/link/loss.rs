//! Random loss, reproducible from the lab's seed.

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Hands out streams of random numbers that do not overlap, in a fixed order: the n-th is always the same for a seed.
#[derive(Debug)]
pub struct Streams(Xoshiro256PlusPlus);

impl Streams {
    /// The streams of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// The next stream; each has 2^128 numbers.
    pub fn next_stream(&mut self) -> Xoshiro256PlusPlus {
        let stream = self.0.clone();
        self.0.jump();
        stream
    }
}

/// Draws whether a frame is lost; one draw per frame if the probability is not 0.
#[derive(Debug, Clone)]
pub struct Loss {
    /// A draw of 64 bits below this is a loss; `None` is never, `u64::MAX` stands for always.
    below: Option<u64>,
    random: Xoshiro256PlusPlus,
}

impl Loss {
    /// Loses frames with `probability` (0 to 1, resolution 2^-64).
    pub fn new(probability: f64, random: Xoshiro256PlusPlus) -> Self {
        // 2^64 as f64; the conversion saturates, so 1 becomes u64::MAX.
        let scaled = probability * 18_446_744_073_709_551_616.0;
        let below = (probability > 0.0).then_some(scaled as u64);
        Self { below, random }
    }

    /// Whether frames can be lost at all.
    pub fn is_possible(&self) -> bool {
        self.below.is_some()
    }

    /// The fate of the next frame.
    #[inline]
    pub fn draw(&mut self) -> bool {
        self.below
            .is_some_and(|below| self.random.next_u64() < below || below == u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(probability: f64, seed: u64, n: u32) -> u32 {
        let mut loss = Loss::new(probability, Streams::new(seed).next_stream());
        (0..n).filter(|_| loss.draw()).count() as u32
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
            let lost = f64::from(count(p, 42, n));
            assert!(
                (lost - f64::from(n) * p).abs() < 5.0 * sigma,
                "p {p}: lost {lost}"
            );
        }
    }

    #[test]
    fn same_seed_same_fate_other_stream_other_fate() {
        let fate = |seed, nth| {
            let mut streams = Streams::new(seed);
            let mut loss = (0..=nth)
                .map(|_| Loss::new(0.5, streams.next_stream()))
                .last()
                .unwrap();
            (0..64).map(|_| loss.draw()).collect::<Vec<_>>()
        };
        assert_eq!(fate(7, 3), fate(7, 3));
        assert_ne!(fate(7, 3), fate(7, 2));
        assert_ne!(fate(7, 3), fate(8, 3));
    }
}
