//! Each discipline against an obviously correct model, to the nanosecond, and the properties that all have in common.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use topology::model::{
    Codel, Direction, Discipline, DropFrom, FqCodel, Limit, Pie, Queue, Red, Reorder,
};

use super::flows::Flows;
use crate::clock::Time;
use crate::link::random::uniform;
use crate::link::{DirectionStreams, Header, Reason, Shaper, Step, Streams};

const OVERHEAD: u32 = 24;

/// A frame that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    id: usize,
    at: u64,
    len: u32,
    flow: u32,
}

impl Frame {
    fn header(self) -> Header {
        Header {
            len: self.len,
            flow: self.flow,
            ecn_capable: false,
        }
    }
}

fn streams() -> DirectionStreams {
    Streams::new(11).next_direction()
}

fn bucket(flow: u32, flows: u32) -> u32 {
    let flows = Flows::<usize>::new(Limit::Packets(1), DropFrom::Tail, flows, streams().salt);
    flows.bucket(Header {
        flow,
        ..Header::default()
    })
}

fn direction(rate: u64, limit: Limit, discipline: Discipline) -> Direction {
    Direction {
        rate: Some(rate),
        overhead: OVERHEAD,
        queue: Queue { limit, discipline },
        ..Direction::default()
    }
}

/// A shaper, what has left it and when, and what it has dropped.
struct Run {
    shaper: Shaper<Frame>,
    out: Vec<(usize, u64)>,
    dropped: Vec<(usize, Reason)>,
}

impl Run {
    fn new(attributes: &Direction) -> Self {
        Self {
            shaper: Shaper::new(attributes, &streams(), Time::ZERO),
            out: Vec::new(),
            dropped: Vec::new(),
        }
    }

    fn collect(&mut self) {
        while let Some((frame, reason)) = self.shaper.dropped() {
            self.dropped.push((frame.id, reason));
        }
    }

    fn until(&mut self, now: u64) {
        while let Some((at, step)) = self.shaper.step(Time::from_nanos(now)) {
            match step {
                Step::Transmitted(sent) => {
                    self.shaper.propagate(at, sent.item);
                    if sent.again {
                        self.shaper.repeat(at, Some(sent.item));
                    }
                }
                Step::Arrived(frame) => self.out.push((frame.id, at.as_nanos())),
                Step::Lost(frame, reason) => self.dropped.push((frame.id, reason)),
                Step::Begun => {}
            }
            self.collect();
        }
    }

    fn offer(&mut self, frame: Frame) {
        self.until(frame.at);
        let now = Time::from_nanos(frame.at);
        let admitted = self.shaper.admit(now, frame.header(), false);
        self.collect();
        match admitted {
            Ok(marked) => self
                .shaper
                .enqueue(now, frame, frame.header(), marked, None),
            Err(reason) => self.dropped.push((frame.id, reason)),
        }
        self.collect();
    }

    fn finish(mut self) -> Self {
        self.until(u64::MAX);
        assert!(self.shaper.is_empty());
        self
    }

    fn all(attributes: &Direction, frames: &[Frame]) -> Self {
        let mut run = Self::new(attributes);
        for frame in frames {
            run.offer(*frame);
        }
        run.finish()
    }
}

/// The queue as the literature describes it, without a thought of speed.
trait Model {
    /// A frame comes; `idle`: the link has nothing to do and the queue is empty.
    fn arrive(&mut self, now: u64, idle: bool, frame: Frame);
    /// The link takes the next frame.
    fn pick(&mut self, now: u64) -> Option<Frame>;
}

/// A link in rational arithmetic with the rate as denominator.
fn simulate(rate: u64, frames: &[Frame], model: &mut dyn Model) -> Vec<(usize, u64)> {
    let rate = u128::from(rate);
    let mut out = Vec::new();
    let mut end = 0u128;
    let mut busy = false;
    let mut frames = frames.iter().peekable();
    loop {
        let ended = (end / rate) as u64;
        let comes = frames.peek().map(|frame| frame.at);
        let (now, arrival) = match comes {
            Some(at) if !busy || at < ended => (at, frames.next()),
            None if !busy => return out,
            _ => (ended, None),
        };
        if let Some(frame) = arrival {
            model.arrive(now, !busy, *frame);
            if busy {
                continue;
            }
            end = end.max(u128::from(now) * rate);
        }
        busy = false;
        if let Some(frame) = model.pick(now) {
            busy = true;
            end += u128::from(frame.len + OVERHEAD) * 8_000_000_000;
            out.push((frame.id, (end / rate) as u64));
        }
    }
}

fn bytes<'a>(frames: impl IntoIterator<Item = &'a Frame>) -> u64 {
    frames.into_iter().map(|f| u64::from(f.len)).sum()
}

