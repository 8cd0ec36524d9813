//! Frames on the way: a line of constant delay keeps their order.

use std::collections::VecDeque;

use crate::clock::Time;

/// A first-in first-out line of things with the time of their arrival.
#[derive(Debug)]
pub(super) struct DelayLine<T> {
    line: VecDeque<(Time, T)>,
}

impl<T> Default for DelayLine<T> {
    fn default() -> Self {
        Self {
            line: VecDeque::new(),
        }
    }
}

impl<T> DelayLine<T> {
    /// `due` is not before that of the last one pushed.
    pub(super) fn push(&mut self, due: Time, item: T) {
        debug_assert!(self.line.back().is_none_or(|(last, _)| *last <= due));
        self.line.push_back((due, item));
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.line.front().map(|(due, _)| *due)
    }

    pub(super) fn pop(&mut self) -> Option<(Time, T)> {
        self.line.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.line.len()
    }
}
