//! The queue before the transmitter: one file per discipline, all behind [`Discipline`].

mod codel;
mod drr;
mod fifo;
mod flows;
mod fq_codel;
mod heap;
mod pie;
mod red;
mod store;
#[cfg(test)]
mod tests;
mod wf2q;
mod wfq;

use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use topology::model::{self, Limit};

use super::Reason;
use super::fate::Fate;
use crate::clock::Time;

/// What a discipline may know of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Bytes, without link overhead.
    pub len: u32,
    /// The same for frames of one flow.
    pub flow: u32,
    /// Its sender understands congestion marks (ECT of RFC 3168).
    pub ecn_capable: bool,
}

/// A frame in the queue.
#[derive(Debug)]
pub(super) struct Packet<T> {
    pub(super) item: T,
    pub(super) header: Header,
    /// When it came.
    pub(super) since: Time,
    /// It is to be marked as having met congestion.
    pub(super) marked: bool,
    /// What becomes of it after its transmission, if that is known already.
    pub(super) fate: Option<Fate>,
}

/// What a discipline needs to take a decision, and where it puts what it drops.
#[derive(Debug)]
pub(super) struct Context<'a, T> {
    pub(super) now: Time,
    /// The transmitter has nothing to do, so the frame will not wait.
    pub(super) idle: bool,
    /// The limit is somebody else's affair.
    pub(super) unlimited: bool,
    /// How long the transmission of 1000 bytes takes.
    pub(super) typical: Duration,
    pub(super) random: &'a mut Xoshiro256PlusPlus,
    pub(super) dropped: &'a mut Vec<(T, Reason)>,
}

/// The part of a [`Discipline`] that only passes on to the field of `self` which holds the frames.
macro_rules! holds {
    ($field:ident) => {
        fn drain(&mut self, out: &mut Vec<Packet<T>>) {
            self.$field.drain(out);
        }

        fn each(&mut self, visit: &mut dyn FnMut(&mut T)) {
            self.$field.each(visit);
        }

        fn len(&self) -> usize {
            self.$field.len()
        }

        fn bytes(&self) -> u64 {
            self.$field.bytes()
        }
    };
}
use holds;

/// Decides what leaves next and what is dropped.
///
/// A frame is first admitted, which may drop others to make room, and then enqueued, with nothing happening in between; so
/// whoever owns the frames can reuse what a dropped one has occupied. None of this allocates once the memory for
/// the longest queue so far is there, and all of it takes a time of at most the logarithm of the number of flows.
pub(super) trait Discipline<T> {
    /// Decides on a frame that has come: whether it is let in, and if so, whether it is to be marked.
    fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason>;
    /// Takes a frame that has been admitted.
    fn enqueue(&mut self, packet: Packet<T>);
    /// Hands over the frame that is transmitted next.
    fn dequeue(&mut self, context: &mut Context<'_, T>) -> Option<Packet<T>>;
    /// Changes settings; `false` if that cannot be done in place. What waits stays, even above a new limit.
    fn change(&mut self, attributes: &model::Queue) -> bool;
    /// Takes out everything, each flow in its order.
    fn drain(&mut self, out: &mut Vec<Packet<T>>);
    /// Shows everything to `visit`, in any order.
    fn each(&mut self, visit: &mut dyn FnMut(&mut T));
    /// Frames waiting.
    fn len(&self) -> usize;
    /// Their bytes.
    fn bytes(&self) -> u64;
}

/// Whether one more frame of `len` bytes is more than `limit` allows.
fn exceeds(limit: Limit, frames: usize, bytes: u64, len: u32) -> bool {
    match limit {
        Limit::Packets(limit) => frames >= limit as usize,
        Limit::Bytes(limit) => bytes + u64::from(len) > limit,
    }
}

macro_rules! disciplines {
    ($($name:ident($type:ty),)*) => {
        /// Any of the disciplines.
        #[derive(Debug)]
        enum Any<T> { $($name($type),)* }

        impl<T> Any<T> {
            fn admit(&mut self, header: Header, context: &mut Context<'_, T>) -> Result<bool, Reason> {
                match self { $(Self::$name(q) => q.admit(header, context),)* }
            }
            fn enqueue(&mut self, packet: Packet<T>) {
                match self { $(Self::$name(q) => q.enqueue(packet),)* }
            }
            fn dequeue(&mut self, context: &mut Context<'_, T>) -> Option<Packet<T>> {
                match self { $(Self::$name(q) => q.dequeue(context),)* }
            }
            fn change(&mut self, attributes: &model::Queue) -> bool {
                match self { $(Self::$name(q) => q.change(attributes),)* }
            }
            fn drain(&mut self, out: &mut Vec<Packet<T>>) {
                match self { $(Self::$name(q) => q.drain(out),)* }
            }
            fn each(&mut self, visit: &mut dyn FnMut(&mut T)) {
                match self { $(Self::$name(q) => q.each(visit),)* }
            }
            fn len(&self) -> usize {
                match self { $(Self::$name(q) => q.len(),)* }
            }
            fn bytes(&self) -> u64 {
                match self { $(Self::$name(q) => q.bytes(),)* }
            }
        }
    };
}

disciplines! {
    Fifo(fifo::Fifo<T>),
    Drr(drr::Drr<T>),
    Wfq(wfq::Wfq<T>),
    Wf2q(wf2q::Wf2q<T>),
    Red(red::Red<T>),
    Codel(codel::Codel<T>),
    FqCodel(fq_codel::FqCodel<T>),
    Pie(pie::Pie<T>),
}

impl<T> Any<T> {
    /// `salt` decides which flows share a bucket.
    fn new(attributes: &model::Queue, salt: u32) -> Self {
        use model::Discipline as D;
        let limit = attributes.limit;
        match attributes.discipline {
            D::Fifo(drop) => Self::Fifo(fifo::Fifo::new(limit, drop)),
            D::Drr {
                drop,
                flows,
                quantum,
            } => Self::Drr(drr::Drr::new(limit, drop, flows, quantum, salt)),
            D::Wfq { drop, flows } => Self::Wfq(wfq::Wfq::new(limit, drop, flows, salt)),
            D::Wf2q { drop, flows } => Self::Wf2q(wf2q::Wf2q::new(limit, drop, flows, salt)),
            D::Red(red) => Self::Red(red::Red::new(limit, red)),
            D::Codel(codel) => Self::Codel(codel::Codel::new(limit, codel)),
            D::FqCodel(fq) => Self::FqCodel(fq_codel::FqCodel::new(limit, fq, salt)),
            D::Pie(pie) => Self::Pie(pie::Pie::new(limit, pie)),
        }
    }
}

/// The queue of a direction, whatever its discipline.
#[derive(Debug)]
pub(super) struct Queue<T> {
    discipline: Any<T>,
    attributes: model::Queue,
    random: Xoshiro256PlusPlus,
    salt: u32,
}

impl<T> Queue<T> {
    /// A queue whose draws come from `random`.
    pub(super) fn new(attributes: &model::Queue, random: Xoshiro256PlusPlus, salt: u32) -> Self {
        Self {
            discipline: Any::new(attributes, salt),
            attributes: attributes.clone(),
            random,
            salt,
        }
    }