fn is_full<'a>(
    limit: Limit,
    waiting: impl IntoIterator<Item = &'a Frame> + Clone,
    len: u32,
) -> bool {
    match limit {
        Limit::Packets(n) => waiting.into_iter().count() >= n as usize,
        Limit::Bytes(n) => bytes(waiting) + u64::from(len) > n,
    }
}

struct FifoModel {
    waiting: VecDeque<Frame>,
    limit: Limit,
    drop: DropFrom,
}

impl Model for FifoModel {
    fn arrive(&mut self, _: u64, idle: bool, frame: Frame) {
        while !idle && is_full(self.limit, &self.waiting, frame.len) {
            if self.drop == DropFrom::Tail || self.waiting.pop_front().is_none() {
                return;
            }
        }
        self.waiting.push_back(frame);
    }

    fn pick(&mut self, _: u64) -> Option<Frame> {
        self.waiting.pop_front()
    }
}

/// Flows by bucket with a common limit: of the one with the most bytes a frame is dropped, the newcomer counted with its own.
struct Buckets {
    flows: Vec<VecDeque<Frame>>,
    limit: Limit,
    drop: DropFrom,
}

impl Buckets {
    fn new(flows: u32, limit: Limit, drop: DropFrom) -> Self {
        Self {
            flows: vec![VecDeque::new(); flows as usize],
            limit,
            drop,
        }
    }

    fn own(&self, frame: Frame) -> usize {
        bucket(frame.flow, self.flows.len() as u32) as usize
    }

    /// Whether the frame is let in.
    fn make_room(&mut self, idle: bool, frame: Frame) -> bool {
        let own = self.own(frame);
        while !idle && is_full(self.limit, self.flows.iter().flatten(), frame.len) {
            let most = self.flows.iter().map(bytes).max().unwrap();
            let victim = if bytes(&self.flows[own]) + u64::from(frame.len) >= most {
                own
            } else {
                self.flows.iter().position(|f| bytes(f) == most).unwrap()
            };
            let dropped = match self.drop {
                DropFrom::Head => self.flows[victim].pop_front(),
                DropFrom::Tail if victim == own => None,
                DropFrom::Tail => self.flows[victim].pop_back(),
            };
            if dropped.is_none() {
                return false;
            }
        }
        true
    }
}

/// Figure 2 of the paper: each flow in `ActiveList` gets its quantum and sends what it covers, then goes to the end.
struct DrrModel {
    buckets: Buckets,
    quantum: u64,
    active: VecDeque<usize>,
    deficit: Vec<u64>,
    served: bool,
}

impl Model for DrrModel {
    fn arrive(&mut self, _: u64, idle: bool, frame: Frame) {
        if !self.buckets.make_room(idle, frame) {
            return;
        }
        let own = self.buckets.own(frame);
        if !self.active.contains(&own) {
            self.active.push_back(own);
            self.deficit[own] = 0;
        }
        self.buckets.flows[own].push_back(frame);
    }

    fn pick(&mut self, _: u64) -> Option<Frame> {
        loop {
            let flow = *self.active.front()?;
            if !self.served {
                self.deficit[flow] += self.quantum;
                self.served = true;
            }
            let waiting = &mut self.buckets.flows[flow];
            match waiting.front().map(|f| u64::from(f.len)) {
                Some(len) if len <= self.deficit[flow] => {
                    self.deficit[flow] -= len;
                    let frame = waiting.pop_front();
                    if waiting.is_empty() {
                        self.active.pop_front();
                        self.served = false;
                    }
                    return frame;
                }
                Some(_) => self.active.rotate_left(1),
                None => {
                    self.active.pop_front();
                }
            }
            self.served = false;
        }
    }
}

/// Every frame gets its tag when it comes.
struct WfqModel {
    waiting: Vec<(u64, u32, Frame)>,
    last: Vec<u64>,
    v: u64,
}

impl Model for WfqModel {
    fn arrive(&mut self, _: u64, _: bool, frame: Frame) {
        let flow = bucket(frame.flow, self.last.len() as u32);
        let tag = self.last[flow as usize].max(self.v) + u64::from(frame.len);
        self.last[flow as usize] = tag;
        self.waiting.push((tag, flow, frame));
    }

    fn pick(&mut self, _: u64) -> Option<Frame> {
        let (tag, flow, _) = *self
            .waiting
            .iter()
            .min_by_key(|(tag, flow, _)| (*tag, *flow))?;
        let first = self
            .waiting
            .iter()
            .position(|w| (w.0, w.1) == (tag, flow))?;
        self.v = tag;
        Some(self.waiting.remove(first).2)
    }
}

