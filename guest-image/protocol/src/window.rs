//! Flow control of one direction of a stream.

use crate::INITIAL_WINDOW;

/// The other side broke the rules of flow control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// More data than was granted.
    #[error("{0} bytes more than the window allows")]
    Exceeded(u32),
    /// Credit that adds up to more than a `u32`.
    #[error("credit of more than 4 GiB")]
    CreditOverflow,
}

/// How much this side may still send on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow(u32);

impl Default for SendWindow {
    fn default() -> Self {
        Self(INITIAL_WINDOW)
    }
}

impl SendWindow {
    /// Bytes that may be sent now.
    pub fn available(self) -> usize {
        self.0 as usize
    }

    /// Notes that `bytes` were sent; not more than [`SendWindow::available`].
    pub fn sent(&mut self, bytes: usize) {
        self.0 = self
            .0
            .saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Notes a credit from the other side.
    pub fn granted(&mut self, bytes: u32) -> Result<(), WindowError> {
        self.0 = self
            .0
            .checked_add(bytes)
            .ok_or(WindowError::CreditOverflow)?;
        Ok(())
    }
}

/// How much the other side may still send on a stream, and what it is due.
///
/// What is received and not yet consumed never exceeds [`INITIAL_WINDOW`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    allowed: u32,
    due: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            allowed: INITIAL_WINDOW,
            due: 0,
        }
    }
}

impl ReceiveWindow {
    /// Notes data from the other side; an error if it had no right to send that much.
    pub fn received(&mut self, bytes: usize) -> Result<(), WindowError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.allowed = self
            .allowed
            .checked_sub(bytes)
            .ok_or_else(|| WindowError::Exceeded(bytes - self.allowed))?;
        Ok(())
    }

    /// Notes that received bytes have gone where they were meant to go. Returns the credit to send, if
    /// there is enough to be worth a message.
    pub fn consumed(&mut self, bytes: usize) -> Option<u32> {
        self.due = self
            .due
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX))
            .min(INITIAL_WINDOW - self.allowed);
        if self.due < INITIAL_WINDOW / 4 {
            return None;
        }
        let credit = std::mem::take(&mut self.due);
        self.allowed += credit;
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_than_was_granted_is_refused() {
        let mut window = ReceiveWindow::default();
        window.received(INITIAL_WINDOW as usize).unwrap();
        assert_eq!(window.received(1), Err(WindowError::Exceeded(1)));
        assert_eq!(
            window.consumed(INITIAL_WINDOW as usize),
            Some(INITIAL_WINDOW)
        );
        window.received(1).unwrap();
    }

    #[test]
    fn credit_does_not_wrap() {
        let mut window = SendWindow::default();
        assert_eq!(window.granted(u32::MAX), Err(WindowError::CreditOverflow));
    }

    proptest! {
        /// A sender and a receiver that keep to the rules never get stuck and never break them.
        #[test]
        fn two_sides_agree(steps in prop::collection::vec((any::<bool>(), 1usize..100_000), 1..200)) {
            let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
            let mut waiting = 0;
            for (sends, size) in steps {
                if sends {
                    let size = size.min(send.available());
                    send.sent(size);
                    prop_assert!(receive.received(size).is_ok());
                    waiting += size;
                } else {
                    let size = size.min(waiting);
                    waiting -= size;
                    if let Some(credit) = receive.consumed(size) {
                        prop_assert!(send.granted(credit).is_ok());
                    }
                }
                prop_assert!(waiting <= INITIAL_WINDOW as usize);
            }
            if let Some(credit) = receive.consumed(waiting) {
                prop_assert!(send.granted(credit).is_ok());
            }
            prop_assert!(send.available() > 0);
        }
    }
}
