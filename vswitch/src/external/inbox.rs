//! Where frames from outside are put: in buffers of the pool, and beside them what does not fit there.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;
use crate::frame;

/// Frames received at once.
pub const BATCH: usize = 32;
/// Bytes of a frame that has no room in its buffer of the pool: what the kernel may hand over as one, and more than any frame may have.
const LARGE: usize = frame::MAX_LEN as usize + 1;
/// Bytes a device has before a frame.
const PREFIX: usize = 16;
/// Room for control messages, aligned as they have to be.
const CONTROL: usize = 8;

/// Something received.
#[derive(Debug, Clone, Copy, Default)]
pub struct Received {
    /// Bytes, prefix not counted.
    pub len: usize,
    /// It was longer than there was room.
    pub truncated: bool,
    control: usize,
}

/// Buffers for one batch.
///
/// The first bytes of each frame go to a buffer of the caller's, the rest to one of the inbox, which the kernel backs with memory
/// only when it is used.
pub struct Inbox {
    first: Vec<*mut [u8]>,
    rest: Vec<u8>,
    prefixes: [[u8; PREFIX]; BATCH],
    control: [[u64; CONTROL]; BATCH],
    sources: [libc::sockaddr_storage; BATCH],
    received: [Received; BATCH],
}

// SAFETY: the pointers are used only between `offer` and the end of the next `receive`, by the thread that has called both.
unsafe impl Send for Inbox {}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("offered", &self.first.len())
            .finish_non_exhaustive()
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            first: Vec::with_capacity(BATCH),
            rest: vec![0; BATCH * LARGE],
            prefixes: [[0; PREFIX]; BATCH],
            control: [[0; CONTROL]; BATCH],
            // SAFETY: all-zero is a value of a `sockaddr_storage`, which is integers.
            sources: [unsafe { std::mem::zeroed() }; BATCH],
            received: [Received::default(); BATCH],
        }
    }
}

impl Inbox {
    /// Takes back all buffers offered so far.
    pub fn clear(&mut self) {
        self.first.clear();
    }

    /// Offers a buffer for the start of one frame more.
    ///
    /// # Safety
    /// It must stay where it is, and nobody else use it, until the next [`Device::receive`](super::Device::receive) with this inbox has
    /// returned, or it is taken back with [`Inbox::clear`].
    pub unsafe fn offer(&mut self, buffer: &mut [u8]) {
        if self.first.len() < BATCH {
            debug_assert!(buffer.len() < LARGE);
            self.first.push(buffer);
        }
    }

    /// The pieces of the `n`-th buffer, behind a prefix of `prefix` bytes.
    fn pieces(&mut self, n: usize, prefix: usize) -> [libc::iovec; 3] {
        let piece = |base: *mut u8, len| libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        };
        let first = self.first[n];
        [
            piece(self.prefixes[n].as_mut_ptr(), prefix),
            piece(first.cast(), first.len()),
            piece(
                self.rest[n * LARGE + first.len()..].as_mut_ptr(),
                LARGE - first.len(),
            ),
        ]
    }

    /// Receives from a socket as many messages as there are and buffers are offered, each behind `prefix` bytes of the device's own.
    pub(super) fn messages(
        &mut self,
        socket: BorrowedFd<'_>,
        prefix: usize,
    ) -> Result<usize, Errno> {
        let count = self.first.len();
        let mut pieces = [const { MaybeUninit::<[libc::iovec; 3]>::uninit() }; BATCH];
        // SAFETY: all-zero is a value of a `mmsghdr`: null pointers with lengths of 0.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for n in 0..count {
            let pieces = pieces[n].write(self.pieces(n, prefix));
            let header = &mut headers[n].msg_hdr;
            header.msg_iov = pieces.as_mut_ptr();
            header.msg_iovlen = pieces.len();
            header.msg_name = (&raw mut self.sources[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
            header.msg_control = self.control[n].as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&self.control[n]);
        }
        // SAFETY: `headers` has `count` messages, whose pieces, names and control buffers are arrays of this inbox and of this function,
        // and the buffers offered, which are live by the contract of `offer`; each with its length.
        let result = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = check(result.into())?;
        for (received, header) in self.received.iter_mut().zip(&headers).take(count) {
            let len = header.msg_len as usize;
            *received = Received {
                len: len.saturating_sub(prefix),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len < prefix,
                control: header.msg_hdr.msg_controllen,
            };
        }
        Ok(count)
    }

    /// Reads frame after frame from a character device, each behind `prefix` bytes, until it has no more or no buffer is left.
    pub(super) fn reads(&mut self, device: BorrowedFd<'_>, prefix: usize) -> Result<usize, Errno> {
        for n in 0..self.first.len() {
            let pieces = self.pieces(n, prefix);
            // SAFETY: the pieces are an array of this inbox and a buffer offered, live by the contract of `offer`, each with its length.
            let result = unsafe { libc::readv(device.as_raw_fd(), pieces.as_ptr(), 3) };
            match check(result as i64) {
                Ok(len) => {
                    self.received[n] = Received {
                        len: len.saturating_sub(prefix),
                        truncated: len >= LARGE + prefix || len < prefix,
                        control: 0,
                    };
                }
                Err(_) if n > 0 => return Ok(n),
                Err(error) => return Err(error),
            }
        }
        Ok(self.first.len())
    }

    /// What the `n`-th message was.
    pub fn received(&self, n: usize) -> Received {
        self.received[n]
    }

    /// What stood before the `n`-th frame.
    pub(super) fn prefix(&self, n: usize) -> &[u8; PREFIX] {
        &self.prefixes[n]
    }

    /// Where the `n`-th message came from.
    pub(super) fn source(&self, n: usize) -> &libc::sockaddr_storage {
        &self.sources[n]
    }

    /// The content of the first control message of the `n`-th frame, if it is of this kind and length.
    pub(super) fn control(&self, n: usize, level: i32, kind: i32, len: usize) -> Option<&[u8]> {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        const WORD: usize = size_of::<u64>();
        let whole = HEADER + len;
        let control = &self.control[n];
        if self.received[n].control < whole || size_of_val(control) < whole {
            return None;
        }
        // SAFETY: `control` is aligned for a `cmsghdr` and longer than one, and is initialized.
        let header = unsafe { &*control.as_ptr().cast::<libc::cmsghdr>() };
        if (header.cmsg_level, header.cmsg_type, header.cmsg_len) != (level, kind, whole) {
            return None;
        }
        let data = control[HEADER / WORD..].as_ptr().cast();
        // SAFETY: `len` bytes behind the header were checked to be there, and any bytes are a slice of `u8`.
        Some(unsafe { std::slice::from_raw_parts(data, len) })
    }

    /// The whole of the `n`-th frame, of which `first` has the start, in one piece.
    pub fn large(&mut self, n: usize, first: &[u8], len: usize) -> &[u8] {
        let rest = &mut self.rest[n * LARGE..(n + 1) * LARGE];
        let len = len.min(LARGE);
        let start = first.len().min(len);
        rest[..start].copy_from_slice(&first[..start]);
        &rest[..len]
    }
}