/// Tags of heads only, as in the paper, found by looking at all flows. Virtual time in 2^-20 bytes.
struct Wf2qModel {
    flows: Vec<VecDeque<Frame>>,
    start: Vec<u128>,
    finish: Vec<u128>,
    v: u128,
}

impl Wf2qModel {
    fn head(&mut self, flow: usize, start: u128) {
        self.start[flow] = start;
        self.finish[flow] = start + (u128::from(self.flows[flow][0].len) << 20);
    }
}

impl Model for Wf2qModel {
    fn arrive(&mut self, _: u64, _: bool, frame: Frame) {
        let flow = bucket(frame.flow, self.flows.len() as u32) as usize;
        self.flows[flow].push_back(frame);
        if self.flows[flow].len() == 1 {
            self.head(flow, self.finish[flow].max(self.v));
        }
    }

    fn pick(&mut self, _: u64) -> Option<Frame> {
        let backlogged: Vec<usize> = (0..self.flows.len())
            .filter(|f| !self.flows[*f].is_empty())
            .collect();
        let Some(least) = backlogged.iter().map(|f| self.start[*f]).min() else {
            self.v = self.v.max(*self.finish.iter().max().unwrap());
            return None;
        };
        self.v = self.v.max(least);
        let eligible = backlogged.iter().filter(|f| self.start[**f] <= self.v);
        let flow = *eligible.min_by_key(|f| (self.finish[**f], **f)).unwrap();
        let frame = self.flows[flow].pop_front()?;
        self.v += (u128::from(frame.len) << 20) / backlogged.len() as u128;
        if !self.flows[flow].is_empty() {
            self.head(flow, self.finish[flow]);
        }
        Some(frame)
    }
}

/// The pseudo-code of RFC 8289 §5, line by line.
#[derive(Clone, Default)]
struct CodelModel {
    queue: VecDeque<Frame>,
    target: u64,
    interval: u64,
    max_packet: u64,
    first_above_time: u64,
    drop_next: u64,
    count: u32,
    lastcount: u32,
    dropping: bool,
    drops: Vec<u64>,
}

impl CodelModel {
    fn new(settings: Codel) -> Self {
        Self {
            target: settings.target.as_nanos() as u64,
            interval: settings.interval.as_nanos() as u64,
            ..Self::default()
        }
    }

    fn dodequeue(&mut self, now: u64) -> (Option<Frame>, bool) {
        let Some(p) = self.queue.pop_front() else {
            self.first_above_time = 0;
            return (None, false);
        };
        if now - p.at < self.target || bytes(&self.queue) <= self.max_packet {
            self.first_above_time = 0;
        } else if self.first_above_time == 0 {
            self.first_above_time = now + self.interval;
        } else if now >= self.first_above_time {
            return (Some(p), true);
        }
        (Some(p), false)
    }

    fn control_law(&self, t: u64) -> u64 {
        t + (self.interval as f64 / f64::from(self.count).sqrt()) as u64
    }

    fn deque(&mut self, now: u64) -> Option<Frame> {
        let (mut p, mut ok_to_drop) = self.dodequeue(now);
        if self.dropping {
            if !ok_to_drop {
                self.dropping = false;
            }
            while now >= self.drop_next && self.dropping {
                self.drops.push(now);
                self.count += 1;
                (p, ok_to_drop) = self.dodequeue(now);
                if ok_to_drop {
                    self.drop_next = self.control_law(self.drop_next);
                } else {
                    self.dropping = false;
                }
            }
        } else if ok_to_drop {
            self.drops.push(now);
            p = self.dodequeue(now).0;
            self.dropping = true;
            let delta = self.count - self.lastcount;
            self.count = 1;
            if delta > 1 && (now as i64 - self.drop_next as i64) < 16 * self.interval as i64 {
                self.count = delta;
            }
            self.drop_next = self.control_law(now);
            self.lastcount = self.count;
        }
        p
    }
}

struct LimitedCodel(CodelModel, Limit);

impl Model for LimitedCodel {
    fn arrive(&mut self, _: u64, idle: bool, frame: Frame) {
        if idle || !is_full(self.1, &self.0.queue, frame.len) {
            self.0.max_packet = self.0.max_packet.max(frame.len.into());
            self.0.queue.push_back(frame);
        }
    }

    fn pick(&mut self, now: u64) -> Option<Frame> {
        self.0.deque(now)
    }
}

/// RFC 8290 §4.
struct FqCodelModel {
    flows: Vec<CodelModel>,
    deficit: Vec<i64>,
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    quantum: i64,
    limit: Limit,
}

