//! What becomes of a frame on the wire: bit errors, loss, duplication, corruption.

use rand_xoshiro::Xoshiro256PlusPlus;
use topology::model::{Direction, GilbertElliott, Loss};

use super::Reason;
use super::random::{Chance, DirectionStreams, below, uniform};

/// What becomes of a frame after its transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fate {
    /// It does not arrive.
    pub lost: Option<Reason>,
    /// It is transmitted a second time.
    pub duplicated: bool,
    /// This bit of it, counted from the first, is flipped.
    pub flipped: Option<u32>,
}

/// Draws fates, in the order of transmission.
#[derive(Debug)]
pub(super) struct Fates {
    loss: LossModel,
    ber: BitErrors,
    overhead: u32,
    duplicate: Chance,
    corrupt: Chance,
    duplicate_random: Xoshiro256PlusPlus,
    corrupt_random: Xoshiro256PlusPlus,
    /// Nothing can happen to a frame.
    harmless: bool,
    /// Nothing but loss can.
    only_loss: bool,
}

impl Fates {
    pub(super) fn new(attributes: &Direction, streams: &DirectionStreams) -> Self {
        let mut fates = Self {
            loss: LossModel {
                model: Loss::default(),
                chances: [Chance::new(0.0), Chance::new(0.0)],
                moves: [Chance::new(0.0), Chance::new(0.0)],
                bad: false,
                count: 0,
                random: streams.loss.clone(),
            },
            ber: BitErrors {
                ber: 0.0,
                good: 0,
                random: streams.bit_errors.clone(),
            },
            overhead: 0,
            duplicate: Chance::new(0.0),
            corrupt: Chance::new(0.0),
            duplicate_random: streams.duplicate.clone(),
            corrupt_random: streams.corrupt.clone(),
            harmless: true,
            only_loss: true,
        };
        fates.change(attributes);
        fates
    }

    /// Sets the attributes that matter here; the streams go on where they are.
    pub(super) fn change(&mut self, attributes: &Direction) {
        self.loss.change(attributes.loss);
        self.ber.change(attributes.ber);
        self.overhead = attributes.overhead;
        self.duplicate = Chance::new(attributes.duplicate);
        self.corrupt = Chance::new(attributes.corrupt);
        self.only_loss =
            attributes.ber == 0.0 && !self.duplicate.is_possible() && !self.corrupt.is_possible();
        self.harmless = self.only_loss && attributes.loss == Loss::Random(0.0);
    }

    /// Whether nothing can happen to a frame.
    #[inline]
    pub(super) fn is_harmless(&self) -> bool {
        self.harmless
    }

    /// Whether a frame may be transmitted twice.
    pub(super) fn may_duplicate(&self) -> bool {
        self.duplicate.is_possible()
    }

    /// The fate of the next frame, of `len` bytes; a duplicate is not duplicated again.
    #[inline]
    pub(super) fn draw(&mut self, len: u32, is_duplicate: bool) -> Fate {
        if self.harmless {
            return Fate::default();
        }
        if self.only_loss {
            let lost = self.loss.draw().then_some(Reason::Loss);
            return Fate {
                lost,
                ..Fate::default()
            };
        }
        self.draw_all(len, is_duplicate)
    }

    fn draw_all(&mut self, len: u32, is_duplicate: bool) -> Fate {
        // Every draw is made, whatever the others say, so that none depends on another attribute.
        let wrong = self.ber.draw(len.saturating_add(self.overhead));
        let lost = self.loss.draw();
        let duplicated = !is_duplicate && self.duplicate.draw(&mut self.duplicate_random);
        // Duplication comes after loss.
        let duplicated = duplicated && !wrong && !lost;
        let flipped = self
            .corrupt
            .draw(&mut self.corrupt_random)
            .then(|| below(&mut self.corrupt_random, len.saturating_mul(8).max(1)));
        let lost = match (wrong, lost) {
            (true, _) => Some(Reason::BitError),
            (false, true) => Some(Reason::Loss),
            (false, false) => None,
        };
        Fate {
            lost,
            duplicated,
            flipped,
        }
    }
}

