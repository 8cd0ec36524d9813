//! Time as the data path sees it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A point in time: nanoseconds on the clock the caller injects (`CLOCK_MONOTONIC` in a shard, any counter in a test).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// `ns` nanoseconds after the origin.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The real clock, `CLOCK_MONOTONIC`.
    pub fn now() -> Self {
        // Not by rustix, whose own search for the vDSO crashes under valgrind. It cannot fail for this clock.
        let t = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Self(t.as_nanos() as u64)
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Saturates: a delay of centuries never arrives.
impl Add<Duration> for Time {
    type Output = Self;

    #[inline]
    fn add(self, d: Duration) -> Self {
        // In 64 bits, as this is done for every frame.
        let ns = d.as_secs().saturating_mul(1_000_000_000);
        let ns = ns.saturating_add(d.subsec_nanos().into());
        Self(self.0.saturating_add(ns))
    }
}

/// Saturates at the clock's origin.
impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, d: Duration) -> Self {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(ns))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09} s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}
