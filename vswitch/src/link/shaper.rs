//! Queue, transmitter and propagation of one direction.

use std::collections::VecDeque;
use std::time::Duration;

use topology::model::{Direction, Limit};

use super::delay::DelayLine;
use super::loss::Loss;
use super::rate::Rate;
use crate::clock::Time;

/// The way a frame takes through a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Arrives at once; nothing is kept.
    Straight,
    /// Only the delay line: [`Shaper::propagate`].
    Delayed,
    /// Queue, transmitter, delay line: [`Shaper::enqueue`].
    Queued,
}

/// The queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What happens next in a direction.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The end of its transmission. Unless it is lost, the caller hands it on with [`Shaper::propagate`].
    Transmitted(T),
    /// It has reached the other end.
    Arrived(T),
}

/// A thing in the queue, since when, and how many bytes long.
#[derive(Debug)]
struct Queued<T> {
    item: T,
    since: Time,
    len: u32,
}

/// One direction of a link: a queue with a limit (tail drop), a transmitter of a rate, a line of a delay.
///
/// `T` is whatever stands for a frame. Calls come with times that do not decrease; a call that comes later than it
/// should (a busy host) does not shift the times of what follows, since a transmission begins when the one before it ended
/// or, if the queue was empty, when its frame came.
#[derive(Debug)]
pub struct Shaper<T> {
    rate: Option<Rate>,
    delay: Duration,
    loss: Loss,
    limit: Limit,

    waiting: VecDeque<Queued<T>>,
    waiting_bytes: u64,
    transmitting: Option<(Time, T)>,
    line: DelayLine<T>,
}

impl<T> Shaper<T> {
    /// A direction with the given attributes; loss is drawn from `loss`.
    pub fn new(attributes: &Direction, loss: Loss) -> Self {
        Self {
            rate: attributes.rate.map(|r| Rate::new(r, attributes.overhead)),
            delay: attributes.delay,
            loss,
            limit: attributes.queue.limit,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            transmitting: None,
            line: DelayLine::default(),
        }
    }

    /// The way all frames take.
    #[inline]
    pub fn path(&self) -> Path {
        if self.rate.is_some() {
            Path::Queued
        } else if self.delay > Duration::ZERO {
            Path::Delayed
        } else {
            Path::Straight
        }
    }

    /// Draws whether the next frame gets lost. Loss happens after transmission, but a first-in first-out queue lets it be
    /// drawn before, so that no buffer is used for a frame that will not arrive.
    #[inline]
    pub fn draw_loss(&mut self) -> bool {
        self.loss.draw()
    }

    /// Whether a frame of `len` bytes fits the queue, or the idle transmitter.
    pub fn check_room(&self, len: u32) -> Result<(), Full> {
        let fits = match self.limit {
            Limit::Packets(limit) => self.waiting.len() < limit as usize,
            Limit::Bytes(limit) => self.waiting_bytes + u64::from(len) <= limit,
        };
        if fits || self.transmitting.is_none() {
            Ok(())
        } else {
            Err(Full)
        }
    }

    /// Appends a frame of `len` bytes to the queue, whatever the limit says, and starts its transmission if nothing
    /// stands before it.
    pub fn enqueue(&mut self, now: Time, item: T, len: u32) {
        self.waiting.push_back(Queued {
            item,
            since: now,
            len,
        });
        self.waiting_bytes += u64::from(len);
        if self.transmitting.is_none() {
            self.start();
        }
    }

    /// Sends a frame whose transmission ended at `now` on its way.
    pub fn propagate(&mut self, now: Time, item: T) {
        self.line.push(now + self.delay, item);
    }

    /// Whether the other end is reached in the moment the transmission ends.
    pub fn is_immediate(&self) -> bool {
        self.delay.is_zero()
    }

    /// When the next [`Shaper::step`] is due.
    #[inline]
    pub fn next(&self) -> Option<Time> {
        let transmitted = self.transmitting.as_ref().map(|(end, _)| *end);
        match (self.line.next(), transmitted) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The next thing that happens not after `now`, with the time at which it ideally happens.
    pub fn step(&mut self, now: Time) -> Option<(Time, Step<T>)> {
        let at = self.next().filter(|at| *at <= now)?;
        if self.line.next() == Some(at) {
            return self.line.pop().map(|(at, item)| (at, Step::Arrived(item)));
        }
        let (at, item) = self.transmitting.take()?;
        self.start();
        Some((at, Step::Transmitted(item)))
    }

    fn start(&mut self) {
        let Some(rate) = &mut self.rate else { return };
        if let Some(Queued { item, since, len }) = self.waiting.pop_front() {
            self.waiting_bytes -= u64::from(len);
            self.transmitting = Some((rate.transmit(since, len), item));
        }
    }

    /// Frames waiting for the transmitter.
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// Frames anywhere in this direction.
    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.transmitting.is_some()) + self.line.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Streams;
    use proptest::prelude::*;
    use topology::model::Queue;

    fn direction(rate: Option<u64>, delay_ns: u64, limit: Limit) -> Direction {
        Direction {
            rate,
            overhead: 24,
            delay: Duration::from_nanos(delay_ns),
            queue: Queue { limit },
            ..Direction::default()
        }
    }

    fn shaper(d: &Direction) -> Shaper<usize> {
        Shaper::new(d, Loss::new(d.loss, Streams::new(1).next_stream()))
    }

