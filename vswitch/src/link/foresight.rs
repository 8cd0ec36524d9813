//! What is known of frames before it happens.
//!
//! Behind a queue that drops from its tail the transmission of a frame begins when that of the one before it ends. So all times of a
//! frame are known when it comes, and it is sent on its way at once: its arrival is the only event there has to be. Here is
//! what is needed to tell how long the queue is at any time, and to go back to one event after the other when attributes change.

use std::collections::VecDeque;
use std::time::Duration;

use super::Reason;
use super::queue::Header;
use crate::clock::Time;

/// How old the length of the queue may become that is shown while nothing else happens.
const REFRESH: Duration = Duration::from_millis(1);

/// A frame whose transmission is planned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    /// When its transmission begins.
    pub(super) begin: Time,
    /// The part of a nanosecond that the transmitter carries over to it.
    pub(super) remainder: u64,
    /// When it came.
    pub(super) since: Time,
    pub(super) header: Header,
    /// It will not arrive.
    pub(super) lost: Option<Reason>,
}

/// The plan of a transmitter.
#[derive(Debug)]
pub(super) struct Foresight<T> {
    /// The oldest first.
    planned: VecDeque<Planned>,
    /// The transmission of the first of them has begun; the others wait.
    has_begun: bool,
    /// Bytes of those that wait.
    bytes: u64,
    /// Frames that will not arrive, with the end of their transmission, the oldest first.
    lost: VecDeque<(Time, T, Reason)>,
    seen: Time,
}

impl<T> Default for Foresight<T> {
    fn default() -> Self {
        Self {
            planned: VecDeque::new(),
            has_begun: false,
            bytes: 0,
            lost: VecDeque::new(),
            seen: Time::ZERO,
        }
    }
}

impl<T> Foresight<T> {
    /// Nothing is planned.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.planned.is_empty() && self.lost.is_empty()
    }

    /// Frames that wait for the transmitter, and their bytes.
    #[inline]
    pub(super) fn waiting(&self) -> (usize, u64) {
        (self.planned.len() - usize::from(self.has_begun), self.bytes)
    }

    /// Frames that will not arrive and are not handed out yet.
    pub(super) fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Shows frames that will not arrive and are not handed out yet.
    pub(super) fn each_lost(&self, visit: &mut dyn FnMut(&T)) {
        self.lost.iter().for_each(|(_, item, _)| visit(item));
    }

    #[inline]
    fn first_waiting(&self) -> Option<&Planned> {
        self.planned.get(usize::from(self.has_begun))
    }

    /// It is `now`.
    #[inline]
    pub(super) fn see(&mut self, now: Time) {
        self.seen = now;
        while let Some(first) = self.first_waiting()
            && first.begin <= now
        {
            self.bytes -= u64::from(first.header.len);
            // Only the last that has begun is of interest.
            if self.has_begun {
                self.planned.pop_front();
            }
            self.has_begun = true;
        }
    }

    /// Plans a transmission that begins after all others.
    #[inline]
    pub(super) fn plan(&mut self, planned: Planned) {
        self.bytes += u64::from(planned.header.len);
        self.planned.push_back(planned);
        if planned.begin <= self.seen {
            self.see(self.seen);
        }
    }

    /// Keeps a frame that will not arrive until `end`, when its transmission ends.
    pub(super) fn lose(&mut self, end: Time, item: T, reason: Reason) {
        self.lost.push_back((end, item, reason));
    }

    /// When there is something to do: a frame is lost, or others should know how long the queue is.
    #[inline]
    pub(super) fn next(&self) -> Option<Time> {
        let refresh = self.first_waiting();
        let refresh = refresh.map(|first| first.begin.max(self.seen + REFRESH));
        let lost = self.lost.front().map(|(end, ..)| *end);
        match (refresh, lost) {
            (Some(refresh), Some(lost)) => Some(refresh.min(lost)),
            (refresh, lost) => refresh.or(lost),
        }
    }

    /// A frame that was lost not after `now`.
    pub(super) fn pop_lost(&mut self, now: Time) -> Option<(T, Reason)> {
        let (_, item, reason) = self.lost.pop_front_if(|(end, ..)| *end <= now)?;
        Some((item, reason))
    }

    /// Takes back what was planned last, if its transmission has not begun.
    pub(super) fn unplan(&mut self) -> Option<Planned> {
        self.first_waiting()?;
        let last = self.planned.pop_back()?;
        self.bytes -= u64::from(last.header.len);
        Some(last)
    }

    /// Takes back that whose transmission has begun last; nothing waits behind it.
    pub(super) fn take_begun(&mut self) -> Option<Planned> {
        self.has_begun = false;
        self.planned.pop_back()
    }

    /// Takes back the frame that was lost last.
    pub(super) fn unlose(&mut self) -> Option<T> {
        self.lost.pop_back().map(|(_, item, _)| item)
    }
}