    /// Whether frames leave in the order in which they came and all that are let in leave.
    pub(super) fn is_ordered(&self) -> bool {
        use model::{Discipline as D, DropFrom};
        matches!(
            self.attributes.discipline,
            D::Fifo(DropFrom::Tail) | D::Red(_) | D::Pie(_)
        )
    }

    /// Whether a frame's place in it depends only on those that came before it.
    pub(super) fn is_plain(&self) -> bool {
        use model::{Discipline as D, DropFrom};
        matches!(self.attributes.discipline, D::Fifo(DropFrom::Tail))
    }

    /// Whether the limit allows a frame of `len` bytes when so many frames and bytes wait.
    #[inline]
    pub(super) fn allows(&self, (frames, bytes): (usize, u64), len: u32) -> bool {
        !exceeds(self.attributes.limit, frames, bytes, len)
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Packet<T>> {
        let mut waiting = Vec::with_capacity(self.len());
        self.discipline.drain(&mut waiting);
        waiting
    }

    /// Whether frames of different flows, or with and without ECN, are treated differently.
    pub(super) fn looks_at_headers(&self) -> bool {
        use model::Discipline as D;
        match self.attributes.discipline {
            D::Fifo(_) => false,
            D::Red(red) => red.ecn,
            D::Codel(codel) => codel.ecn,
            D::Pie(pie) => pie.ecn,
            D::Drr { .. } | D::Wfq { .. } | D::Wf2q { .. } | D::FqCodel(_) => true,
        }
    }

    /// Whether a frame of `len` bytes would be more than the limit allows.
    pub(super) fn is_full(&self, len: u32) -> bool {
        exceeds(self.attributes.limit, self.len(), self.bytes(), len)
    }

    /// [`Discipline::admit`].
    pub(super) fn admit(
        &mut self,
        header: Header,
        surroundings: Surroundings,
        dropped: &mut Vec<(T, Reason)>,
    ) -> Result<bool, Reason> {
        let mut context = surroundings.context(&mut self.random, dropped);
        self.discipline.admit(header, &mut context)
    }

    /// [`Discipline::enqueue`].
    pub(super) fn enqueue(&mut self, packet: Packet<T>) {
        self.discipline.enqueue(packet);
    }

    /// [`Discipline::dequeue`].
    pub(super) fn dequeue(
        &mut self,
        surroundings: Surroundings,
        dropped: &mut Vec<(T, Reason)>,
    ) -> Option<Packet<T>> {
        let mut context = surroundings.context(&mut self.random, dropped);
        self.discipline.dequeue(&mut context)
    }

    /// Changes settings, and the discipline if need be. What waits is neither lost nor, within a flow, reordered.
    pub(super) fn change(&mut self, attributes: &model::Queue) {
        if self.attributes == *attributes {
            return;
        }
        self.attributes.clone_from(attributes);
        if self.discipline.change(attributes) {
            return;
        }
        let mut waiting = self.drain();
        waiting.sort_by_key(|packet| packet.since);
        self.discipline = Any::new(attributes, self.salt);
        for packet in waiting {
            self.discipline.enqueue(packet);
        }
    }

    /// [`Discipline::each`].
    pub(super) fn each(&mut self, visit: &mut dyn FnMut(&mut T)) {
        self.discipline.each(visit);
    }

    /// Frames waiting.
    pub(super) fn len(&self) -> usize {
        self.discipline.len()
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.discipline.bytes()
    }
}

/// The part of a [`Context`] that the shaper knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    pub(super) now: Time,
    pub(super) idle: bool,
    pub(super) unlimited: bool,
    pub(super) typical: Duration,
}

impl Surroundings {
    fn context<'a, T>(
        self,
        random: &'a mut Xoshiro256PlusPlus,
        dropped: &'a mut Vec<(T, Reason)>,
    ) -> Context<'a, T> {
        Context {
            now: self.now,
            idle: self.idle,
            unlimited: self.unlimited,
            typical: self.typical,
            random,
            dropped,
        }
    }
}