/// Which frames are lost.
#[derive(Debug)]
struct LossModel {
    model: Loss,
    /// Of loss in the good and in the bad state; models without states are always in the good one.
    chances: [Chance; 2],
    /// Of leaving the good and the bad state.
    moves: [Chance; 2],
    bad: bool,
    /// Frames since the last that was lost for its number.
    count: u32,
    random: Xoshiro256PlusPlus,
}

impl LossModel {
    fn change(&mut self, model: Loss) {
        if self.model == model {
            return;
        }
        let GilbertElliott {
            p,
            r,
            loss_bad,
            loss_good,
        } = match model {
            Loss::Random(p) => GilbertElliott {
                p: 0.0,
                r: 0.0,
                loss_bad: p,
                loss_good: p,
            },
            Loss::GilbertElliott(states) => states,
            Loss::Every(_) => GilbertElliott {
                p: 0.0,
                r: 0.0,
                loss_bad: 0.0,
                loss_good: 0.0,
            },
        };
        self.model = model;
        self.chances = [loss_good, loss_bad].map(Chance::new);
        self.moves = [p, r].map(Chance::new);
        self.bad = false;
        self.count = 0;
    }

    fn draw(&mut self) -> bool {
        if let Loss::Every(n) = self.model {
            self.count += 1;
            let lost = self.count >= n;
            if lost {
                self.count = 0;
            }
            return lost;
        }
        let state = usize::from(self.bad);
        let lost = self.chances[state].draw(&mut self.random);
        if self.moves[state].draw(&mut self.random) {
            self.bad = !self.bad;
        }
        lost
    }
}

/// Independent bit errors.
///
/// The number of good bits before the next bad one has a geometric distribution, which has no memory; so one draw per error does, and
/// a frame of n bits survives with exactly (1-ber)^n.
#[derive(Debug)]
struct BitErrors {
    ber: f64,
    /// Bits that are still good before one is bad.
    good: u64,
    random: Xoshiro256PlusPlus,
}

impl BitErrors {
    fn change(&mut self, ber: f64) {
        if self.ber.to_bits() != ber.to_bits() {
            self.ber = ber;
            self.renew();
        }
    }

    fn renew(&mut self) {
        self.good = if self.ber <= 0.0 {
            u64::MAX
        } else if self.ber >= 1.0 {
            0
        } else {
            // In (0, 1]; the conversion saturates.
            let u = 1.0 - uniform(&mut self.random);
            (libm::log(u) / libm::log1p(-self.ber)) as u64
        };
    }

