//! The attributes of one direction of a link, resolved; part of [`model`](crate::model).

use std::sync::Arc;
use std::time::Duration;

/// The attributes of one direction of a link.
///
/// A frame passes them in this order: `queue`, transmission (`rate` or `trace`), `ber`, `loss`, `duplicate`, `corrupt`,
/// propagation (`delay`, `jitter`, `reorder`).
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    /// Bit/s on the wire, overhead included; `None` is unlimited.
    pub rate: Option<u64>,
    /// When how much can be sent, instead of `rate`; at most one of the two is set.
    pub trace: Option<Arc<Trace>>,
    /// Bytes added to every frame when its transmission time is reckoned (default 24: preamble 8, FCS 4, gap 12).
    pub overhead: u32,
    /// One-way propagation delay.
    pub delay: Duration,
    /// How much the delay varies from frame to frame.
    pub jitter: Jitter,
    /// Whether frames may overtake each other, and which do; `None` keeps their order whatever the jitter.
    pub reorder: Option<Reorder>,
    /// Which frames are lost after their transmission.
    pub loss: Loss,
    /// Probability that a bit on the wire, overhead included, is wrong, 0 to 1; a frame with a wrong bit is dropped.
    pub ber: f64,
    /// Probability that a frame is transmitted a second time, 0 to 1.
    pub duplicate: f64,
    /// Probability that one bit of a frame is flipped and the frame delivered all the same, 0 to 1.
    pub corrupt: f64,
    /// The queue before the transmitter.
    pub queue: Queue,
    /// Carrier.
    pub up: bool,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            rate: None,
            trace: None,
            overhead: 24,
            delay: Duration::ZERO,
            jitter: Jitter::default(),
            reorder: None,
            loss: Loss::default(),
            ber: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            queue: Queue::default(),
            up: true,
        }
    }
}

/// Delivery opportunities, as in a trace of Mahimahi's `mm-link`: at each of these times 1504 bytes can be sent.
///
/// Repeats with the last time as its period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Since the start of the lab, whole milliseconds, not decreasing, not empty; the last is not zero.
    pub opportunities: Vec<Duration>,
}

/// Variation of the delay: `spread` times a random number of `distribution` is added; a sum below zero counts as zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Jitter {
    /// The unit of the distribution; zero is none.
    pub spread: Duration,
    /// Of the random number.
    pub distribution: Distribution,
}

/// The distribution of a random number around zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Distribution {
    /// From -1 to 1.
    #[default]
    Uniform,
    /// Standard deviation 1.
    Normal,
    /// Pareto with shape 3, moved and scaled to mean 0 and standard deviation 1.
    Pareto,
    /// Each of these, in 1/8192, with the same probability, as in netem's distribution tables; not empty.
    Table(Arc<[i16]>),
}

/// Which frames overtake those before them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reorder {
    /// Probability, 0 to 1, that a frame skips the delay; with 0 only jitter reorders.
    pub probability: f64,
    /// After one that did, this number less one of frames do not (netem's `gap`); at least 1.
    pub gap: u32,
}

/// Which frames are lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each with this probability, 0 to 1.
    Random(f64),
    /// In bursts.
    GilbertElliott(GilbertElliott),
    /// Every frame whose number, from 1, is a multiple of this; at least 1.
    Every(u32),
}

impl Default for Loss {
    fn default() -> Self {
        Self::Random(0.0)
    }
}

/// Two states with their own loss, named as in Elliott's "Estimates of Error Rates for Codes on Burst-Noise Channels" (1963)
/// and Haßlinger and Hohlfeld's "The Gilbert-Elliott Model for Packet Loss in Real Time Services on the Internet" (2008).
/// All probabilities, 0 to 1. It starts in the good state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GilbertElliott {
    /// From the good to the bad state, after each frame.
    pub p: f64,
    /// From the bad to the good state, after each frame.
    pub r: f64,
    /// 1-h: of loss in the bad state.
    pub loss_bad: f64,
    /// 1-k: of loss in the good state.
    pub loss_good: f64,
}

/// The queue of one direction of a link.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// How much may wait.
    pub limit: Limit,
    /// What leaves next, and what is dropped.
    pub discipline: Discipline,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            limit: Limit::Packets(1000),
            discipline: Discipline::default(),
        }
    }
}

/// A queue limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Frames waiting, the one in transmission not counted.
    Packets(u32),
    /// Bytes of the frames waiting, without link overhead.
    Bytes(u64),
}

