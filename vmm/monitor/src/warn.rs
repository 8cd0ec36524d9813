//! Warnings on standard error, bounded: a guest that causes one can cause a million.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

const LINES: u32 = 100;
static WRITTEN: AtomicU32 = AtomicU32::new(0);

/// Writes one line, unless this process has already written a hundred.
pub fn warn(line: fmt::Arguments<'_>) {
    match WRITTEN.fetch_add(1, Ordering::Relaxed) {
        0..LINES => eprintln!("{line}"),
        LINES => eprintln!("further warnings are dropped"),
        // Keeps the counter from wrapping around into another hundred.
        _ => WRITTEN.store(LINES + 1, Ordering::Relaxed),
    }
}