impl Model for FqCodelModel {
    fn arrive(&mut self, _: u64, idle: bool, frame: Frame) {
        let own = bucket(frame.flow, self.flows.len() as u32) as usize;
        while !idle
            && is_full(
                self.limit,
                self.flows.iter().flat_map(|f| &f.queue),
                frame.len,
            )
        {
            let most = self.flows.iter().map(|f| bytes(&f.queue)).max().unwrap();
            let fattest = if bytes(&self.flows[own].queue) + u64::from(frame.len) >= most {
                own
            } else {
                self.flows
                    .iter()
                    .position(|f| bytes(&f.queue) == most)
                    .unwrap()
            };
            let queue = &mut self.flows[fattest].queue;
            let half = bytes(&*queue) / 2;
            if queue.is_empty() {
                return;
            }
            let mut dropped = 0;
            for _ in 0..64 {
                dropped += queue.pop_front().map_or(0, |f| u64::from(f.len));
                if dropped >= half {
                    break;
                }
            }
        }
        for flow in &mut self.flows {
            flow.max_packet = flow.max_packet.max(frame.len.into());
        }
        self.flows[own].queue.push_back(frame);
        if !self.new.contains(&own) && !self.old.contains(&own) {
            self.deficit[own] = self.quantum;
            self.new.push_back(own);
        }
    }

    fn pick(&mut self, now: u64) -> Option<Frame> {
        loop {
            let from_new = !self.new.is_empty();
            let list = if from_new {
                &mut self.new
            } else {
                &mut self.old
            };
            let flow = *list.front()?;
            if self.deficit[flow] <= 0 {
                list.pop_front();
                self.deficit[flow] += self.quantum;
                self.old.push_back(flow);
                continue;
            }
            if let Some(frame) = self.flows[flow].deque(now) {
                self.deficit[flow] -= i64::from(frame.len);
                return Some(frame);
            }
            list.pop_front();
            if from_new {
                self.old.push_back(flow);
            }
        }
    }
}

/// Figure 2 of the paper with thresholds in packets, and the gentle variant.
struct RedModel {
    queue: VecDeque<Frame>,
    s: Red,
    limit: Limit,
    random: rand_xoshiro::Xoshiro256PlusPlus,
    avg: f64,
    count: i64,
    q_time: u64,
    /// Transmission time of 1000 bytes.
    typical: f64,
}

impl Model for RedModel {
    fn arrive(&mut self, now: u64, idle: bool, frame: Frame) {
        let (Limit::Packets(min), Limit::Packets(max)) = (self.s.min_th, self.s.max_th) else {
            panic!("in packets");
        };
        let (min, max) = (f64::from(min), f64::from(max));
        if idle {
            let m = (now - self.q_time) as f64 / self.typical;
            self.avg *= libm::pow(1.0 - self.s.w_q, m);
            self.q_time = now;
        } else {
            self.avg += self.s.w_q * (self.queue.len() as f64 - self.avg);
        }
        let p_b = match self.avg {
            avg if avg < min => 0.0,
            avg if avg < max => self.s.max_p * (avg - min) / (max - min),
            avg if self.s.gentle && avg < 2.0 * max => {
                self.s.max_p + (1.0 - self.s.max_p) * (avg - max) / max
            }
            _ => 1.0,
        };
        if self.avg < min {
            self.count = -1;
        } else if p_b >= 1.0 {
            self.count = 0;
            return;
        } else {
            self.count += 1;
            let spent = self.count as f64 * p_b;
            let p_a = if spent < 1.0 {
                p_b / (1.0 - spent)
            } else {
                1.0
            };
            if uniform(&mut self.random) < p_a {
                self.count = 0;
                return;
            }
        }
        if idle || !is_full(self.limit, &self.queue, frame.len) {
            self.queue.push_back(frame);
        }
    }

    fn pick(&mut self, now: u64) -> Option<Frame> {
        if self.queue.is_empty() {
            self.q_time = now;
        }
        self.queue.pop_front()
    }
}

/// RFC 8033 with a timer that never rests.
struct PieModel {
    queue: VecDeque<Frame>,
    s: Pie,
    limit: Limit,
    random: rand_xoshiro::Xoshiro256PlusPlus,
    timer: u64,
    p: f64,
    accu: f64,
    delay: u64,
    old: u64,
    burst: u64,
}

impl PieModel {
    fn run_timer(&mut self, now: u64) {
        let (target, period) = (
            self.s.target.as_nanos() as u64,
            self.s.t_update.as_nanos() as u64,
        );
        if self.timer == 0 {
            self.timer = now + period;
        }
        while self.timer <= now {
            self.timer += period;
            let s = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
            let mut p = self.s.alpha * (s(self.delay) - s(target));
            p += self.s.beta * (s(self.delay) - s(self.old));
            for (bound, divisor) in [
                (0.000_001, 2048.0),
                (0.000_01, 512.0),
                (0.000_1, 128.0),
                (0.001, 32.0),
                (0.01, 8.0),
                (0.1, 2.0),
            ] {
                if self.p < bound {
                    p /= divisor;
                    break;
                }
            }
            if self.p >= 0.1 && p > 0.02 {
                p = 0.02;
            }
            if self.delay > 250_000_000 {
                p += 0.02;
            }
            self.p += p;
            self.p = self.p.clamp(0.0, 1.0);
            if self.delay == 0 && self.old == 0 {
                self.p *= 0.98;
            }
            self.burst = self.burst.saturating_sub(period);
            if self.p == 0.0 && self.delay < target / 2 && self.old < target / 2 {
                self.burst = self.s.max_burst.as_nanos() as u64;
            }
            self.old = self.delay;
        }
    }