    /// Whether one of the bits of the next `bytes` is bad.
    fn draw(&mut self, bytes: u32) -> bool {
        let bits = u64::from(bytes) * 8;
        if self.ber <= 0.0 {
            return false;
        }
        if self.good >= bits {
            self.good -= bits;
            return false;
        }
        // What follows the frame starts anew: errors further on in it do not matter.
        self.renew();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Streams;

    fn fates(attributes: &Direction) -> Fates {
        Fates::new(attributes, &Streams::new(5).next_direction())
    }

    fn draw(attributes: &Direction, len: u32, n: u32) -> Vec<Fate> {
        let mut fates = fates(attributes);
        (0..n).map(|_| fates.draw(len, false)).collect()
    }

    /// Within five standard deviations of the binomial distribution.
    fn assert_binomial(hits: usize, n: u32, p: f64, what: &str) {
        let sigma = (f64::from(n) * p * (1.0 - p)).sqrt();
        let expected = f64::from(n) * p;
        assert!(
            (hits as f64 - expected).abs() <= 5.0 * sigma,
            "{what}: {hits} instead of {expected}"
        );
    }

    #[test]
    fn bit_errors_by_frame_length() {
        const N: u32 = 100_000;
        for ber in [1e-7, 1e-5, 1e-4] {
            for len in [60, 576, 1514, 9014] {
                let attributes = Direction {
                    ber,
                    ..Direction::default()
                };
                let all = draw(&attributes, len, N);
                let bad = all.iter().filter(|f| f.lost == Some(Reason::BitError));
                let p = 1.0 - (1.0 - ber).powi(8 * (len as i32 + 24));
                assert_binomial(bad.count(), N, p, &format!("ber {ber}, {len} bytes"));
            }
        }
        for (ber, lost) in [(0.0, 0), (1.0, 100)] {
            let attributes = Direction {
                ber,
                ..Direction::default()
            };
            let all = draw(&attributes, 60, 100);
            assert_eq!(all.iter().filter(|f| f.lost.is_some()).count(), lost);
        }
    }

    #[test]
    fn loss_duplication_and_corruption_do_not_depend_on_length() {
        const N: u32 = 100_000;
        for len in [14, 1514] {
            for p in [0.001, 0.1, 0.5] {
                let attributes = Direction {
                    loss: Loss::Random(p),
                    duplicate: p,
                    corrupt: p,
                    ..Direction::default()
                };
                let all = draw(&attributes, len, N);
                let what = format!("{len} bytes, p {p}");
                assert_binomial(all.iter().filter(|f| f.lost.is_some()).count(), N, p, &what);
                let twice = all.iter().filter(|f| f.duplicated).count();
                assert_binomial(twice, N, p * (1.0 - p), &what);
                let flipped: Vec<u32> = all.iter().filter_map(|f| f.flipped).collect();
                assert_binomial(flipped.len(), N, p, &what);
                let first_half = flipped.iter().filter(|bit| **bit < len * 4).count();
                assert_binomial(first_half, flipped.len() as u32, 0.5, &what);
                assert!(flipped.iter().all(|bit| *bit < len * 8));
            }
        }
    }

    #[test]
    fn every_nth() {
        let attributes = Direction {
            loss: Loss::Every(5),
            ..Direction::default()
        };
        let lost: Vec<usize> = (1..)
            .zip(draw(&attributes, 60, 23))
            .filter_map(|(n, f)| f.lost.is_some().then_some(n))
            .collect();
        assert_eq!(lost, [5, 10, 15, 20]);
    }

    /// Stationary loss p/(p+r)·(1-h) + r/(p+r)·(1-k); with 1-h = 1 and 1-k = 0 bursts last 1/r frames on average.
    #[test]
    fn gilbert_elliott() {
        const N: u32 = 400_000;
        for (p, r, loss_bad, loss_good) in [
            (0.01, 0.1, 1.0, 0.0),
            (0.05, 0.5, 0.7, 0.0),
            (0.2, 0.3, 0.5, 0.01),
        ] {
            let attributes = Direction {
                loss: Loss::GilbertElliott(GilbertElliott {
                    p,
                    r,
                    loss_bad,
                    loss_good,
                }),
                ..Direction::default()
            };
            let lost: Vec<bool> = draw(&attributes, 60, N)
                .iter()
                .map(|f| f.lost.is_some())
                .collect();
            let bad = p / (p + r);
            let expected = bad * loss_bad + (1.0 - bad) * loss_good;
            let rate = lost.iter().filter(|l| **l).count() as f64 / f64::from(N);
            // The states are correlated over about 1/(p+r) frames, which widens the spread by its root.
            let sigma = (expected * (1.0 - expected) / f64::from(N) * 2.0 / (p + r)).sqrt();
            assert!((rate - expected).abs() < 5.0 * sigma, "{rate}: {expected}");
            if loss_bad + loss_good >= 1.0 {
                let bursts: Vec<usize> = lost
                    .split(|l| !l)
                    .map(<[bool]>::len)
                    .filter(|len| *len > 0)
                    .collect();
                let mean = bursts.iter().sum::<usize>() as f64 / bursts.len() as f64;
                let sigma = ((1.0 - r) / (r * r) / bursts.len() as f64).sqrt();
                assert!((mean - 1.0 / r).abs() < 5.0 * sigma, "{mean}");
            }
        }
    }

    /// What one attribute draws does not depend on whether another is set.
    #[test]
    fn purposes_do_not_disturb_each_other() {
        let lossy = Direction {
            loss: Loss::Random(0.3),
            ..Direction::default()
        };
        let all = Direction {
            ber: 1e-5,
            duplicate: 0.2,
            corrupt: 0.1,
            ..lossy.clone()
        };
        let alone = draw(&lossy, 1000, 1000);
        for (a, b) in alone.iter().zip(draw(&all, 1000, 1000)) {
            match b.lost {
                Some(Reason::BitError) => {}
                lost => assert_eq!(a.lost, lost),
            }
        }
    }
}
