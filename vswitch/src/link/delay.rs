//! Frames on the way: delay, jitter, reordering.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use topology::model::{Direction, Distribution, Jitter, Reorder};

use super::random::{Chance, DirectionStreams, below, uniform};
use crate::clock::Time;

/// The way from the transmitter to the other end.
#[derive(Debug)]
pub(super) struct Propagation<T> {
    delay: Duration,
    jitter: Jitter,
    reorder: Option<Reorder>,
    overtakes: Chance,
    jitter_random: Xoshiro256PlusPlus,
    reorder_random: Xoshiro256PlusPlus,
    /// Frames since the last that overtook others.
    count: u32,
    /// All frames take the same time: `delay`.
    steady: bool,
    /// The latest time of arrival so far.
    latest: Time,
    line: DelayLine<T>,
}

impl<T> Propagation<T> {
    pub(super) fn new(attributes: &Direction, streams: &DirectionStreams) -> Self {
        let mut new = Self {
            delay: Duration::ZERO,
            jitter: Jitter::default(),
            reorder: None,
            overtakes: Chance::new(0.0),
            jitter_random: streams.jitter.clone(),
            reorder_random: streams.reorder.clone(),
            count: 0,
            steady: true,
            latest: Time::ZERO,
            line: DelayLine::default(),
        };
        new.change(attributes);
        new
    }

    /// Sets the attributes that matter here. What is on the way arrives when it would have.
    pub(super) fn change(&mut self, attributes: &Direction) {
        self.delay = attributes.delay;
        self.jitter.clone_from(&attributes.jitter);
        if self.reorder != attributes.reorder {
            self.count = 0;
        }
        self.reorder = attributes.reorder;
        self.overtakes = Chance::new(attributes.reorder.map_or(0.0, |r| r.probability));
        self.steady = self.jitter.spread.is_zero() && self.reorder.is_none();
    }

    /// Whether a frame is at the other end at once.
    pub(super) fn is_immediate(&self) -> bool {
        self.delay.is_zero() && self.jitter.spread.is_zero() && self.line.len() == 0
    }

    /// Whether not all frames take the same time.
    pub(super) fn varies(&self) -> bool {
        !self.steady
    }

    /// Whether frames may overtake each other.
    pub(super) fn may_reorder(&self) -> bool {
        self.reorder.is_some()
    }

    /// Sends a frame on its way.
    #[inline]
    pub(super) fn push(&mut self, now: Time, item: T) {
        if !self.steady {
            return self.push_varied(now, item);
        }
        self.latest = (now + self.delay).max(self.latest);
        self.line.push(self.latest, item);
    }

    fn push_varied(&mut self, now: Time, item: T) {
        let delay = if self.skips() {
            Duration::ZERO
        } else {
            self.draw_delay()
        };
        let mut due = now + delay;
        if self.reorder.is_none() {
            due = due.max(self.latest);
        }
        self.latest = self.latest.max(due);
        self.line.push(due, item);
    }

    /// As netem's `reorder` and `gap`.
    fn skips(&mut self) -> bool {
        let Some(reorder) = self.reorder else {
            return false;
        };
        let candidate = self.count + 1 >= reorder.gap;
        let skips = candidate && self.overtakes.draw(&mut self.reorder_random);
        self.count = if skips {
            0
        } else {
            self.count.saturating_add(1)
        };
        skips
    }

    fn draw_delay(&mut self) -> Duration {
        if self.jitter.spread.is_zero() {
            return self.delay;
        }
        let x = draw(&self.jitter.distribution, &mut self.jitter_random);
        // The conversions saturate.
        let offset = (self.jitter.spread.as_nanos() as f64 * x) as i64;
        let delay = i64::try_from(self.delay.as_nanos()).unwrap_or(i64::MAX);
        let ns = delay.saturating_add(offset);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
    }