    fn drops_early(&mut self) -> bool {
        let target = self.s.target.as_nanos() as u64;
        if self.burst > 0
            || (self.old < target / 2 && self.p < 0.2)
            || bytes(&self.queue) <= 2 * 1514
        {
            return false;
        }
        self.accu = if self.p == 0.0 {
            0.0
        } else {
            self.accu + self.p
        };
        self.accu >= 0.85 && (self.accu >= 8.5 || uniform(&mut self.random) < self.p)
    }
}

impl Model for PieModel {
    fn arrive(&mut self, now: u64, idle: bool, frame: Frame) {
        self.run_timer(now);
        if (!idle && is_full(self.limit, &self.queue, frame.len)) || self.drops_early() {
            self.accu = 0.0;
            return;
        }
        self.queue.push_back(frame);
    }

    fn pick(&mut self, now: u64) -> Option<Frame> {
        self.run_timer(now);
        let frame = self.queue.pop_front();
        self.delay = match frame {
            Some(frame) if !self.queue.is_empty() => now - frame.at,
            _ => 0,
        };
        frame
    }
}

/// The model of a discipline on a link of `rate`.
fn model(rate: u64, limit: Limit, discipline: &Discipline) -> Box<dyn Model> {
    match *discipline {
        Discipline::Fifo(drop) => Box::new(FifoModel {
            waiting: VecDeque::new(),
            limit,
            drop,
        }),
        Discipline::Drr {
            drop,
            flows,
            quantum,
        } => Box::new(DrrModel {
            buckets: Buckets::new(flows, limit, drop),
            quantum: quantum.into(),
            active: VecDeque::new(),
            deficit: vec![0; flows as usize],
            served: false,
        }),
        Discipline::Wfq { flows, .. } => Box::new(WfqModel {
            waiting: Vec::new(),
            last: vec![0; flows as usize],
            v: 0,
        }),
        Discipline::Wf2q { flows, .. } => Box::new(Wf2qModel {
            flows: vec![VecDeque::new(); flows as usize],
            start: vec![0; flows as usize],
            finish: vec![0; flows as usize],
            v: 0,
        }),
        Discipline::Red(s) => Box::new(RedModel {
            queue: VecDeque::new(),
            s,
            limit,
            random: streams().queue,
            avg: 0.0,
            count: -1,
            q_time: 0,
            typical: (8_000_000_000_000 / rate) as f64,
        }),
        Discipline::Codel(s) => Box::new(LimitedCodel(CodelModel::new(s), limit)),
        Discipline::FqCodel(s) => Box::new(FqCodelModel {
            flows: vec![CodelModel::new(s.codel); s.flows as usize],
            deficit: vec![0; s.flows as usize],
            new: VecDeque::new(),
            old: VecDeque::new(),
            quantum: s.quantum.into(),
            limit,
        }),
        Discipline::Pie(s) => Box::new(PieModel {
            queue: VecDeque::new(),
            s,
            limit,
            random: streams().queue,
            timer: 0,
            p: 0.0,
            accu: 0.0,
            delay: 0,
            old: 0,
            burst: s.max_burst.as_nanos() as u64,
        }),
    }
}

/// Frames of a few flows, on average about as fast as a link of 10 Mbit/s or some times faster.
fn traffic(n: usize) -> impl Strategy<Value = Vec<Frame>> {
    let gap = prop_oneof![Just(0u64), 0u64..300_000, 0u64..2_000_000];
    prop::collection::vec((gap, 14u32..1600, 0u32..6), 1..n).prop_map(|frames| {
        let mut at = 1;
        let frame = |(id, (gap, len, flow))| {
            at += gap;
            Frame { id, at, len, flow }
        };
        frames.into_iter().enumerate().map(frame).collect()
    })
}

fn drop_from() -> impl Strategy<Value = DropFrom> {
    prop_oneof![Just(DropFrom::Head), Just(DropFrom::Tail)]
}

