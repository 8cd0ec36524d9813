//! The ring on which a guest sends.

use super::chain::gather;
use super::split::{Access, SplitRing, Violation};
use crate::memory::Segment;
use crate::net_header::{self, Layout};

/// A transmit ring.
#[derive(Debug)]
pub struct TxRing {
    ring: SplitRing,
    header: Layout,
}

/// A frame taken from a guest; its bytes are still in the guest's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The descriptor to be completed.
    pub head: u16,
    /// Bytes of the frame, header not counted.
    pub len: u32,
    /// The header asks for nothing that was not offered.
    pub header_ok: bool,
}

impl TxRing {
    /// A ring whose frames come behind a header of the given layout.
    pub fn new(ring: SplitRing, header: Layout) -> Self {
        Self { ring, header }
    }

    /// The ring below.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// Takes the next frame, if there is one.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Taken>, Violation> {
        let Some(head) = self.ring.pop(Access::Read)? else {
            return Ok(None);
        };
        let chain = &mut self.ring.chains[usize::from(head)];
        let mut header = [0; net_header::MAX_LEN];
        let header = &mut header[..self.header.bytes()];
        if (chain.bytes as usize) < header.len() {
            return Err(Violation::ShortHeader);
        }
        chain.pull(header);
        let header_ok = self.header.check_transmit(header).is_ok();
        Ok(Some(Taken {
            head,
            len: chain.bytes,
            header_ok,
        }))
    }

    /// Where the frame at `head`, which was taken and not yet completed, lies.
    #[inline]
    pub fn pieces(&self, head: u16) -> &[Segment] {
        self.ring.chains[usize::from(head)].pieces()
    }

    /// Copies the first bytes of the frame at `head`.
    #[inline]
    pub fn peek(&self, head: u16, out: &mut [u8]) -> usize {
        gather(self.pieces(head), out)
    }

    /// Gives the buffers of `head` back to the guest.
    #[inline]
    pub fn complete(&mut self, head: u16) {
        self.ring.done(head);
    }
}
