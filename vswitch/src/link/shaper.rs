//! Queue, transmitter and propagation of one direction.

use std::time::Duration;

use topology::model::Direction;

use super::Reason;
use super::delay::Propagation;
use super::fate::{Fate, Fates};
use super::foresight::{Foresight, Planned};
use super::queue::{Header, Packet, Queue, Surroundings};
use super::random::DirectionStreams;
use super::transmitter::Transmitter;
use crate::clock::Time;

/// The way a frame takes through a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Arrives at once, if [`Shaper::fate`] lets it; nothing is kept.
    Straight,
    /// Propagation only: [`Shaper::fate`], then [`Shaper::propagate`].
    Delayed,
    /// Queue, transmitter, propagation: [`Shaper::admit`], then [`Shaper::enqueue`].
    Queued,
}

/// What happens next in a direction.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The end of its transmission. The caller hands it on with [`Shaper::propagate`].
    Transmitted(Transmitted<T>),
    /// The end of its transmission, but it will not arrive.
    Lost(T, Reason),
    /// It has reached the other end.
    Arrived(T),
    /// The transmitter was due to take frames from the queue; it has, unless all were dropped.
    Begun,
}

/// A frame whose transmission has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmitted<T> {
    /// It.
    pub item: T,
    /// It is to be marked as having met congestion.
    pub marked: bool,
    /// This bit of it, counted from the first, is to be flipped.
    pub flipped: Option<u32>,
    /// It is transmitted once more: the caller goes on with [`Shaper::repeat`].
    pub again: bool,
}

/// A frame in transmission.
#[derive(Debug)]
struct Sending<T> {
    end: Time,
    packet: Packet<T>,
    is_duplicate: bool,
}

/// One direction of a link.
///
/// `T` is whatever stands for a frame. Calls come with times that do not decrease; a call that comes later than it
/// should (a busy host) does not shift the times of what follows, since a transmission begins when the one before it ended
/// or, if the queue was empty, when its frame came.
///
/// Frames that were let in and are dropped later are handed out by [`Shaper::dropped`], which is to be called after
/// [`Shaper::admit`], [`Shaper::enqueue`], [`Shaper::step`], [`Shaper::repeat`] and [`Shaper::change`].
#[derive(Debug)]
pub struct Shaper<T> {
    queue: Queue<T>,
    transmitter: Transmitter,
    fates: Fates,
    propagation: Propagation<T>,
    sending: Option<Sending<T>>,
    /// When the transmitter can take the next frame; only while it is idle and frames wait.
    begin: Option<Time>,
    /// A frame that is transmitted again as soon as the caller has one.
    repeating: Option<(Header, bool)>,
    /// With these attributes everything about a frame is known when it comes.
    predictable: bool,
    /// Frames of which it is; none is in `queue` or `sending` then.
    foresight: Foresight<T>,
    dropped: Vec<(T, Reason)>,
    origin: Time,
    /// How long the transmission of 1000 bytes takes.
    typical: Duration,
}

impl<T> Shaper<T> {
    /// A direction with the given attributes, with draws from `streams`. Traces begin at `origin`.
    pub fn new(attributes: &Direction, streams: &DirectionStreams, origin: Time) -> Self {
        let transmitter = Transmitter::new(attributes, origin);
        let mut new = Self {
            queue: Queue::new(&attributes.queue, streams.queue.clone(), streams.salt),
            typical: transmitter.typical(),
            transmitter,
            fates: Fates::new(attributes, streams),
            propagation: Propagation::new(attributes, streams),
            sending: None,
            begin: None,
            repeating: None,
            predictable: false,
            foresight: Foresight::default(),
            dropped: Vec::new(),
            origin,
        };
        new.predictable = new.is_predictable();
        new
    }

    fn is_predictable(&self) -> bool {
        self.queue.is_plain()
            && matches!(self.transmitter, Transmitter::Rate(_))
            && !self.propagation.varies()
            && !self.fates.may_duplicate()
    }

