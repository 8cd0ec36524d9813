//! One direction of a link as a pure state machine over an injected clock: queue → transmitter → bit errors, loss,
//! duplication, corruption → propagation.
//!
//! Nothing here reads a clock or knows what a frame is, so the same code runs in a shard and, in tests, on a clock that
//! is set by hand, where every departure time is checked exactly.

mod delay;
mod fate;
mod foresight;
mod queue;
mod random;
mod rate;
mod shaper;
mod trace;
mod transmitter;

pub use fate::Fate;
pub use queue::Header;
pub use random::{DirectionStreams, Streams};
pub use rate::Rate;
pub use shaper::{Path, Shaper, Step, Transmitted};

/// Why a direction has dropped a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The queue was full.
    Full,
    /// The queue's discipline did not want it to become full.
    Early,
    /// A bit was wrong.
    BitError,
    /// It was lost.
    Loss,
}