    /// Everything a shaper does up to `now`, as a shard would do it: arrivals by number and time.
    fn run(s: &mut Shaper<usize>, now: Time, out: &mut Vec<(usize, u64)>) {
        while let Some((at, step)) = s.step(now) {
            match step {
                Step::Transmitted(i) => s.propagate(at, i),
                Step::Arrived(i) => out.push((i, at.as_nanos())),
            }
        }
    }

    #[test]
    fn paths() {
        let limit = Limit::Packets(1);
        assert_eq!(shaper(&direction(None, 0, limit)).path(), Path::Straight);
        assert_eq!(shaper(&direction(None, 1, limit)).path(), Path::Delayed);
        assert_eq!(shaper(&direction(Some(1), 0, limit)).path(), Path::Queued);
    }

    #[test]
    fn late_calls_do_not_shift_what_follows() {
        let d = direction(Some(1_000_000_000), 1_000_000, Limit::Packets(100));
        let mut s = shaper(&d);
        for i in 0..3 {
            s.enqueue(Time::from_nanos(100), i, 1476); // 12 µs with overhead
        }
        let mut out = Vec::new();
        run(&mut s, Time::from_nanos(1 << 40), &mut out);
        assert_eq!(out, [(0, 1_012_100), (1, 1_024_100), (2, 1_036_100)]);
    }

    #[test]
    fn the_frame_in_transmission_does_not_count() {
        let mut s = shaper(&direction(Some(1000), 0, Limit::Packets(1)));
        assert_eq!(s.check_room(100), Ok(()));
        s.enqueue(Time::ZERO, 0, 100);
        assert_eq!(s.check_room(100), Ok(()));
        s.enqueue(Time::ZERO, 1, 100);
        assert_eq!(s.check_room(100), Err(Full));
        let mut none = shaper(&direction(Some(1000), 0, Limit::Packets(0)));
        assert_eq!(none.check_room(100), Ok(()));
        none.enqueue(Time::ZERO, 0, 100);
        assert_eq!(none.check_room(100), Err(Full));
    }

    /// The obviously correct model: for each frame, when its transmission starts and ends, as fractions with the rate as
    /// denominator; the queue length by counting who has come and not begun.
    fn model(d: &Direction, frames: &[(u64, u32)]) -> Vec<(usize, u64)> {
        let rate = u128::from(d.rate.unwrap());
        let mut end = 0u128;
        let mut begun: Vec<(u64, u32)> = Vec::new(); // begin, rounded down as the clock shows it, and length
        let mut out = Vec::new();
        for (i, (at, len)) in frames.iter().enumerate() {
            let busy = end / rate > u128::from(*at);
            let waiting: Vec<u32> = begun
                .iter()
                .filter(|(b, _)| b > at)
                .map(|(_, len)| *len)
                .collect();
            let fits = match d.queue.limit {
                Limit::Packets(n) => waiting.len() < n as usize,
                Limit::Bytes(n) => {
                    waiting.iter().map(|l| u64::from(*l)).sum::<u64>() + u64::from(*len) <= n
                }
            };
            if busy && !fits {
                continue;
            }
            let begin = end.max(u128::from(*at) * rate);
            end = begin + u128::from(len + d.overhead) * 8_000_000_000;
            begun.push(((begin / rate) as u64, *len));
            out.push((i, (end / rate) as u64 + d.delay.as_nanos() as u64));
        }
        out
    }

    proptest! {
        /// Every frame that gets through arrives in the nanosecond the model says, however unpunctually it is called.
        #[test]
        fn exact_departures(
            rate in prop_oneof![1_000u64..1_000_000, 1_000_000u64..40_000_000_000],
            delay in 0u64..5_000_000,
            limit in prop_oneof![(0u32..20).prop_map(Limit::Packets), (0u64..20_000).prop_map(Limit::Bytes)],
            gaps in prop::collection::vec((prop_oneof![Just(0u64), 0u64..100_000], 14u32..2000), 1..150),
        ) {
            let d = direction(Some(rate), delay, limit);
            let mut now = 0;
            let frames: Vec<_> = gaps.iter().map(|(gap, len)| { now += gap; (now, *len) }).collect();
            let mut s = shaper(&d);
            let mut out = Vec::new();
            for (i, (at, len)) in frames.iter().enumerate() {
                let at = Time::from_nanos(*at);
                run(&mut s, at, &mut out);
                if s.check_room(*len).is_ok() {
                    s.enqueue(at, i, *len);
                }
            }
            run(&mut s, Time::from_nanos(u64::MAX), &mut out);
            prop_assert!(s.is_empty());
            prop_assert_eq!(out, model(&d, &frames));
        }

        /// Over every window of a busy period the bits sent do not exceed the rate, and none are wasted.
        #[test]
        fn work_conserving(rate in 1_000u64..10_000_000_000, lens in prop::collection::vec(14u32..1515, 2..100)) {
            let d = direction(Some(rate), 0, Limit::Packets(1000));
            let mut s = shaper(&d);
            for (i, len) in lens.iter().enumerate() {
                s.enqueue(Time::ZERO, i, *len);
            }
            let mut out = Vec::new();
            run(&mut s, Time::from_nanos(u64::MAX), &mut out);
            for (a, b) in (0..lens.len()).flat_map(|a| (a + 1..lens.len()).map(move |b| (a, b))) {
                let bits: u128 = lens[a + 1..=b].iter().map(|l| u128::from(l + 24) * 8).sum();
                let ideal = bits * 1_000_000_000 / u128::from(rate);
                let took = u128::from(out[b].1 - out[a].1);
                prop_assert!(took >= ideal && took <= ideal + 1, "{took} instead of {ideal}");
            }
        }
    }
}