    /// Sets all attributes from `now` on. What is inside is neither lost nor, within a flow, reordered: a frame in transmission ends as
    /// it began, one on its way arrives when it would have, and what waits stays, even above a new limit.
    pub fn change(&mut self, now: Time, attributes: &Direction) {
        let foresaw = !self.foresight.is_empty();
        self.look_back(now);
        self.queue.change(&attributes.queue);
        self.fates.change(attributes);
        self.propagation.change(attributes);
        let is_another = self.transmitter.change(attributes, self.origin);
        self.typical = self.transmitter.typical();
        if is_another && self.begin.take().is_some() {
            self.start(now, true);
        }
        self.predictable = self.is_predictable();
        if foresaw && self.predictable {
            self.look_ahead(now);
        }
    }

    /// Gives up what is known beforehand: things happen one after the other from `now` on.
    fn look_back(&mut self, now: Time) {
        let Transmitter::Rate(rate) = &mut self.transmitter else {
            return;
        };
        if self.foresight.is_empty() {
            return;
        }
        self.foresight.see(now);
        let (foresight, propagation) = (&mut self.foresight, &mut self.propagation);
        let mut take_back = |planned: Planned, foresight: &mut Foresight<T>| {
            let item = match planned.lost {
                Some(_) => foresight.unlose(),
                None => propagation.take_back(),
            };
            let fate = Fate {
                lost: planned.lost,
                ..Fate::default()
            };
            item.map(|item| Packet {
                item,
                header: planned.header,
                since: planned.since,
                marked: false,
                fate: Some(fate),
            })
        };
        let mut waiting = Vec::with_capacity(foresight.waiting().0);
        while let Some(planned) = foresight.unplan() {
            rate.rewind(planned.begin, planned.remainder);
            waiting.extend(take_back(planned, foresight));
        }
        let end = rate.free();
        let sending = foresight.take_begun().filter(|_| end > now);
        self.sending = sending.and_then(|planned| {
            let packet = take_back(planned, foresight)?;
            Some(Sending {
                end,
                packet,
                is_duplicate: false,
            })
        });
        propagation.settle();
        while let Some(lost) = foresight.pop_lost(now) {
            self.dropped.push(lost);
        }
        for packet in waiting.into_iter().rev() {
            self.queue.enqueue(packet);
        }
    }

    /// The opposite of [`Shaper::look_back`], called after it: only attributes have changed in between.
    fn look_ahead(&mut self, now: Time) {
        self.foresight.see(now);
        if let Some(Sending { end, packet, .. }) = self.sending.take() {
            let lost = packet.fate.and_then(|fate| fate.lost);
            self.foresight.plan(Planned {
                begin: now,
                remainder: 0,
                since: packet.since,
                header: packet.header,
                lost,
            });
            self.send(end, packet.item, lost);
        }
        for packet in self.queue.drain() {
            let lost = packet.fate.and_then(|fate| fate.lost);
            self.foresee(now, packet.since, packet.header, packet.item, lost);
        }
    }

    /// Plans the transmission of a frame that is ready at `now`, and sends it on its way.
    #[inline]
    fn foresee(&mut self, now: Time, since: Time, header: Header, item: T, lost: Option<Reason>) {
        let Transmitter::Rate(rate) = &mut self.transmitter else {
            return;
        };
        self.foresight.plan(Planned {
            begin: rate.free().max(now),
            remainder: rate.remainder(),
            since,
            header,
            lost,
        });
        let end = rate.transmit(now, header.len);
        self.send(end, item, lost);
    }

    /// Sends a frame on its way whose transmission will end at `end`, or loses it then.
    #[inline]
    fn send(&mut self, end: Time, item: T, lost: Option<Reason>) {
        match lost {
            Some(reason) => self.foresight.lose(end, item, reason),
            None => self.propagation.push(end, item),
        }
    }

    /// Whether everything about the next frame will be known when it comes.
    #[inline]
    pub fn foresees(&self) -> bool {
        self.predictable && !self.is_transmitting()
    }

