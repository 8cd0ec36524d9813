//! Random early detection: Floyd and Jacobson, "Random Early Detection Gateways for Congestion Avoidance", IEEE/ACM
//! Transactions on Networking 1(4), 1993.

use topology::model::{self, DropFrom, Limit, Red as Settings};

use super::fifo::Fifo;
use super::{Context, Discipline, Header, Packet};
use crate::clock::Time;
use crate::link::Reason;
use crate::link::random::uniform;

/// The packet size whose probability is the one that is reckoned, with thresholds in bytes (§4).
const FULL_SIZE: f64 = 1514.0;

/// One queue that drops arriving frames at random, the more the longer it has been on average.
#[derive(Debug)]
pub(super) struct Red<T> {
    queue: Fifo<T>,
    settings: Settings,
    average: Average,
}

/// The variables of Figure 2 of the paper, with its names.
#[derive(Debug, Clone)]
struct Average {
    avg: f64,
    /// Frames since the last one dropped; `None` while the average is below the lower threshold (-1 in the paper).
    count: Option<u32>,
    /// When the queue and the transmitter became idle.
    q_time: Option<Time>,
}

/// What becomes of a frame that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// The average is between the thresholds.
    Unlucky,
    /// The average is too high.
    Forced,
}

/// A threshold as a number, and whether it counts bytes.
fn threshold(limit: Limit) -> (f64, bool) {
    match limit {
        Limit::Packets(n) => (f64::from(n), false),
        Limit::Bytes(n) => (n as f64, true),
    }
}

/// p_b: how the probability depends on the average.
fn probability(settings: &Settings, avg: f64) -> f64 {
    let (min, max) = (threshold(settings.min_th).0, threshold(settings.max_th).0);
    if avg < min {
        0.0
    } else if avg < max {
        settings.max_p * (avg - min) / (max - min)
    } else if settings.gentle && avg < 2.0 * max {
        settings.max_p + (1.0 - settings.max_p) * (avg - max) / max
    } else {
        1.0
    }
}

impl<T> Red<T> {
    pub(super) fn new(limit: Limit, settings: Settings) -> Self {
        Self {
            queue: Fifo::new(limit, DropFrom::Tail),
            settings,
            average: Average {
                avg: 0.0,
                count: None,
                q_time: Some(Time::ZERO),
            },
        }
    }

    fn update_average(&mut self, context: &Context<'_, T>) {
        let w_q = self.settings.w_q;
        let avg = &mut self.average.avg;
        if context.idle && self.queue.len() == 0 {
            // As if so many small frames had found the queue empty.
            let idle = self
                .average
                .q_time
                .map_or(0.0, |q_time| context.now.since(q_time).as_nanos() as f64);
            let m = idle / (context.typical.as_nanos() as f64).max(1.0);
            *avg *= libm::pow(1.0 - w_q, m);
        } else {
            let q = if threshold(self.settings.min_th).1 {
                self.queue.bytes() as f64
            } else {
                self.queue.len() as f64
            };
            *avg += w_q * (q - *avg);
        }
        self.average.q_time = None;
    }

    fn judge(&mut self, header: Header, context: &mut Context<'_, T>) -> Verdict {
        let (max, in_bytes) = threshold(self.settings.max_th);
        let mut p_b = probability(&self.settings, self.average.avg);
        if p_b >= 1.0 {
            self.average.count = Some(0);
            return Verdict::Forced;
        }
        if self.average.avg < threshold(self.settings.min_th).0 {
            self.average.count = None;
            return Verdict::Pass;
        }
        let count = self
            .average
            .count
            .map_or(0, |count| count.saturating_add(1));
        self.average.count = Some(count);
        if in_bytes {
            p_b = (p_b * f64::from(header.len) / FULL_SIZE).min(1.0);
        }
        // The distance between drops becomes uniformly distributed (§7).
        let spent = f64::from(count) * p_b;
        let p_a = if spent < 1.0 {
            p_b / (1.0 - spent)
        } else {
            1.0
        };
        if uniform(context.random) < p_a {
            self.average.count = Some(0);
            if self.average.avg < max {
                return Verdict::Unlucky;
            }
            return Verdict::Forced;
        }
        Verdict::Pass
    }
}

impl<T> Discipline<T> for Red<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        self.update_average(context);
        let marked = match self.judge(header, context) {
            Verdict::Pass => false,
            // RFC 3168 §7: above the threshold a mark would no longer help.
            Verdict::Unlucky if self.settings.ecn && header.ecn_capable => true,
            Verdict::Unlucky | Verdict::Forced => {
                if context.idle && self.queue.len() == 0 {
                    self.average.q_time = Some(context.now);
                }
                return Err(Reason::Early);
            }
        };
        if self.queue.is_full(header, context) {
            return Err(Reason::Full);
        }
        Ok(marked)
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        self.queue.enqueue(packet);
    }

    fn dequeue(&mut self, context: &mut Context<'_, T>) -> Option<Packet<T>> {
        let packet = self.queue.dequeue(context);
        if packet.is_none() && self.average.q_time.is_none() {
            self.average.q_time = Some(context.now);
        }
        packet
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        let model::Discipline::Red(settings) = attributes.discipline else {
            return false;
        };
        let unit = |settings: &Settings| threshold(settings.min_th).1;
        if unit(&settings) != unit(&self.settings) {
            return false;
        }
        self.queue.set_limit(attributes.limit);
        self.settings = settings;
        true
    }

    super::holds!(queue);
}