/// A queue discipline with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Discipline {
    /// First in, first out.
    Fifo(DropFrom),
    /// Deficit round robin (Shreedhar and Varghese 1995).
    Drr {
        /// What goes when the queue is full; of the longest flow.
        drop: DropFrom,
        /// Flows told apart, 1 to 65536.
        flows: u32,
        /// Bytes a flow may send per round, at least 1.
        quantum: u32,
    },
    /// Fair queueing with self-clocked virtual time (Golestani 1994).
    Wfq {
        /// What goes when the queue is full; of the longest flow.
        drop: DropFrom,
        /// Flows told apart, 1 to 65536.
        flows: u32,
    },
    /// Worst-case fair weighted fair queueing (Bennett and Zhang 1996), of equal weights.
    Wf2q {
        /// What goes when the queue is full; of the longest flow.
        drop: DropFrom,
        /// Flows told apart, 1 to 65536.
        flows: u32,
    },
    /// Random early detection.
    Red(Red),
    /// Controlled delay.
    Codel(Codel),
    /// Controlled delay, per flow.
    FqCodel(FqCodel),
    /// Proportional integral controller enhanced.
    Pie(Pie),
}

impl Default for Discipline {
    fn default() -> Self {
        Self::Fifo(DropFrom::Tail)
    }
}

/// Which frame a full queue drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DropFrom {
    /// The oldest.
    Head,
    /// The newest.
    #[default]
    Tail,
}

/// Random early detection (Floyd and Jacobson 1993, "Random Early Detection Gateways for Congestion Avoidance").
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Red {
    /// No drops while the average queue is below this; default 5 packets (§4).
    pub min_th: Limit,
    /// Drops with `max_p` when the average queue comes near this; greater than `min_th`, in the same unit; default three times `min_th` (§4).
    pub max_th: Limit,
    /// 0 to 1; default 0.1 (Floyd 1997, "RED: Discussions of Setting Parameters").
    pub max_p: f64,
    /// Weight of the present queue in the average, 0 to 1; default 0.002 (§4).
    pub w_q: f64,
    /// Between `max_th` and twice `max_th` the probability rises from `max_p` to 1 instead of jumping (Floyd 2000, "Recommendation on
    /// using the gentle variant of RED"); default on.
    pub gentle: bool,
    /// Marks instead of drops where it may (RFC 3168 §7), below `max_th`.
    pub ecn: bool,
}

impl Default for Red {
    fn default() -> Self {
        Self {
            min_th: Limit::Packets(5),
            max_th: Limit::Packets(15),
            max_p: 0.1,
            w_q: 0.002,
            gentle: true,
            ecn: false,
        }
    }
}

/// Controlled delay (RFC 8289).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codel {
    /// The standing delay that is tolerated; default 5 ms (§4.4).
    pub target: Duration,
    /// How long the delay must stay above it; default 100 ms (§4.3).
    pub interval: Duration,
    /// Marks instead of drops where it may.
    pub ecn: bool,
}

impl Default for Codel {
    fn default() -> Self {
        Self {
            target: Duration::from_millis(5),
            interval: Duration::from_millis(100),
            ecn: false,
        }
    }
}

/// Flow queue CoDel (RFC 8290).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FqCodel {
    /// Flows told apart, 1 to 65536; default 1024 (§5.2.4).
    pub flows: u32,
    /// Bytes a flow may send per round; default 1514 (§5.2.3).
    pub quantum: u32,
    /// Of each flow; ECN is on by default (§5.2.6).
    pub codel: Codel,
}

impl Default for FqCodel {
    fn default() -> Self {
        Self {
            flows: 1024,
            quantum: 1514,
            codel: Codel {
                ecn: true,
                ..Codel::default()
            },
        }
    }
}

/// Proportional integral controller enhanced (RFC 8033).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pie {
    /// QDELAY_REF, the delay that is aimed at; default 15 ms (§4.2).
    pub target: Duration,
    /// T_UPDATE, between updates of the probability; default 15 ms (§4.2).
    pub t_update: Duration,
    /// MAX_BURST, a burst that passes without drops; default 150 ms (§4.4).
    pub max_burst: Duration,
    /// Weight of the distance from the target, in Hz; default 0.125 (§4.2).
    pub alpha: f64,
    /// Weight of the change since the last update, in Hz; default 1.25 (§4.2).
    pub beta: f64,
    /// Marks instead of drops where it may, up to the probability MAX_ECNTH (§5.1).
    pub ecn: bool,
    /// MAX_ECNTH, 0 to 1; default 0.1 (§5.1).
    pub max_ecnth: f64,
}