    /// The way the next frame takes.
    #[inline]
    pub fn path(&self) -> Path {
        if !self.transmitter.is_unlimited() || self.is_transmitting() || self.queue.len() > 0 {
            Path::Queued
        } else if !self.propagation.is_immediate() || self.fates.may_duplicate() {
            Path::Delayed
        } else {
            Path::Straight
        }
    }

    /// Whether a frame is at the other end at once, unchanged and certainly.
    #[inline]
    pub fn is_transparent(&self) -> bool {
        self.path() == Path::Straight && self.fates.is_harmless()
    }

    /// Whether frames leave in the order in which they came, each once, and only those whose fate is known when they come do not.
    pub fn is_ordered(&self) -> bool {
        self.queue.is_ordered() && !self.propagation.may_reorder() && !self.fates.may_duplicate()
    }

    /// Whether frames may overtake each other on their way.
    pub fn may_reorder(&self) -> bool {
        self.propagation.may_reorder()
    }

    /// Whether nothing is drawn for a frame, so that it makes no difference whether it is one or several.
    pub fn treats_all_alike(&self) -> bool {
        self.fates.is_harmless() && !self.propagation.varies()
    }

    /// Whether [`Header::flow`] and [`Header::ecn_capable`] matter.
    pub fn looks_at_headers(&self) -> bool {
        self.queue.looks_at_headers()
    }

    /// Whether the queue has room for a frame of `len` bytes, or the transmitter is idle; for those whose frames are not foretold.
    pub fn has_room(&self, len: u32) -> bool {
        !self.is_transmitting() || !self.queue.is_full(len)
    }

    fn is_transmitting(&self) -> bool {
        self.sending.is_some() || self.begin.is_some() || self.repeating.is_some()
    }

    fn surroundings(&self, now: Time, unlimited: bool) -> Surroundings {
        Surroundings {
            now,
            idle: !self.is_transmitting(),
            unlimited,
            typical: self.typical,
        }
    }

    /// Draws what becomes of a frame that is not queued.
    #[inline]
    pub fn fate(&mut self, len: u32) -> Fate {
        self.fates.draw(len, false)
    }

    /// Draws what becomes of the copy of a frame that is not queued.
    pub fn fate_of_duplicate(&mut self, len: u32) -> Fate {
        self.fates.draw(len, true)
    }

    /// Draws what becomes of the frame that is about to be queued, if that can be known now. Frames that leave in order meet their
    /// fates in order, so no buffer needs to be used for one that will not arrive.
    #[inline]
    pub fn foretell(&mut self, len: u32) -> Option<Fate> {
        (self.predictable || self.is_ordered()).then(|| self.fates.draw(len, false))
    }

    /// Decides on a frame that has come: whether it is let in, and if so, whether it is marked. Others may be dropped to make room, unless the
    /// limit is the caller's affair (`unlimited`).
    #[inline]
    pub fn admit(&mut self, now: Time, header: Header, unlimited: bool) -> Result<bool, Reason> {
        if !self.foresees() {
            return self.admit_to_queue(now, header, unlimited);
        }
        self.foresight.see(now);
        let is_idle = matches!(&self.transmitter, Transmitter::Rate(rate) if rate.free() <= now);
        if unlimited || is_idle || self.queue.allows(self.foresight.waiting(), header.len) {
            Ok(false)
        } else {
            Err(Reason::Full)
        }
    }

    fn admit_to_queue(
        &mut self,
        now: Time,
        header: Header,
        unlimited: bool,
    ) -> Result<bool, Reason> {
        let surroundings = self.surroundings(now, unlimited);
        self.queue.admit(header, surroundings, &mut self.dropped)
    }

    /// Appends a frame that was admitted, and starts its transmission if nothing stands before it. `fate` is what was foretold; which
    /// bit is flipped then is the caller's affair.
    #[inline]
    pub fn enqueue(
        &mut self,
        now: Time,
        item: T,
        header: Header,
        marked: bool,
        fate: Option<Fate>,
    ) {
        match fate {
            Some(fate) if self.foresees() => self.foresee(now, now, header, item, fate.lost),
            _ => self.line_up(now, item, header, marked, fate),
        }
    }

