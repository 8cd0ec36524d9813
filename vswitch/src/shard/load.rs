//! How a shard spends its time.

use std::sync::Arc;

use crate::clock::Time;
use crate::counters::ShardCounters;

/// Adds up the time between turns, by what the last one was like.
#[derive(Debug)]
pub(super) struct Load {
    counters: Arc<ShardCounters>,
    /// Up to when time has been accounted for.
    since: Time,
    busy: bool,
}

impl Load {
    pub(super) fn new(counters: Arc<ShardCounters>, now: Time) -> Self {
        Self {
            counters,
            since: now,
            busy: false,
        }
    }

    /// A turn begins.
    #[inline]
    pub(super) fn turn(&mut self, now: Time) {
        let spent = now.since(self.since).as_nanos() as u64;
        let counter = if self.busy {
            &self.counters.busy_ns
        } else {
            &self.counters.polling_ns
        };
        counter.add(spent);
        self.since = now;
    }

    /// What the turn was like.
    #[inline]
    pub(super) fn was(&mut self, busy: bool) {
        self.busy = busy;
    }

    /// The shard goes to sleep.
    pub(super) fn sleep(&mut self, now: Time) {
        self.turn(now);
        self.counters.asleep_since.set(now.as_nanos());
    }

    /// It has woken up.
    pub(super) fn wake(&mut self, now: Time) {
        let slept = now.since(self.since).as_nanos() as u64;
        self.counters.sleeping_ns.add(slept);
        self.counters.asleep_since.set(0);
        self.since = now;
        // To wake up is not work.
        self.busy = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_time_is_accounted_for() {
        let t = Time::from_nanos;
        let counters = Arc::<ShardCounters>::default();
        let mut load = Load::new(Arc::clone(&counters), t(100));
        load.turn(t(110));
        load.was(true);
        load.turn(t(140));
        load.was(false);
        load.turn(t(145));
        load.was(true);
        load.sleep(t(150));
        assert_eq!(counters.asleep(t(950)), 800, "the present sleep counts");
        load.wake(t(1150));
        assert_eq!(counters.asleep(t(1200)), 1000);
        load.turn(t(1151));
        let counted = [
            &counters.busy_ns,
            &counters.polling_ns,
            &counters.sleeping_ns,
        ];
        assert_eq!(counted.map(crate::counters::Counter::get), [35, 16, 1000]);
    }
}