/// With intervals so short that the control laws have something to do in a few hundred frames.
fn codel() -> impl Strategy<Value = Codel> {
    (10u64..3000, 1u64..20).prop_map(|(target, interval)| Codel {
        target: Duration::from_micros(target),
        interval: Duration::from_millis(interval),
        ecn: false,
    })
}

fn discipline() -> impl Strategy<Value = Discipline> {
    prop_oneof![
        drop_from().prop_map(Discipline::Fifo),
        (drop_from(), 1u32..5, 64u32..3000).prop_map(|(drop, flows, quantum)| Discipline::Drr {
            drop,
            flows,
            quantum
        }),
        (drop_from(), 1u32..5).prop_map(|(drop, flows)| Discipline::Wfq { drop, flows }),
        (drop_from(), 1u32..5).prop_map(|(drop, flows)| Discipline::Wf2q { drop, flows }),
        (
            1u32..5,
            1u32..10,
            0.01f64..1.0,
            0.002f64..1.0,
            any::<bool>()
        )
            .prop_map(|(min, more, max_p, w_q, gentle)| Discipline::Red(Red {
                min_th: Limit::Packets(min),
                max_th: Limit::Packets(min + more),
                max_p,
                w_q,
                gentle,
                ecn: false,
            })),
        codel().prop_map(Discipline::Codel),
        (codel(), 1u32..5, 64u32..3000).prop_map(|(codel, flows, quantum)| {
            Discipline::FqCodel(FqCodel {
                flows,
                quantum,
                codel,
            })
        }),
        (1u64..10, 1u64..10, 0u64..20).prop_map(|(target, update, burst)| Discipline::Pie(Pie {
            target: Duration::from_millis(target),
            t_update: Duration::from_millis(update),
            max_burst: Duration::from_millis(burst),
            alpha: 20.0,
            beta: 200.0,
            ..Pie::default()
        })),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    prop_oneof![
        (1u32..40).prop_map(Limit::Packets),
        (64u64..40_000).prop_map(Limit::Bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Every frame that leaves does so in the nanosecond the model says, and the others are dropped in both.
    #[test]
    fn as_the_model(
        discipline in discipline(),
        limit in limit(),
        rate in prop_oneof![1_000_000u64..50_000_000, Just(10_000_000)],
        frames in traffic(300),
    ) {
        // A tag given on arrival does not know what will be dropped before its frame.
        let tags = matches!(discipline, Discipline::Wfq { .. } | Discipline::Wf2q { .. });
        let limit = if tags { Limit::Packets(1000) } else { limit };
        let run = Run::all(&direction(rate, limit, discipline.clone()), &frames);
        let expected = simulate(rate, &frames, &mut *model(rate, limit, &discipline));
        prop_assert_eq!(&run.out, &expected);
        prop_assert_eq!(run.out.len() + run.dropped.len(), frames.len());
    }

    /// The link never waits while frames do, never sends faster than its rate, and keeps the order within each flow.
    #[test]
    fn common_properties(discipline in discipline(), limit in limit(), frames in traffic(200)) {
        let rate = 10_000_000;
        let attributes = direction(rate, limit, discipline);
        let run = Run::all(&attributes, &frames);
        let again = Run::all(&attributes, &frames);
        prop_assert_eq!((&run.out, &run.dropped), (&again.out, &again.dropped));

        let bits = |id: usize| u64::from(frames[id].len + OVERHEAD) * 8;
        for pair in run.out.windows(2) {
            let (_, before) = pair[0];
            let (id, end) = pair[1];
            let took = bits(id) * 1_000_000_000 / rate;
            // From the end of the one before, or from its own arrival: never earlier, never later.
            let begin = before.max(frames[id].at);
            prop_assert!(end + 1 >= before + took && (end + 1 >= begin + took), "too fast");
            let idle = end - took > before + 1;
            prop_assert!(!idle || (end - took).abs_diff(frames[id].at) <= 1, "it waited");
        }
        for flow in 0..6 {
            let ids: Vec<usize> = run.out.iter().map(|(id, _)| *id).filter(|id| frames[*id].flow == flow).collect();
            prop_assert!(ids.is_sorted());
        }
        let mut all: Vec<usize> = run.out.iter().map(|(id, _)| *id).chain(run.dropped.iter().map(|(id, _)| *id)).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..frames.len()).collect::<Vec<_>>());
    }

    /// Whatever is changed while frames are inside: none disappears, none of a flow overtakes another.
    #[test]
    fn changes_lose_nothing(
        frames in traffic(150),
        changes in prop::collection::vec((0usize..150, discipline(), limit(), prop::option::of(100_000u64..1_000_000_000), 0u64..20), 1..8),
    ) {
        let mut attributes = direction(10_000_000, Limit::Packets(1000), Discipline::default());
        let mut run = Run::new(&attributes);
        for (n, frame) in frames.iter().enumerate() {
            for (_, discipline, limit, rate, delay) in changes.iter().filter(|c| c.0 == n) {
                attributes.rate = *rate;
                attributes.queue = Queue { limit: *limit, discipline: discipline.clone() };
                attributes.delay = Duration::from_millis(*delay);
                run.until(frame.at);
                let (inside, dropped) = (run.shaper.len(), run.dropped.len());
                run.shaper.change(Time::from_nanos(frame.at), &attributes);
                run.collect();
                prop_assert_eq!((run.shaper.len(), run.dropped.len()), (inside, dropped));
            }
            run.offer(*frame);
        }
        let run = run.finish();
        prop_assert_eq!(run.out.len() + run.dropped.len(), frames.len());
        prop_assert!(run.out.is_sorted_by_key(|(_, at)| *at));
        for flow in 0..6 {
            let ids: Vec<usize> = run.out.iter().map(|(id, _)| *id).filter(|id| frames[*id].flow == flow).collect();
            prop_assert!(ids.is_sorted());
        }
    }

    /// No flow that always has something waiting is ever ahead of or behind its share by more than one largest frame.
    #[test]
    fn wf2q_lag(lens in prop::collection::vec(64u32..1515, 200), flows in 2usize..6) {
        let discipline = Discipline::Wf2q { drop: DropFrom::Tail, flows: 4096 };
        // One of another flow keeps the link busy while the others come.
        let mut frames = vec![Frame { id: 0, at: 1, len: 1514, flow: 99 }];
        frames.extend((1..).zip(&lens).map(|(id, len)| Frame { id, at: 1, len: *len, flow: (id % flows) as u32 }));
        let run = Run::all(&direction(10_000_000, Limit::Packets(1000), discipline), &frames);
        let mut served = vec![0f64; flows];
        let mut waiting = vec![0; flows];
        for f in &frames[1..] {
            waiting[f.flow as usize] += 1;
        }
        for (id, _) in run.out.iter().skip(1) {
            let frame = frames[*id];
            served[frame.flow as usize] += f64::from(frame.len);
            waiting[frame.flow as usize] -= 1;
            let fair = served.iter().sum::<f64>() / flows as f64;
            prop_assert!(served.iter().all(|s| (s - fair).abs() <= 1514.0 + 1.0), "{served:?}");
            if waiting.contains(&0) {
                break;
            }
        }
    }

    /// Over any number of rounds two flows that always have something waiting differ by less than quantum + 2 frames (Theorem 3
    /// of the paper).
    #[test]
    fn drr_fairness(lens in prop::collection::vec(64u32..1515, 300), flows in 2usize..5) {
        let discipline = Discipline::Drr { drop: DropFrom::Tail, flows: 4096, quantum: 1514 };
        let frames: Vec<Frame> = lens.iter().enumerate()
            .map(|(id, len)| Frame { id, at: 1, len: *len, flow: (id % flows) as u32 })
            .collect();
        let run = Run::all(&direction(10_000_000, Limit::Packets(1000), discipline), &frames);
        let mut served = vec![0i64; flows];
        let mut left = vec![0; flows];
        for f in &frames {
            left[f.flow as usize] += 1;
        }
        for (id, _) in &run.out {
            let frame = frames[*id];
            served[frame.flow as usize] += i64::from(frame.len);
            left[frame.flow as usize] -= 1;
            let spread = served.iter().max().unwrap() - served.iter().min().unwrap();
            prop_assert!(spread <= 3 * 1514, "{served:?}");
            if left.contains(&0) {
                break;
            }
        }
    }
}

/// A standing queue: the k-th drop after the first comes interval/√k after the one before it, at the first departure from then on.
#[test]
fn codel_control_law() {
    let codel = Codel::default();
    let rate = 10_000_000;
    let frames: Vec<Frame> = (0..4000)
        .map(|id| Frame {
            id,
            at: 1 + id as u64 * 1_000_000,
            len: 1514,
            flow: 0,
        })
        .collect();
    let mut codel_model = LimitedCodel(CodelModel::new(codel), Limit::Packets(100_000));
    let expected = simulate(rate, &frames, &mut codel_model);
    let drops = codel_model.0.drops;
    let mut ideal = drops[0];
    for (k, at) in (1..).zip(&drops[1..]) {
        ideal += (100e6 / f64::from(k).sqrt()) as u64;
        assert!(*at >= ideal && *at < ideal + 1_230_400, "{k}: {at}");
    }
    assert!(drops.len() > 100);
    let attributes = direction(rate, Limit::Packets(100_000), Discipline::Codel(codel));
    let run = Run::all(&attributes, &frames);
    assert_eq!(run.out, expected);
    assert!(
        run.dropped
            .iter()
            .all(|(_, reason)| *reason == Reason::Early)
    );
}

/// With the average held at a value, one of 1/(2p) frames is dropped: the distance between drops is uniform from 1 to 1/p - 1.
#[test]
fn red_drop_curve() {
    for (waiting, p) in [
        (4, 0.0),
        (10, 0.05),
        (15, 0.1),
        (20, 0.4),
        (30, 1.0),
        (40, 1.0),
    ] {
        let red = Red {
            w_q: 1.0,
            ..Red::default()
        };
        let attributes = direction(1_000, Limit::Packets(1000), Discipline::Red(red));
        let mut queue = super::Queue::<usize>::new(&attributes.queue, streams().queue, 0);
        for item in 0..waiting {
            queue.enqueue(super::Packet {
                item,
                header: Header::default(),
                since: Time::ZERO,
                marked: false,
                fate: None,
            });
        }
        let surroundings = super::Surroundings {
            now: Time::ZERO,
            idle: false,
            unlimited: false,
            typical: Duration::from_micros(1),
        };
        let n = 20_000;
        let mut dropped = Vec::new();
        let hits = (0..n)
            .filter(|_| {
                let admitted = queue.admit(Header::default(), surroundings, &mut dropped);
                admitted.is_err()
            })
            .count();
        // Above max-th 1/p is not whole: the mean distance is that of the same hazard, reckoned out.
        let mut mean = 0.0;
        let mut survives = 1.0;
        for count in 1.. {
            mean += survives;
            let spent = f64::from(count) * p;
            let hazard = if spent < 1.0 { p / (1.0 - spent) } else { 1.0 };
            survives *= 1.0 - hazard.min(1.0);
            if survives <= 0.0 || p == 0.0 {
                break;
            }
        }
        let expected = if p == 0.0 { 0.0 } else { f64::from(n) / mean };
        let tolerance = 5.0 * expected.sqrt();
        assert!(
            (hits as f64 - expected).abs() <= tolerance,
            "{waiting}: {hits}, {expected}"
        );
    }
}

/// Marks instead of drops, only for those who understand them.
#[test]
fn marks() {
    let red = Red {
        min_th: Limit::Packets(1),
        max_th: Limit::Packets(100),
        max_p: 1.0,
        w_q: 1.0,
        ecn: true,
        ..Red::default()
    };
    let codel = Codel {
        target: Duration::from_millis(1),
        interval: Duration::from_millis(10),
        ecn: true,
    };
    let fq = FqCodel {
        codel,
        ..FqCodel::default()
    };
    let pie = Pie {
        max_burst: Duration::ZERO,
        alpha: 20.0,
        beta: 200.0,
        max_ecnth: 1.0,
        ecn: true,
        ..Pie::default()
    };
    for discipline in [
        Discipline::Red(red),
        Discipline::Codel(codel),
        Discipline::FqCodel(fq),
        Discipline::Pie(pie),
    ] {
        for ecn_capable in [false, true] {
            let attributes = direction(10_000_000, Limit::Packets(1000), discipline.clone());
            let mut shaper = Shaper::<()>::new(&attributes, &streams(), Time::ZERO);
            let header = Header {
                len: 1514,
                flow: 1,
                ecn_capable,
            };
            let (mut marked, mut dropped) = (0, 0);
            for n in 0..300u64 {
                let now = Time::from_nanos(1 + n * 1_000_000);
                while let Some((_, step)) = shaper.step(now) {
                    if let Step::Transmitted(sent) = step {
                        marked += u32::from(sent.marked);
                    }
                }
                match shaper.admit(now, header, false) {
                    Ok(mark) => shaper.enqueue(now, (), header, mark, None),
                    Err(_) => dropped += 1,
                }
                while shaper.dropped().is_some() {
                    dropped += 1;
                }
            }
            assert_eq!(
                (marked > 0, dropped > 0),
                (ecn_capable, !ecn_capable),
                "{discipline:?}"
            );
        }
    }
}

/// Reordering and duplication after the queue, with a rate: copies cost bandwidth, and nothing is lost.
#[test]
fn duplicates_take_their_time() {
    let attributes = Direction {
        duplicate: 1.0,
        delay: Duration::from_millis(1),
        reorder: Some(Reorder {
            probability: 0.0,
            gap: 1,
        }),
        ..direction(8_000_000, Limit::Packets(100), Discipline::default())
    };
    let frames = [0, 1, 2].map(|id| Frame {
        id,
        at: 1,
        len: 1000 - OVERHEAD,
        flow: 0,
    });
    let run = Run::all(&attributes, &frames);
    let expected: Vec<(usize, u64)> = (1..=6)
        .map(|n| ((n - 1) / 2, n as u64 * 1_000_000 + 1_000_001))
        .collect();
    assert_eq!(run.out, expected);
}
