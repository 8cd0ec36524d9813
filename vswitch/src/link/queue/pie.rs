//! Proportional integral controller enhanced, RFC 8033.

use std::time::Duration;

use topology::model::{self, DropFrom, Limit, Pie as Settings};

use super::fifo::Fifo;
use super::{Context, Discipline, Header, Packet};
use crate::clock::Time;
use crate::link::Reason;
use crate::link::random::uniform;

/// Two frames of MEAN_PKTSIZE or fewer waiting are never a reason to drop (§4.1).
const FEW_BYTES: u64 = 2 * 1514;
/// Above this delay the probability grows by 2 % with each update (§5.5).
const HIGH_DELAY: Duration = Duration::from_millis(250);

/// One queue that drops arriving frames at random, with a probability that a controller moves until the delay is the target.
///
/// Delays are measured by time stamps (§5.2).
#[derive(Debug)]
pub(super) struct Pie<T> {
    queue: Fifo<T>,
    settings: Settings,
    controller: Controller,
    /// When the probability is reckoned next; every T_UPDATE since the first frame.
    next_update: Option<Time>,
}

/// The variables of RFC 8033, with its names.
#[derive(Debug, Clone, PartialEq)]
struct Controller {
    drop_prob: f64,
    /// The sum of `drop_prob` since the last drop (§5.4).
    accu_prob: f64,
    /// Of the frame that left last; zero when none waits.
    qdelay: Duration,
    qdelay_old: Duration,
    burst_allowance: Duration,
}

impl Controller {
    fn new(settings: &Settings) -> Self {
        Self {
            drop_prob: 0.0,
            accu_prob: 0.0,
            qdelay: Duration::ZERO,
            qdelay_old: Duration::ZERO,
            burst_allowance: settings.max_burst,
        }
    }

    /// Nothing will change any more as long as the delay stays zero.
    fn is_at_rest(&self, settings: &Settings) -> bool {
        self.drop_prob == 0.0
            && self.qdelay.is_zero()
            && self.qdelay_old.is_zero()
            && self.burst_allowance == settings.max_burst
    }

    /// §4.2 with the table of auto-tuning, §5.5, §4.4.
    fn update(&mut self, settings: &Settings) {
        let (delay, old) = (self.qdelay.as_secs_f64(), self.qdelay_old.as_secs_f64());
        let target = settings.target.as_secs_f64();
        let mut p = settings.alpha * (delay - target) + settings.beta * (delay - old);
        p /= match self.drop_prob {
            x if x < 0.000_001 => 2048.0,
            x if x < 0.000_01 => 512.0,
            x if x < 0.000_1 => 128.0,
            x if x < 0.001 => 32.0,
            x if x < 0.01 => 8.0,
            x if x < 0.1 => 2.0,
            _ => 1.0,
        };
        if self.drop_prob >= 0.1 {
            p = p.min(0.02);
        }
        if self.qdelay > HIGH_DELAY {
            p += 0.02;
        }
        self.drop_prob = (self.drop_prob + p).clamp(0.0, 1.0);
        if self.qdelay.is_zero() && self.qdelay_old.is_zero() {
            self.drop_prob *= 0.98;
        }
        self.burst_allowance = self.burst_allowance.saturating_sub(settings.t_update);
        let half = settings.target / 2;
        if self.drop_prob == 0.0 && self.qdelay < half && self.qdelay_old < half {
            self.burst_allowance = settings.max_burst;
        }
        self.qdelay_old = self.qdelay;
    }
}

impl<T> Pie<T> {
    pub(super) fn new(limit: Limit, settings: Settings) -> Self {
        Self {
            queue: Fifo::new(limit, DropFrom::Tail),
            controller: Controller::new(&settings),
            settings,
            next_update: None,
        }
    }

    /// Does the updates that were due before `now`. Nothing between two frames depends on them, so they need no timer.
    fn catch_up(&mut self, now: Time) {
        let period = self.settings.t_update;
        let mut next = *self.next_update.get_or_insert(now + period);
        while next <= now {
            if self.controller.is_at_rest(&self.settings) {
                let periods = now.since(next).as_nanos() / period.as_nanos() + 1;
                let skipped = periods * period.as_nanos();
                next = next + Duration::from_nanos(u64::try_from(skipped).unwrap_or(u64::MAX));
                break;
            }
            self.controller.update(&self.settings);
            next = next + period;
        }
        self.next_update = Some(next);
    }

    /// `drop_early` of §4.1 and §5.4.
    fn drop_early(&mut self, context: &mut Context<'_, T>) -> bool {
        let c = &mut self.controller;
        if !c.burst_allowance.is_zero() {
            return false;
        }
        let calm = c.qdelay_old < self.settings.target / 2 && c.drop_prob < 0.2;
        if calm || self.queue.bytes() <= FEW_BYTES {
            return false;
        }
        if c.drop_prob == 0.0 {
            c.accu_prob = 0.0;
        }
        c.accu_prob += c.drop_prob;
        if c.accu_prob < 0.85 {
            return false;
        }
        c.accu_prob >= 8.5 || uniform(context.random) < c.drop_prob
    }
}

impl<T> Discipline<T> for Pie<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        self.catch_up(context.now);
        if self.queue.is_full(header, context) {
            self.controller.accu_prob = 0.0;
            return Err(Reason::Full);
        }
        if !self.drop_early(context) {
            return Ok(false);
        }
        self.controller.accu_prob = 0.0;
        let may_mark = self.settings.ecn && self.controller.drop_prob <= self.settings.max_ecnth;
        if may_mark && header.ecn_capable {
            Ok(true)
        } else {
            Err(Reason::Early)
        }
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        self.queue.enqueue(packet);
    }

    fn dequeue(&mut self, context: &mut Context<'_, T>) -> Option<Packet<T>> {
        self.catch_up(context.now);
        let packet = self.queue.dequeue(context);
        self.controller.qdelay = match &packet {
            Some(packet) if self.queue.len() > 0 => context.now.since(packet.since),
            _ => Duration::ZERO,
        };
        packet
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        let model::Discipline::Pie(settings) = attributes.discipline else {
            return false;
        };
        self.queue.set_limit(attributes.limit);
        self.settings = settings;
        true
    }

    super::holds!(queue);
}