impl Default for Pie {
    fn default() -> Self {
        Self {
            target: Duration::from_millis(15),
            t_update: Duration::from_millis(15),
            max_burst: Duration::from_millis(150),
            alpha: 0.125,
            beta: 1.25,
            ecn: false,
            max_ecnth: 0.1,
        }
    }
}

/// A timed change of a link.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Since the start of the lab.
    pub at: Duration,
    /// What it sets, for each direction as in [`Link`](crate::model::Link).
    pub set: [Patch; 2],
}

/// Attributes to be set; what is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "as in Direction")]
pub struct Patch {
    /// Setting it ends a trace.
    pub rate: Option<Option<u64>>,
    /// Setting it ends a rate.
    pub trace: Option<Arc<Trace>>,
    pub overhead: Option<u32>,
    pub delay: Option<Duration>,
    pub jitter: Option<Jitter>,
    pub reorder: Option<Option<Reorder>>,
    pub loss: Option<Loss>,
    pub ber: Option<f64>,
    pub duplicate: Option<f64>,
    pub corrupt: Option<f64>,
    pub queue: Option<Queue>,
    pub up: Option<bool>,
}

impl Patch {
    /// Sets in `direction` what is to be set.
    pub fn apply(&self, direction: &mut Direction) {
        fn set<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        if let Some(rate) = self.rate {
            direction.rate = rate;
            direction.trace = None;
        }
        if let Some(trace) = &self.trace {
            direction.trace = Some(Arc::clone(trace));
            direction.rate = None;
        }
        set(&mut direction.overhead, self.overhead.as_ref());
        set(&mut direction.delay, self.delay.as_ref());
        set(&mut direction.jitter, self.jitter.as_ref());
        set(&mut direction.reorder, self.reorder.as_ref());
        set(&mut direction.loss, self.loss.as_ref());
        set(&mut direction.ber, self.ber.as_ref());
        set(&mut direction.duplicate, self.duplicate.as_ref());
        set(&mut direction.corrupt, self.corrupt.as_ref());
        set(&mut direction.queue, self.queue.as_ref());
        set(&mut direction.up, self.up.as_ref());
    }

    /// Sets all there is to what it is in `direction`.
    pub fn whole(direction: &Direction) -> Self {
        let d = direction.clone();
        Self {
            rate: d.trace.is_none().then_some(d.rate),
            trace: d.trace,
            overhead: Some(d.overhead),
            delay: Some(d.delay),
            jitter: Some(d.jitter),
            reorder: Some(d.reorder),
            loss: Some(d.loss),
            ber: Some(d.ber),
            duplicate: Some(d.duplicate),
            corrupt: Some(d.corrupt),
            queue: Some(d.queue),
            up: Some(d.up),
        }
    }

    /// Sets what is different in `new` from what it is in `old`, and nothing else.
    pub fn between(old: &Direction, new: &Direction) -> Self {
        fn differs<T: PartialEq>(old: &T, new: T) -> Option<T> {
            (*old != new).then_some(new)
        }
        let whole = Self::whole(new);
        let speed = old.rate != new.rate || old.trace != new.trace;
        Self {
            rate: whole.rate.filter(|_| speed),
            trace: whole.trace.filter(|_| speed),
            overhead: differs(&old.overhead, new.overhead),
            delay: differs(&old.delay, new.delay),
            jitter: differs(&old.jitter, new.jitter.clone()),
            reorder: differs(&old.reorder, new.reorder),
            loss: differs(&old.loss, new.loss),
            ber: differs(&old.ber, new.ber),
            duplicate: differs(&old.duplicate, new.duplicate),
            corrupt: differs(&old.corrupt, new.corrupt),
            queue: differs(&old.queue, new.queue.clone()),
            up: differs(&old.up, new.up),
        }
    }

    /// The same with what `nearer` sets in its place.
    #[must_use]
    pub fn and(mut self, nearer: Self) -> Self {
        if nearer.rate.is_some() || nearer.trace.is_some() {
            self.rate = nearer.rate;
            self.trace = nearer.trace;
        }
        self.overhead = nearer.overhead.or(self.overhead);
        self.delay = nearer.delay.or(self.delay);
        self.jitter = nearer.jitter.or(self.jitter);
        self.reorder = nearer.reorder.or(self.reorder);
        self.loss = nearer.loss.or(self.loss);
        self.ber = nearer.ber.or(self.ber);
        self.duplicate = nearer.duplicate.or(self.duplicate);
        self.corrupt = nearer.corrupt.or(self.corrupt);
        self.queue = nearer.queue.or(self.queue);
        self.up = nearer.up.or(self.up);
        self
    }

    /// Whether it sets nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
