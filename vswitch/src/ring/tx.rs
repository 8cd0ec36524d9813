//! The ring on which a guest sends.

use super::chain::gather;
use super::split::{Access, SplitRing};
use super::violation::Violation;
use crate::memory::Segment;
use crate::net_header::{self, Layout};
use crate::offload::{MAX_HEADERS, Malformed, Offload};

/// The most frames taken at once: enough to hide the latency of memory, few enough that what was fetched for the last is still
/// there.
pub const BATCH: usize = 32;

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
    /// What is left to do to it, if what the guest asks for was agreed on and goes with the frame.
    pub offload: Result<Offload, Malformed>,
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
        match self.ring.pop(Access::Read)? {
            Some(head) => self.open(head).map(Some),
            None => Ok(None),
        }
    }

    /// Takes frames, as many as there are but no more than [`BATCH`]. What it returns has stopped it; the frames before are
    /// taken.
    ///
    /// The first bytes of all are fetched before those of the first are looked at, as the guest's processor has them.
    #[inline]
    pub fn take_batch(&mut self, batch: &mut Vec<Taken>) -> Option<Violation> {
        let mut heads = [0; BATCH];
        let n = self.ring.pop_batch(Access::Read, &mut heads);
        for (i, head) in heads[..n].iter().enumerate() {
            match self.open(*head) {
                Ok(taken) => batch.push(taken),
                Err(violation) => {
                    self.put_back((n - i) as u16);
                    return Some(violation);
                }
            }
        }
        if n == BATCH {
            return None;
        }
        // There is no more, or what stopped it is found again.
        match self.take() {
            Ok(taken) => {
                batch.extend(taken);
                None
            }
            Err(violation) => Some(violation),
        }
    }

    /// Leaves the last `n` frames taken to be taken again.
    pub fn put_back(&mut self, n: u16) {
        self.ring.unpop(n);
    }

    /// Reads the header of the chain at `head`, which was just taken.
    #[inline]
    fn open(&mut self, head: u16) -> Result<Taken, Violation> {
        let chain = &mut self.ring.chains[usize::from(head)];
        chain.users = 1;
        match chain.pull_single(self.header.bytes()) {
            Some(header) if Layout::asks_for_nothing(&header) => Ok(Taken {
                head,
                len: chain.bytes,
                offload: Ok(Offload::default()),
            }),
            Some(header) => Ok(self.check(head, &header)),
            None => self.open_any(head),
        }
    }

    /// As [`TxRing::open`] for a header that is spread over several pieces, or all of its chain.
    #[inline(never)]
    fn open_any(&mut self, head: u16) -> Result<Taken, Violation> {
        let chain = &mut self.ring.chains[usize::from(head)];
        let n = self.header.bytes();
        if (chain.bytes as usize) < n {
            return Err(Violation::ShortHeader);
        }
        let mut header = [0; net_header::MAX_LEN];
        chain.pull(&mut header[..n]);
        Ok(self.check(head, &header))
    }

    /// Compares a header with the frame behind it.
    #[inline(never)]
    fn check(&mut self, head: u16, header: &[u8; net_header::MAX_LEN]) -> Taken {
        let len = self.ring.chains[usize::from(head)].bytes;
        let request = self.header.read(header).map_err(|_| Malformed);
        let offload = request.and_then(|request| {
            if request.cut.is_none() {
                return Offload::check(&request, len, &[]);
            }
            let mut head_bytes = [0; MAX_HEADERS];
            let n = self.peek(head, &mut head_bytes);
            Offload::check(&request, len, &head_bytes[..n])
        });
        Taken { head, len, offload }
    }

    /// `n` more frames need the buffers of `head`.
    pub fn share(&mut self, head: u16, n: u16) {
        self.ring.chains[usize::from(head)].users += n;
    }

    /// Where the frame at `head`, which was taken and not yet completed, lies.
    #[inline]
    pub fn pieces(&self, head: u16) -> &[Segment] {
        self.ring.chains[usize::from(head)].pieces()
    }

    /// The same, if that is one piece.
    #[inline]
    pub fn single(&self, head: u16) -> Option<Segment> {
        self.ring.chains[usize::from(head)].single()
    }

    /// Copies the first bytes of the frame at `head`.
    #[inline]
    pub fn peek(&self, head: u16, out: &mut [u8]) -> usize {
        gather(self.pieces(head), out)
    }

    /// Gives the buffers of all these, which nobody else needs, back to the guest.
    #[inline]
    pub fn complete_batch(&mut self, batch: &[Taken]) {
        self.ring.done_batch(batch.iter().map(|taken| taken.head));
    }

    /// Gives the buffers of `head` back to the guest when nobody else needs them.
    #[inline]
    pub fn complete(&mut self, head: u16) {
        let chain = &mut self.ring.chains[usize::from(head)];
        chain.users -= 1;
        if chain.users == 0 {
            self.ring.done(head);
        }
    }
}
