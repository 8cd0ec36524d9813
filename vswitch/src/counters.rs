//! Counters with one writer each, read by anyone at any time.
//!
//! A shard adds with plain loads and stores, so counting costs no locked instruction, and readers disturb nobody. Numbers
//! read together are not from one instant. What different shards write lies in different cache lines.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::histogram::Histogram;
use crate::link::Reason;

/// A number that one thread counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `n`. Only the thread that owns the counter may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Replaces the value if `n` is more. Only the thread that owns the counter may call this.
    #[inline]
    pub fn raise(&self, n: u64) {
        if n > self.get() {
            self.set(n);
        }
    }

    /// Replaces the value. Only the thread that owns the counter may call this.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a frame that had entered a link's direction did not leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// The queue was full.
    Queue,
    /// The queue's discipline dropped it before the queue was full.
    Early,
    /// Lost on the way, as the link's `loss` asks.
    Loss,
    /// A bit was wrong, as the link's `ber` asks.
    BitError,
    /// The link is down.
    Carrier,
    /// The receiver had posted no buffer when it arrived; of an external node, the host had no room for it.
    NoRxBuffer,
    /// The receiver's buffers are too small for it.
    TooBig,
    /// Nobody is connected to the receiving interface, or its ring is not running; of an external node, its device is down or gone.
    Disconnected,
    /// The sender disappeared while the frame was still in its memory.
    SenderGone,
    /// The switch's own memory for waiting frames is used up.
    Pool,
    /// The sender changed the headers of a superframe after they had been checked.
    Changed,
    /// The host did not want to send it out of an external node.
    Refused,
    /// It is longer than the MTU of the interface that sent it allows.
    Mtu,
    /// The interface that sent it is locked to another name.
    Lock,
}

macro_rules! drops {
    ($($reason:ident $field:ident,)*) => {
        /// Dropped frames by reason; see [`Drop`].
        #[derive(Debug, Default)]
        pub struct DropCounters { $($field: Counter,)* }

        impl Drop {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// The name of its counter.
            pub fn name(self) -> &'static str {
                match self { $(Self::$reason => stringify!($field),)* }
            }
        }

        impl DropCounters {
            /// Counts `frames`.
            #[inline]
            pub fn count(&self, reason: Drop, frames: u32) {
                match reason { $(Drop::$reason => self.$field.add(frames.into()),)* }
            }

            /// The numbers.
            pub fn read(&self) -> Drops {
                Drops { $($field: self.$field.get(),)* }
            }
        }

        /// Dropped frames by reason, as read; see [`Drop`].
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub struct Drops { $(pub $field: u64,)* }

        impl Drops {
            /// Names and numbers.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }

            /// All together.
            pub fn total(&self) -> u64 {
                self.iter().map(|(_, n)| n).sum()
            }
        }
    };
}

drops! {
    Queue queue,
    Early early,
    Loss loss,
    BitError bit_error,
    Carrier carrier,
    NoRxBuffer no_rx_buffer,
    TooBig too_big,
    Disconnected disconnected,
    SenderGone sender_gone,
    Pool pool,
    Changed changed,
    Refused refused,
    Mtu mtu,
    Lock lock,
}

impl From<Reason> for Drop {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Full => Self::Queue,
            Reason::Early => Self::Early,
            Reason::BitError => Self::BitError,
            Reason::Loss => Self::Loss,
        }
    }
}

/// One direction of a link. A superframe counts as its segments. What went in and was duplicated has come out, was dropped, or is still inside.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct DirectionCounters {
    /// Frames that entered.
    pub in_frames: Counter,
    /// Their bytes, without header and overhead.
    pub in_bytes: Counter,
    /// Frames that left at the other end.
    pub out_frames: Counter,
    /// Their bytes.
    pub out_bytes: Counter,
    /// Frames that did not.
    pub drops: DropCounters,
    /// Copies made, as the link's `duplicate` asks.
    pub duplicated: Counter,
    /// Frames with a bit flipped, as the link's `corrupt` asks.
    pub corrupted: Counter,
    /// Frames marked as having met congestion.
    pub marked: Counter,
    /// Bytes of frames copied on behalf of this direction.
    pub bytes_copied: Counter,
    /// Frames that had to wait in the switch's own memory, which costs a second copy.
    pub pool_copies: Counter,
    /// Frames waiting for the transmitter.
    pub queued: Counter,
    /// The most there have been.
    pub queued_max: Counter,
    /// By how many nanoseconds frames came out later than they ideally would have. Frames of a link that holds nothing up have
    /// no ideal time, and are not in it.
    pub lateness: Histogram,
}

/// A machine's interface or an external node, as the data path sees it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PortCounters {
    /// Frames that were no Ethernet frames, or asked for an offload that was not agreed on or does not go with them; of an external
    /// node, also datagrams that were not of its tunnel.
    pub malformed: Counter,
    /// Frames sent on an interface that has no link.
    pub unlinked: Counter,
    /// Rings stopped because the guest broke the rules.
    pub violations: Counter,
}

/// A layer-2 node.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BridgeCounters {
    /// Frames that came in.
    pub frames: Counter,
    /// Of these, sent out of every other port.
    pub flooded: Counter,
    /// Of these, not forwarded, as their receiver is where they came from.
    pub filtered: Counter,
    /// Copies not sent because the frame had been everywhere: the lab has a loop.
    pub looped: Counter,
    /// Of these, not forwarded, as their port is not of their VLAN.
    pub wrong_vlan: Counter,
    /// Of these, not forwarded, as their port had sent too much to all.
    pub storm: Counter,
    /// Times a station moved from one port to another.
    pub moved: Counter,
    /// Addresses in the table.
    pub learnt: Counter,
}

/// A shard.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCounters {
    /// Turns of the loop.
    pub turns: Counter,
    /// Turns that found something to do.
    pub busy_turns: Counter,
    /// Nanoseconds in these.
    pub busy_ns: Counter,
    /// Nanoseconds spent looking for something to do.
    pub polling_ns: Counter,
    /// Nanoseconds asleep, without the present sleep.
    pub sleeping_ns: Counter,
    /// When it went to sleep, in nanoseconds on its clock; 0 while it is awake.
    pub asleep_since: Counter,
    /// Times it went to sleep, and so was woken up.
    pub sleeps: Counter,
    /// Times it took frames from a ring.
    pub batches: Counter,
    /// Frames it took.
    pub batch_frames: Counter,
    /// Bytes of the pool that are allocated.
    pub pool_bytes: Counter,
    /// Frames in the pool.
    pub pool_frames: Counter,
    /// The most there have been.
    pub pool_frames_max: Counter,
}

impl ShardCounters {
    /// Nanoseconds asleep until `now`.
    pub fn asleep(&self, now: Time) -> u64 {
        let since = self.asleep_since.get();
        let before = self.sleeping_ns.get();
        // If it has woken up meanwhile, this sleep may already be counted.
        if since == 0 || since != self.asleep_since.get() {
            return before;
        }
        before + now.since(Time::from_nanos(since)).as_nanos() as u64
    }
}