    /// The same for a frame that is to wait for what happens.
    fn line_up(&mut self, now: Time, item: T, header: Header, marked: bool, fate: Option<Fate>) {
        self.look_back(now);
        self.queue.enqueue(Packet {
            item,
            header,
            since: now,
            marked,
            fate,
        });
        if !self.is_transmitting() {
            self.start(now, true);
        }
    }

    /// A frame that was dropped although it had been let in.
    #[inline]
    pub fn dropped(&mut self) -> Option<(T, Reason)> {
        self.dropped.pop()
    }

    /// Sends a frame whose transmission ended at `now` on its way.
    pub fn propagate(&mut self, now: Time, item: T) {
        self.propagation.push(now, item);
    }

    /// Whether the other end is reached in the moment the transmission ends.
    pub fn is_immediate(&self) -> bool {
        self.propagation.is_immediate()
    }

    /// Transmits a frame again that was transmitted until `now`; `item` stands for the copy. Without one, nothing is.
    pub fn repeat(&mut self, now: Time, item: Option<T>) {
        let Some(((header, marked), item)) = self.repeating.take().zip(item) else {
            return self.start(now, false);
        };
        let begin = self.transmitter.begin(now, false);
        let packet = Packet {
            item,
            header,
            since: now,
            marked,
            fate: None,
        };
        self.sending = Some(Sending {
            end: self.transmitter.transmit(begin, header.len),
            packet,
            is_duplicate: true,
        });
    }

    /// When the next [`Shaper::step`] is due.
    #[inline]
    pub fn next(&self) -> Option<Time> {
        let mut next = self.propagation.next();
        let sending = self.sending.as_ref().map(|s| s.end);
        for other in [sending, self.begin, self.foresight.next()] {
            if let Some(at) = other
                && next.is_none_or(|next| at < next)
            {
                next = Some(at);
            }
        }
        next
    }

    /// The next thing that happens not after `now`, with the time at which it ideally happens.
    #[inline]
    pub fn step(&mut self, now: Time) -> Option<(Time, Step<T>)> {
        let at = self.next().filter(|at| *at <= now)?;
        self.foresight.see(at);
        if self.propagation.next() == Some(at) {
            let (at, item) = self.propagation.pop()?;
            return Some((at, Step::Arrived(item)));
        }
        if self.begin == Some(at) {
            self.begin = None;
            self.take(at);
            return Some((at, Step::Begun));
        }
        if let Some((item, reason)) = self.foresight.pop_lost(at) {
            return Some((at, Step::Lost(item, reason)));
        }
        let Some(Sending {
            packet,
            is_duplicate,
            ..
        }) = self.sending.take()
        else {
            return Some((at, Step::Begun));
        };
        let len = packet.header.len;
        let fate = packet.fate;
        let fate = fate.unwrap_or_else(|| self.fates.draw(len, is_duplicate));
        if fate.duplicated {
            self.repeating = Some((packet.header, packet.marked));
        } else {
            self.start(at, false);
        }
        let step = match fate.lost {
            Some(reason) => Step::Lost(packet.item, reason),
            None => Step::Transmitted(Transmitted {
                item: packet.item,
                marked: packet.marked,
                flipped: fate.flipped,
                again: fate.duplicated,
            }),
        };
        Some((at, step))
    }

    /// Lets the transmitter, which is idle, go on with the next frame, if any. `arrived`: it has just come.
    fn start(&mut self, now: Time, arrived: bool) {
        if self.queue.len() == 0 {
            // The discipline notes that its queue has run empty.
            return self.take(now);
        }
        let begin = self.transmitter.begin(now, arrived);
        if begin > now {
            self.begin = Some(begin);
        } else {
            self.take(now);
        }
    }

