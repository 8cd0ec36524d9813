//! One direction of a link as a pure state machine over an injected clock: queue → transmitter → loss → propagation.
//!
//! Nothing here reads a clock or knows what a frame is, so the same code runs in a shard and, in tests, on a clock that
//! is set by hand, where every departure time is checked exactly.

mod delay;
mod loss;
mod rate;
mod shaper;

pub use loss::{Loss, Streams};
pub use rate::Rate;
pub use shaper::{Full, Path, Shaper, Step};