    #[inline]
    pub(super) fn next(&self) -> Option<Time> {
        self.line.next()
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<(Time, T)> {
        self.line.pop()
    }

    /// Shows everything that is on the way, in any order.
    pub(super) fn each(&self, visit: &mut dyn FnMut(&T)) {
        let early = self.line.early.iter().map(|Reverse(due)| due);
        self.line
            .line
            .iter()
            .chain(early)
            .for_each(|due| visit(&due.item));
    }

    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    /// Shows those that arrive not after `now` to `visit`, in order, and takes them out as long as it returns `true`.
    #[inline]
    pub(super) fn arrive(&mut self, now: Time, visit: impl FnMut(Time, &T) -> bool) {
        self.line.arrive(now, visit);
    }

    /// Takes back what was sent on its way last, as if that had not been done; [`Propagation::settle`] is to be called afterwards.
    pub(super) fn take_back(&mut self) -> Option<T> {
        self.line.line.pop_back().map(|due| due.item)
    }

    /// Nothing more is taken back.
    pub(super) fn settle(&mut self) {
        self.latest = self.line.latest().unwrap_or(Time::ZERO);
    }
}

/// A number of a distribution. Logarithms and powers are those of `libm`, which are the same on every machine.
fn draw(distribution: &Distribution, random: &mut Xoshiro256PlusPlus) -> f64 {
    match distribution {
        Distribution::Uniform => 2.0 * uniform(random) - 1.0,
        Distribution::Normal => {
            // Box and Muller.
            let u = 1.0 - uniform(random);
            let v = uniform(random);
            (-2.0 * libm::log(u)).sqrt() * libm::cos(std::f64::consts::TAU * v)
        }
        Distribution::Pareto => {
            // Of shape 3 the mean is 3/2 and the variance 3/4.
            let y = 1.0 / libm::cbrt(1.0 - uniform(random));
            (y - 1.5) / 0.75f64.sqrt()
        }
        Distribution::Table(table) => {
            let index = below(random, table.len() as u32) as usize;
            f64::from(table[index]) / 8192.0
        }
    }
}

/// Things with the time of their arrival, the earliest first; of those at the same time, that which was pushed first.
///
/// As long as they come in order it is a line; only those that overtake others need a heap.
#[derive(Debug)]
struct DelayLine<T> {
    line: VecDeque<Due<T>>,
    early: BinaryHeap<Reverse<Due<T>>>,
    pushed: u64,
}

#[derive(Debug)]
struct Due<T> {
    at: Time,
    number: u64,
    item: T,
}

impl<T> Due<T> {
    fn key(&self) -> (Time, u64) {
        (self.at, self.number)
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Default for DelayLine<T> {
    fn default() -> Self {
        Self {
            line: VecDeque::new(),
            early: BinaryHeap::new(),
            pushed: 0,
        }
    }
}

impl<T> DelayLine<T> {
    #[inline]
    fn push(&mut self, at: Time, item: T) {
        let number = self.pushed;
        self.pushed += 1;
        let due = Due { at, number, item };
        if self.line.back().is_none_or(|last| last.at <= at) {
            self.line.push_back(due);
        } else {
            self.early.push(Reverse(due));
        }
    }

    #[inline]
    fn is_early_first(&self) -> bool {
        if self.early.is_empty() {
            return false;
        }
        match (self.early.peek(), self.line.front()) {
            (Some(Reverse(early)), Some(first)) => early < first,
            (early, _) => early.is_some(),
        }
    }

    #[inline]
    fn next(&self) -> Option<Time> {
        if self.is_early_first() {
            self.early.peek().map(|Reverse(due)| due.at)
        } else {
            self.line.front().map(|due| due.at)
        }
    }

    #[inline]
    fn arrive(&mut self, now: Time, mut visit: impl FnMut(Time, &T) -> bool) {
        // Those that overtake others come one by one.
        while self.early.is_empty()
            && let Some(first) = self.line.front()
            && first.at <= now
            && visit(first.at, &first.item)
        {
            self.line.pop_front();
        }
    }

    /// When the last arrives.
    fn latest(&self) -> Option<Time> {
        let early = self.early.iter().map(|Reverse(due)| due.at);
        early.chain(self.line.back().map(|due| due.at)).max()
    }

    fn pop(&mut self) -> Option<(Time, T)> {
        let due = if self.is_early_first() {
            self.early.pop().map(|Reverse(due)| due)
        } else {
            self.line.pop_front()
        };
        due.map(|due| (due.at, due.item))
    }

    fn len(&self) -> usize {
        self.line.len() + self.early.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Streams;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn propagation(attributes: &Direction) -> Propagation<usize> {
        Propagation::new(attributes, &Streams::new(3).next_direction())
    }

    /// The delays of `n` frames so far apart that none could overtake another.
    fn delays(attributes: &Direction, n: usize) -> Vec<u64> {
        let mut p = propagation(attributes);
        (0..n)
            .map(|i| {
                let now = i as u64 * 1_000 * MS;
                p.push(Time::from_nanos(now), i);
                p.pop().unwrap().0.as_nanos() - now
            })
            .collect()
    }

    fn jittered(distribution: Distribution) -> Direction {
        Direction {
            delay: Duration::from_millis(100),
            jitter: Jitter {
                spread: Duration::from_millis(10),
                distribution,
            },
            ..Direction::default()
        }
    }

    /// Kolmogorov and Smirnov: the largest distance between the distribution asked for and that of 20000 delays. A distance
    /// of 1.95/√n is exceeded by chance once in a thousand.
    fn assert_distributed(distribution: Distribution, cdf: impl Fn(f64) -> f64) {
        let what = format!("{distribution:?}");
        let n = 20_000;
        let mut x: Vec<f64> = delays(&jittered(distribution), n)
            .into_iter()
            .map(|ns| (ns as f64 - 100e6) / 10e6)
            .collect();
        x.sort_by(f64::total_cmp);
        let distance = x.iter().enumerate().map(|(i, x)| {
            let f = cdf(*x);
            (f - i as f64 / n as f64)
                .abs()
                .max((f - (i + 1) as f64 / n as f64).abs())
        });
        let distance = distance.fold(0.0, f64::max);
        assert!(distance < 1.95 / (n as f64).sqrt(), "{what}: {distance}");
    }

    #[test]
    fn distributions() {
        assert_distributed(Distribution::Uniform, |x| {
            f64::midpoint(x, 1.0).clamp(0.0, 1.0)
        });
        assert_distributed(Distribution::Normal, |x| {
            0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))
        });
        assert_distributed(Distribution::Pareto, |x| {
            let y = x * 0.75f64.sqrt() + 1.5;
            1.0 - y.max(1.0).powi(-3)
        });
    }

    #[test]
    fn tables() {
        let table = Distribution::Table([-8192, 0, 4096].into());
        let all = delays(&jittered(table), 3000);
        for ms in [90, 100, 105] {
            let n = all.iter().filter(|ns| **ns == ms * MS).count();
            assert!((850..1150).contains(&n), "{ms}: {n}");
        }
        assert!(all.iter().all(|ns| [90, 100, 105].contains(&(ns / MS))));
    }

    #[test]
    fn no_delay_below_zero() {
        let attributes = Direction {
            delay: Duration::ZERO,
            ..jittered(Distribution::Uniform)
        };
        let all = delays(&attributes, 1000);
        let zero = all.iter().filter(|ns| **ns == 0).count();
        assert!((420..580).contains(&zero), "{zero}");
        assert!(all.iter().all(|ns| *ns < 10 * MS));
    }

    /// What `push` at the times in `gaps` makes of frames: their numbers and times in the order of arrival.
    fn arrivals(attributes: &Direction, gaps: &[u64]) -> Vec<(u64, usize)> {
        let mut p = propagation(attributes);
        let mut now = 0;
        for (i, gap) in gaps.iter().enumerate() {
            now += gap;
            p.push(Time::from_nanos(now), i);
        }
        std::iter::from_fn(|| p.pop().map(|(at, i)| (at.as_nanos(), i))).collect()
    }

    #[test]
    fn reorder_as_netem() {
        // Every third candidate is certain to skip the delay.
        let attributes = Direction {
            delay: Duration::from_millis(10),
            reorder: Some(Reorder {
                probability: 1.0,
                gap: 3,
            }),
            ..Direction::default()
        };
        let got = arrivals(&attributes, &[0, MS, MS, MS, MS, MS, MS]);
        let order: Vec<usize> = got.iter().map(|(_, i)| *i).collect();
        assert_eq!(order, [2, 5, 0, 1, 3, 4, 6]);
        assert_eq!(got[0].0, 2 * MS);
        let even = Direction {
            reorder: Some(Reorder {
                probability: 0.25,
                gap: 1,
            }),
            ..attributes
        };
        let all = delays(&even, 20_000);
        let skipped = all.iter().filter(|ns| **ns == 0).count();
        assert!((4700..5300).contains(&skipped), "{skipped}");
    }

    proptest! {
        #[test]
        fn order_is_kept_unless_reorder(gaps in prop::collection::vec(0u64..10 * MS, 1..100), normal: bool) {
            let distribution = if normal { Distribution::Normal } else { Distribution::Pareto };
            let mut attributes = jittered(distribution);
            let kept = arrivals(&attributes, &gaps);
            prop_assert!(kept.iter().enumerate().all(|(n, (_, i))| n == *i));
            // With it, each arrives at its own time: the same draws, not held up by those before.
            attributes.reorder = Some(Reorder { probability: 0.0, gap: 1 });
            let free = arrivals(&attributes, &gaps);
            prop_assert!(free.is_sorted());
            let mut own: Vec<(usize, u64)> = free.iter().map(|(at, i)| (*i, *at)).collect();
            own.sort_unstable();
            let mut latest = 0;
            for ((_, at), (kept, _)) in own.into_iter().zip(kept) {
                latest = latest.max(at);
                prop_assert_eq!(kept, latest);
            }
        }

        /// What is on the way is neither lost nor reordered by a change, and what follows does not overtake it.
        #[test]
        fn changes_keep_what_is_on_the_way(
            steps in prop::collection::vec((0u64..5 * MS, 0u64..20 * MS, 0u64..3 * MS), 1..100)
        ) {
            let mut attributes = Direction::default();
            let mut p = propagation(&attributes);
            let (mut now, mut pushed, mut got) = (0, 0, Vec::new());
            for (gap, delay, spread) in steps {
                now += gap;
                attributes.delay = Duration::from_nanos(delay);
                attributes.jitter.spread = Duration::from_nanos(spread);
                p.change(&attributes);
                while p.next().is_some_and(|at| at.as_nanos() <= now) {
                    got.push(p.pop().unwrap().1);
                }
                p.push(Time::from_nanos(now), pushed);
                pushed += 1;
            }
            got.extend(std::iter::from_fn(|| p.pop().map(|(_, i)| i)));
            prop_assert_eq!(got, (0..pushed).collect::<Vec<_>>());
        }
    }
}
