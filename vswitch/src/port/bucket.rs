//! What a front-end can cause at will is limited: so much at once, and then so much in a while.

use std::time::{Duration, Instant};

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: u32,
    /// The time in which one token comes back.
    refill: Duration,
    tokens: u32,
    /// Up to when tokens have come back.
    refilled: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self {
            burst,
            refill,
            tokens: burst,
            refilled: now,
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long it takes until there is one again.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.refilled);
        let more = passed.as_nanos() / self.refill.as_nanos();
        // With as many it is full, whatever there was before.
        let more = u32::try_from(more).unwrap_or(u32::MAX).min(self.burst);
        self.tokens = self.tokens.saturating_add(more).min(self.burst);
        if self.tokens == self.burst {
            self.refilled = now;
        } else {
            self.refilled += self.refill * more;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err((self.refilled + self.refill).saturating_duration_since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_passes_and_then_one_in_each_while() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5, 10 * S, start);
        let passed =
            |bucket: &mut Bucket, at| (0..100).filter(|_| bucket.take(start + at).is_ok()).count();
        assert_eq!(passed(&mut bucket, Duration::ZERO), 5);
        assert_eq!(bucket.take(start + S), Err(9 * S));
        assert_eq!(passed(&mut bucket, 10 * S), 1);
        // Nothing of a part of a while is lost.
        assert_eq!(passed(&mut bucket, 25 * S), 1);
        assert_eq!(passed(&mut bucket, 30 * S), 1);
        assert_eq!(passed(&mut bucket, 1_000_000 * S), 5);
        assert_eq!(bucket.take(start), Err(1_000_010 * S));
    }
}
