//! How fast the time stamp counter of this machine runs.

use std::arch::x86_64::_rdtsc;
use std::thread::sleep;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Apart enough for an error of a few millionths.
const APART: Duration = Duration::from_millis(50);
/// A reading is disturbed when the processor is taken away in the middle; the quickest of so many is not.
const TRIES: usize = 16;

/// Ticks a millisecond, measured against the clock of the kernel.
pub fn khz() -> u64 {
    let (ticks, time) = read();
    sleep(APART);
    let (later_ticks, later_time) = read();
    let passed = later_time.saturating_sub(time).max(APART).as_nanos();
    u64::try_from(u128::from(later_ticks - ticks) * 1_000_000 / passed).unwrap_or(u64::MAX)
}

/// The counter and the clock at the same moment.
fn read() -> (u64, Duration) {
    let once = |_| {
        // SAFETY: every x86-64 processor has the instruction, and Linux forbids it only to those that ask for that.
        let before = unsafe { _rdtsc() };
        let now = clock_gettime(ClockId::MonotonicRaw);
        // SAFETY: as before.
        let after = unsafe { _rdtsc() };
        let now = Duration::try_from(now).unwrap_or_default();
        (after - before, before.midpoint(after), now)
    };
    let (_, ticks, now) = (0..TRIES).map(once).min().unwrap_or_default();
    (ticks, now)
}