    /// Takes the next frame from the queue and transmits it.
    fn take(&mut self, now: Time) {
        let surroundings = self.surroundings(now, false);
        if let Some(packet) = self.queue.dequeue(surroundings, &mut self.dropped) {
            self.sending = Some(Sending {
                end: self.transmitter.transmit(now, packet.header.len),
                packet,
                is_duplicate: false,
            });
        }
    }

    /// Shows frames that have reached the other end not after `now` to `visit`, in order and with the time at which they ideally did, and
    /// lets them go as long as it returns `true`. Frames that [`Shaper::step`] has to do something about first are left to it.
    #[inline]
    pub fn arrive(&mut self, now: Time, visit: impl FnMut(Time, &T) -> bool) {
        let others = [self.sending.as_ref().map(|s| s.end), self.begin];
        let until = others.into_iter().flatten().fold(now, Time::min);
        self.propagation.arrive(until, visit);
    }

    /// Shows every frame whose transmission has not ended to `visit`, in any order. Only of a direction that is not ordered.
    pub fn each_unsent(&mut self, visit: &mut dyn FnMut(&mut T)) {
        self.queue.each(visit);
        if let Some(sending) = &mut self.sending {
            visit(&mut sending.packet.item);
        }
    }

    /// Shows every frame anywhere in this direction to `visit`, in any order.
    pub fn each(&mut self, visit: &mut dyn FnMut(&T)) {
        self.each_unsent(&mut |item| visit(item));
        self.foresight.each_lost(visit);
        self.propagation.each(visit);
        self.dropped.iter().for_each(|(item, _)| visit(item));
    }

