//! What takes frames from the queue and puts them on the wire.

use std::sync::Arc;
use std::time::Duration;

use topology::model::{self, Direction};

use super::rate::Rate;
use super::trace::Trace;
use crate::clock::Time;

/// How fast frames are transmitted.
#[derive(Debug)]
pub(super) enum Transmitter {
    /// In no time.
    Unlimited,
    /// At a rate.
    Rate(Rate),
    /// At the times of a trace.
    Trace(Box<Trace>, Arc<model::Trace>),
}

impl Transmitter {
    /// Traces begin at `origin`.
    pub(super) fn new(attributes: &Direction, origin: Time) -> Self {
        match (attributes.rate, &attributes.trace) {
            (_, Some(times)) => {
                let trace = Trace::new(Arc::clone(times), origin);
                Self::Trace(Box::new(trace), Arc::clone(times))
            }
            (Some(rate), None) => Self::Rate(Rate::new(rate, attributes.overhead)),
            (None, None) => Self::Unlimited,
        }
    }

    /// Sets rate, overhead and trace; `false` if nothing is different in kind, so that what has been planned holds.
    pub(super) fn change(&mut self, attributes: &Direction, origin: Time) -> bool {
        match (&mut *self, attributes.rate, &attributes.trace) {
            (Self::Unlimited, None, None) => false,
            (Self::Rate(rate), Some(bits), None) => {
                rate.change(bits, attributes.overhead);
                false
            }
            (Self::Trace(_, present), _, Some(times)) if present == times => false,
            _ => {
                *self = Self::new(attributes, origin);
                true
            }
        }
    }

    pub(super) fn is_unlimited(&self) -> bool {
        matches!(self, Self::Unlimited)
    }

    /// When the next transmission can begin. With `arrived` a frame has come then and found the transmitter idle; without, one was
    /// waiting when a transmission ended, which is `now`.
    pub(super) fn begin(&mut self, now: Time, arrived: bool) -> Time {
        match self {
            Self::Trace(trace, _) => trace.begin(arrived.then_some(now)),
            Self::Unlimited | Self::Rate(_) => now,
        }
    }

    /// Transmits a frame of `len` bytes from `now`, when it can begin; returns the end.
    pub(super) fn transmit(&mut self, now: Time, len: u32) -> Time {
        match self {
            Self::Unlimited => now,
            Self::Rate(rate) => rate.transmit(now, len),
            Self::Trace(trace, _) => trace.transmit(len),
        }
    }

    /// How long 1000 bytes take.
    pub(super) fn typical(&self) -> Duration {
        match self {
            Self::Unlimited => Duration::ZERO,
            Self::Rate(rate) => rate.duration(1000),
            Self::Trace(trace, _) => trace.typical(),
        }
    }
}
