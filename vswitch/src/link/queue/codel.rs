//! Controlled delay, RFC 8289.

use std::time::Duration;

use topology::model::{self, Codel as Settings, DropFrom, Limit};

use super::fifo::Fifo;
use super::{Context, Discipline, Header, Packet};
use crate::clock::Time;
use crate::link::Reason;

/// One queue whose oldest frames are dropped while the delay stays above the target.
#[derive(Debug)]
pub(super) struct Codel<T> {
    queue: Fifo<T>,
    control: Control,
    settings: Settings,
    largest: u32,
}

/// The state machine of RFC 8289 §5, with its names.
#[derive(Debug, Clone, Default)]
pub(super) struct Control {
    /// When the delay will have been above the target for an interval; `None` while it is not above.
    first_above_time: Option<Time>,
    drop_next: Time,
    count: u32,
    lastcount: u32,
    dropping: bool,
}

/// A frame that has been taken out, and whether it may be dropped (`dodequeue_result`).
struct Taken<T> {
    packet: Option<Packet<T>>,
    ok_to_drop: bool,
}

impl Control {
    /// The next frame to be transmitted (§5.5, `deque`). `pop` takes the oldest out and says how many bytes are left;
    /// `largest` is the maximum packet size.
    pub(super) fn dequeue<T>(
        &mut self,
        settings: Settings,
        largest: u32,
        context: &mut Context<'_, T>,
        mut pop: impl FnMut() -> Option<(Packet<T>, u64)>,
    ) -> Option<Packet<T>> {
        let now = context.now;
        let mut taken = self.take(settings, largest, now, &mut pop);
        if self.dropping {
            if !taken.ok_to_drop {
                self.dropping = false;
            }
            while self.dropping && now >= self.drop_next {
                let packet = taken.packet?;
                self.count = self.count.saturating_add(1);
                if let Some(marked) = drop_or_mark(settings, packet, context) {
                    self.drop_next = control_law(self.drop_next, settings.interval, self.count);
                    return Some(marked);
                }
                taken = self.take(settings, largest, now, &mut pop);
                if taken.ok_to_drop {
                    self.drop_next = control_law(self.drop_next, settings.interval, self.count);
                } else {
                    self.dropping = false;
                }
            }
        } else if taken.ok_to_drop {
            let packet = taken.packet?;
            let marked = drop_or_mark(settings, packet, context);
            taken.packet = match marked {
                Some(packet) => Some(packet),
                None => self.take(settings, largest, now, &mut pop).packet,
            };
            self.dropping = true;
            // If the delay went above the target again soon after it went below, the rate of drops that controlled it the
            // last time is a good one to start from.
            let delta = self.count.saturating_sub(self.lastcount);
            let recent = now.since(self.drop_next) < 16 * settings.interval;
            self.count = if delta > 1 && recent { delta } else { 1 };
            self.drop_next = control_law(now, settings.interval, self.count);
            self.lastcount = self.count;
        }
        taken.packet
    }

    /// Takes the oldest frame out and follows its delay (§5.4, `dodequeue`).
    fn take<T>(
        &mut self,
        settings: Settings,
        largest: u32,
        now: Time,
        pop: &mut impl FnMut() -> Option<(Packet<T>, u64)>,
    ) -> Taken<T> {
        let Some((packet, left)) = pop() else {
            self.first_above_time = None;
            return Taken {
                packet: None,
                ok_to_drop: false,
            };
        };
        let sojourn = now.since(packet.since);
        let mut ok_to_drop = false;
        if sojourn < settings.target || left <= u64::from(largest) {
            self.first_above_time = None;
        } else {
            match self.first_above_time {
                None => self.first_above_time = Some(now + settings.interval),
                Some(above) => ok_to_drop = now >= above,
            }
        }
        Taken {
            packet: Some(packet),
            ok_to_drop,
        }
    }
}

/// Drops a frame, or hands it back marked.
fn drop_or_mark<T>(
    settings: Settings,
    mut packet: Packet<T>,
    context: &mut Context<'_, T>,
) -> Option<Packet<T>> {
    if settings.ecn && packet.header.ecn_capable {
        packet.marked = true;
        return Some(packet);
    }
    context.dropped.push((packet.item, Reason::Early));
    None
}

/// t + interval / √count, to the nanosecond below.
fn control_law(t: Time, interval: Duration, count: u32) -> Time {
    let ns = interval.as_nanos() as f64 / f64::from(count).sqrt();
    t + Duration::from_nanos(ns as u64)
}

impl<T> Codel<T> {
    pub(super) fn new(limit: Limit, settings: Settings) -> Self {
        Self {
            queue: Fifo::new(limit, DropFrom::Tail),
            control: Control::default(),
            settings,
            largest: 0,
        }
    }
}

impl<T> Discipline<T> for Codel<T> {
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
        self.queue.admit(header, context)
    }

    fn enqueue(&mut self, packet: Packet<T>) {
        self.largest = self.largest.max(packet.header.len);
        self.queue.enqueue(packet);
    }

    fn dequeue(&mut self, context: &mut Context<'_, T>) -> Option<Packet<T>> {
        let queue = &mut self.queue;
        self.control
            .dequeue(self.settings, self.largest, context, || queue.pop())
    }

    fn change(&mut self, attributes: &model::Queue) -> bool {
        let model::Discipline::Codel(settings) = attributes.discipline else {
            return false;
        };
        self.queue.set_limit(attributes.limit);
        self.settings = settings;
        true
    }

    super::holds!(queue);
}