    /// Frames waiting for the transmitter.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.foresight.waiting().0
    }

    /// Frames anywhere in this direction.
    pub fn len(&self) -> usize {
        let unsent = self.queue.len() + usize::from(self.sending.is_some());
        unsent + self.foresight.lost() + self.propagation.len()
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
    use topology::model::{self, Limit};

    fn direction(rate: Option<u64>, delay_ns: u64, limit: Limit) -> Direction {
        Direction {
            rate,
            overhead: 24,
            delay: Duration::from_nanos(delay_ns),
            queue: model::Queue {
                limit,
                ..model::Queue::default()
            },
            ..Direction::default()
        }
    }

    fn shaper(d: &Direction) -> Shaper<usize> {
        Shaper::new(d, &Streams::new(1).next_direction(), Time::ZERO)
    }

    fn header(len: u32) -> Header {
        Header {
            len,
            ..Header::default()
        }
    }

    /// As a shard does it.
    fn offer(s: &mut Shaper<usize>, now: Time, item: usize, len: u32) -> Result<(), Reason> {
        let marked = s.admit(now, header(len), false)?;
        let fate = s.foretell(len);
        s.enqueue(now, item, header(len), marked, fate);
        Ok(())
    }

    /// Everything a shaper does up to `now`, as a shard would do it: arrivals by number and time.
    fn run(s: &mut Shaper<usize>, now: Time, out: &mut Vec<(usize, u64)>) {
        while let Some((at, step)) = s.step(now) {
            match step {
                Step::Transmitted(sent) => {
                    s.propagate(at, sent.item);
                    if sent.again {
                        s.repeat(at, Some(sent.item));
                    }
                }
                Step::Arrived(i) => out.push((i, at.as_nanos())),
                Step::Lost(..) | Step::Begun => {}
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
            offer(&mut s, Time::from_nanos(100), i, 1476).unwrap(); // 12 µs with overhead
        }
        let mut out = Vec::new();
        run(&mut s, Time::from_nanos(1 << 40), &mut out);
        assert_eq!(out, [(0, 1_012_100), (1, 1_024_100), (2, 1_036_100)]);
    }

    #[test]
    fn the_frame_in_transmission_does_not_count() {
        // Frames that wait with their sender.
        let offer = |s: &mut Shaper<usize>, now, item, len| {
            let marked = s.admit(now, header(len), false)?;
            s.enqueue(now, item, header(len), marked, None);
            Ok::<_, Reason>(())
        };
        let mut s = shaper(&direction(Some(1000), 0, Limit::Packets(1)));
        for i in 0..2 {
            assert_eq!(offer(&mut s, Time::ZERO, i, 100), Ok(()));
        }
        assert!(!s.has_room(100));
        assert_eq!(offer(&mut s, Time::ZERO, 2, 100), Err(Reason::Full));
        let mut none = shaper(&direction(Some(1000), 0, Limit::Packets(0)));
        assert!(none.has_room(100));
        assert_eq!(offer(&mut none, Time::ZERO, 0, 100), Ok(()));
        assert_eq!(offer(&mut none, Time::ZERO, 1, 100), Err(Reason::Full));
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
                let _ = offer(&mut s, at, i, *len);
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
                offer(&mut s, Time::ZERO, i, *len).unwrap();
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

    /// What is done to a direction: after so many nanoseconds.
    #[derive(Debug, Clone)]
    enum Act {
        Offer(u32),
        Change(Box<Direction>),
        Wait,
    }

    /// What a direction does, with the time at which it ideally does it.
    #[derive(Debug, PartialEq, Eq)]
    enum Done {
        Arrived(usize),
        Lost(usize, Reason),
        Flipped(usize, u32),
        Dropped(usize, Reason),
        Refused(usize, Reason),
        /// Frames that wait.
        Queued(usize),
    }

    struct Driven {
        shaper: Shaper<usize>,
        foresees: bool,
        log: Vec<(u64, Done)>,
        /// Whether anything was ever known beforehand.
        foresaw: bool,
    }

    impl Driven {
        fn new(attributes: &Direction, foresees: bool) -> Self {
            let mut shaper = shaper(attributes);
            shaper.predictable &= foresees;
            Self {
                shaper,
                foresees,
                log: Vec::new(),
                foresaw: false,
            }
        }

        fn note(&mut self, at: Time, what: Done) {
            self.log.push((at.as_nanos(), what));
            while let Some((item, reason)) = self.shaper.dropped() {
                self.log.push((at.as_nanos(), Done::Dropped(item, reason)));
            }
        }

        fn run(&mut self, now: Time) {
            while let Some((at, step)) = self.shaper.step(now) {
                match step {
                    Step::Transmitted(sent) => {
                        if let Some(bit) = sent.flipped {
                            self.note(at, Done::Flipped(sent.item, bit));
                        }
                        self.shaper.propagate(at, sent.item);
                        if sent.again {
                            self.shaper.repeat(at, Some(sent.item));
                        }
                    }
                    Step::Arrived(i) => self.note(at, Done::Arrived(i)),
                    Step::Lost(i, reason) => self.note(at, Done::Lost(i, reason)),
                    Step::Begun => {}
                }
            }
        }

        fn act(&mut self, now: Time, number: usize, act: &Act) {
            self.run(now);
            match act {
                // How many wait is not told each time a transmission begins.
                Act::Wait => return,
                Act::Change(attributes) => {
                    self.shaper.change(now, attributes);
                    self.shaper.predictable &= self.foresees;
                }
                Act::Offer(len) => {
                    let header = header(*len);
                    let marked = match self.shaper.admit(now, header, false) {
                        Ok(marked) => marked,
                        Err(reason) => return self.note(now, Done::Refused(number, reason)),
                    };
                    let mut fate = self.shaper.foretell(*len);
                    if let Some(bit) = fate.as_mut().and_then(|fate| fate.flipped.take()) {
                        self.note(now, Done::Flipped(number, bit));
                    }
                    self.shaper.enqueue(now, number, header, marked, fate);
                }
            }
            self.foresaw |= !self.shaper.foresight.is_empty();
            self.note(now, Done::Queued(self.shaper.queued()));
        }
    }

    /// Mostly what can be foreseen, now and then what cannot.
    fn attributes() -> impl Strategy<Value = Direction> {
        let rate = prop_oneof![
            1 => Just(None),
            5 => (1_000_000u64..100_000_000_000).prop_map(Some),
            5 => (1_000_000_000u64..10_000_000_000).prop_map(Some),
        ];
        let limit = prop_oneof![
            (0u32..30).prop_map(Limit::Packets),
            (0u64..30_000).prop_map(Limit::Bytes)
        ];
        let discipline = prop_oneof![
            8 => Just(model::Discipline::default()),
            1 => Just(model::Discipline::Fifo(model::DropFrom::Head)),
            1 => Just(model::Discipline::Red(model::Red::default())),
            1 => Just(model::Discipline::Codel(model::Codel::default())),
        ];
        let rare = |p: f64| prop_oneof![4 => Just(0.0), 1 => Just(p)];
        let loss = prop_oneof![
            2 => Just(model::Loss::Random(0.0)),
            2 => Just(model::Loss::Random(0.2)),
            1 => Just(model::Loss::Every(3)),
        ];
        let delay = prop_oneof![Just(0u64), 0u64..100_000];
        let jitter = prop_oneof![6 => Just(0u64), 1 => Just(20_000)];
        let overhead = prop_oneof![Just(24u32), Just(0)];
        (
            rate,
            (limit, discipline),
            (delay, jitter),
            loss,
            (rare(0.1), rare(1e-5), overhead),
        )
            .prop_map(
                |(rate, (limit, discipline), (delay, jitter), loss, (corrupt, ber, overhead))| {
                    Direction {
                        rate,
                        overhead,
                        delay: Duration::from_nanos(delay),
                        jitter: model::Jitter {
                            spread: Duration::from_nanos(jitter),
                            ..model::Jitter::default()
                        },
                        loss,
                        corrupt,
                        ber,
                        queue: model::Queue { limit, discipline },
                        ..Direction::default()
                    }
                },
            )
    }

    fn acts() -> impl Strategy<Value = Vec<(u64, Act)>> {
        let act = prop_oneof![
            20 => (14u32..2000).prop_map(Act::Offer),
            1 => attributes().prop_map(|a| Act::Change(Box::new(a))),
            2 => Just(Act::Wait),
        ];
        let gap = prop_oneof![3 => Just(0u64), 3 => 0u64..2_000, 1 => 0u64..200_000];
        prop::collection::vec((gap, act), 1..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// What is known beforehand is what happens: the same frames at the same times, lost, refused and flipped alike, and as many of
        /// them waiting, whatever is changed meanwhile.
        #[test]
        fn foresight_is_right(first in attributes(), acts in acts()) {
            let [mut a, mut b] = [true, false].map(|foresees| Driven::new(&first, foresees));
            for d in [&mut a, &mut b] {
                let mut now = 0;
                for (number, (gap, act)) in acts.iter().enumerate() {
                    now += gap;
                    d.act(Time::from_nanos(now), number, act);
                }
                d.run(Time::from_nanos(u64::MAX));
                prop_assert!(d.shaper.is_empty());
            }
            prop_assert!(!b.foresaw);
            prop_assert_eq!(a.log, b.log);
        }
    }

    #[test]
    fn what_waits_is_told_in_time() {
        // A frame takes a millisecond and arrives a second later.
        let d = Direction {
            overhead: 0,
            ..direction(Some(8_000_000), 1_000_000_000, Limit::Packets(100))
        };
        let mut s = shaper(&d);
        for i in 0..10 {
            offer(&mut s, Time::ZERO, i, 1000).unwrap();
        }
        assert!(s.foresees() && s.queued() == 9);
        let mut times = Vec::new();
        while let Some((at, step)) = s.step(Time::from_nanos(500_000_000)) {
            assert_eq!(step, Step::Begun);
            times.push((at.as_nanos() / 1_000_000, s.queued()));
        }
        let expected: Vec<_> = (1..10).map(|ms| (ms, 9 - ms as usize)).collect();
        assert_eq!(times, expected);
    }
}
