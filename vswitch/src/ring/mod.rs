//! Split virtqueues (virtio 1.2 §2.7), the device's half.
//!
//! All `unsafe` of the data path is in this module. A guest can change every byte of a ring at any time; each byte is
//! therefore read once, into a private copy, and checked there.

mod chain;
mod checksum;
mod descriptor;
mod notify;
mod rx;
mod split;
mod tx;
mod violation;

pub use chain::{Part, gather};
pub use checksum::Sum;
pub use notify::{Blocks, EventFd};
pub use rx::{Content, NoBuffer, Reservation, RxRing};
pub use split::{RingLayout, SplitRing};
pub use tx::{BATCH, Taken, TxRing};
pub use violation::{RingError, Violation};

/// The most descriptors one chain may have; Linux needs no more than 19 for a frame, DPDK works with 256 as well.
pub const MAX_CHAIN: usize = 256;

/// The largest ring virtio allows.
pub const MAX_SIZE: u16 = 32768;
