//! When which direction has something to do next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::clock::Time;

/// The next event of each direction, the earliest first; of those at the same time, the direction that is numbered lower.
#[derive(Debug)]
pub(super) struct Agenda {
    heap: BinaryHeap<Reverse<(Time, usize)>>,
    /// For each direction the entry that counts; others in the heap are out of date.
    current: Vec<Option<Time>>,
}

impl Agenda {
    pub(super) fn new(directions: usize) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(2 * directions),
            current: vec![None; directions],
        }
    }

    /// Makes room for so many directions.
    pub(super) fn grow(&mut self, directions: usize) {
        self.current.resize(directions, None);
    }

    /// The next event of `direction` is at `at`. Events of a direction only ever move to an earlier time before they happen.
    #[inline]
    pub(super) fn schedule(&mut self, direction: usize, at: Option<Time>) {
        let Some(at) = at else { return };
        let current = &mut self.current[direction];
        if current.is_none_or(|c| at < c) {
            *current = Some(at);
            self.heap.push(Reverse((at, direction)));
        }
    }

    /// Takes the next event that is due at `now`.
    #[inline]
    pub(super) fn pop(&mut self, now: Time) -> Option<(Time, usize)> {
        while let Some(Reverse((at, direction))) = self.heap.peek().copied() {
            if at > now {
                return None;
            }
            self.heap.pop();
            if self.current[direction] == Some(at) {
                self.current[direction] = None;
                return Some((at, direction));
            }
        }
        None
    }

    /// When the next event is due, at the latest.
    pub(super) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(ns: u64) -> Time {
        Time::from_nanos(ns)
    }

    #[test]
    fn in_order_and_once() {
        let mut a = Agenda::new(3);
        a.schedule(0, Some(t(50)));
        a.schedule(1, Some(t(20)));
        a.schedule(0, Some(t(10)));
        a.schedule(1, Some(t(30)));
        a.schedule(2, None);
        assert_eq!(a.next(), Some(t(10)));
        assert_eq!(a.pop(t(9)), None);
        assert_eq!(a.pop(t(100)), Some((t(10), 0)));
        assert_eq!(a.pop(t(100)), Some((t(20), 1)));
        assert_eq!(a.pop(t(100)), None, "the entry for 50 is out of date");
        a.schedule(0, Some(t(120)));
        assert_eq!(a.pop(t(120)), Some((t(120), 0)));
    }
}
