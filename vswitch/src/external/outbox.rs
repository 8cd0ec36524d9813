//! Frames on their way out of the lab, until the kernel has copied them.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::{START, check};
use crate::frame::{Info, Place};
use crate::memory::Segment;

/// Frames sent at once.
const BATCH: usize = 64;
/// The most pieces one frame may lie in; one in more is put together before.
pub const MAX_PIECES: usize = 64;

/// A frame to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// The direction it comes from.
    pub lane: usize,
    /// What is known of it.
    pub info: Info,
    /// Where it lies. A buffer of the pool is to be released when it has been sent.
    pub place: Place,
    /// What became of it.
    pub result: Result<(), Errno>,
    start: [u8; START],
    start_len: usize,
    pieces: std::ops::Range<usize>,
}

/// Frames to be sent by one device, at most a batch.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: Vec<Outgoing>,
    pieces: Vec<libc::iovec>,
}

// SAFETY: the pointers lead to mappings and buffers that belong to no thread; see `Outbox::push` for how long they live.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Whether there is nothing to be sent.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether it has to be sent before more can be put in.
    pub fn is_full(&self) -> bool {
        self.frames.len() == BATCH
    }

    /// Puts a frame in: `prefix`, its head, and `pieces` without the bytes for which that stands.
    ///
    /// # Safety
    /// The pieces must stay valid until the outbox is cleared.
    pub unsafe fn push(
        &mut self,
        (lane, info, place): (usize, Info, Place),
        prefix: &[u8],
        pieces: &[Segment],
    ) {
        let mut start = [0; START];
        start[..prefix.len()].copy_from_slice(prefix);
        let mut start_len = prefix.len();
        let mut skip = 0;
        if let Some(head) = info.head {
            start[start_len..start_len + head.len()].copy_from_slice(&head.bytes()[..head.len()]);
            start_len += head.len();
            skip = head.stored();
        }
        let first = self.pieces.len();
        // Of the start; where that lies is known when all frames are in.
        self.pieces.push(libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        });
        for piece in pieces {
            let piece_len = piece.len as usize;
            if skip >= piece_len {
                skip -= piece_len;
                continue;
            }
            self.pieces.push(libc::iovec {
                // Stays inside the piece, as `skip` is less than its length.
                iov_base: piece.ptr.as_ptr().wrapping_add(skip).cast(),
                iov_len: piece_len - skip,
            });
            skip = 0;
        }
        self.frames.push(Outgoing {
            lane,
            info,
            place,
            result: Ok(()),
            start,
            start_len,
            pieces: first..self.pieces.len(),
        });
    }

    /// What was sent.
    pub fn frames(&self) -> &[Outgoing] {
        &self.frames
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.pieces.clear();
    }

    /// None of the frames can be sent.
    pub fn fail(&mut self, error: Errno) {
        for frame in &mut self.frames {
            frame.result = Err(error);
        }
    }

    fn point(&mut self) {
        for frame in &mut self.frames {
            let start = &mut self.pieces[frame.pieces.start];
            start.iov_base = frame.start.as_mut_ptr().cast();
            start.iov_len = frame.start_len;
        }
    }

    /// Sends each frame as a message of its own, to `to` if the socket is not bound to one receiver.
    pub(super) fn messages(
        &mut self,
        socket: BorrowedFd<'_>,
        to: Option<(&libc::sockaddr_storage, u32)>,
    ) {
        self.point();
        // SAFETY: all-zero is a value of a `mmsghdr`: null pointers with lengths of 0.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (header, frame) in headers.iter_mut().zip(&self.frames) {
            let header = &mut header.msg_hdr;
            header.msg_iov = self.pieces[frame.pieces.start..].as_mut_ptr();
            header.msg_iovlen = frame.pieces.len();
            if let Some((address, len)) = to {
                header.msg_name = std::ptr::from_ref(address).cast_mut().cast();
                header.msg_namelen = len;
            }
        }
        let count = self.frames.len().min(BATCH);
        let mut done = 0;
        while done < count {
            let rest = &mut headers[done..count];
            // SAFETY: `rest` has that many messages; their pieces are the starts in `frames`, which do not move before `clear`, and the
            // memory that the contract of `push` keeps valid; the name is only read. Guests may change their memory meanwhile:
            // the kernel then sends arbitrary bytes, which only its receiver sees.
            let result = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            match check(result.into()) {
                Ok(sent) => done += sent.max(1),
                Err(Errno::INTR) => {}
                // There is no room for the next ones either.
                Err(error @ (Errno::AGAIN | Errno::NETDOWN)) => {
                    for frame in &mut self.frames[done..] {
                        frame.result = Err(error);
                    }
                    return;
                }
                Err(error) => {
                    self.frames[done].result = Err(error);
                    done += 1;
                }
            }
        }
    }

    /// Writes frame after frame to a character device.
    pub(super) fn writes(&mut self, device: BorrowedFd<'_>) {
        self.point();
        for frame in &mut self.frames {
            let pieces = &self.pieces[frame.pieces.clone()];
            // SAFETY: as in `messages`.
            let result =
                unsafe { libc::writev(device.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
            frame.result = check(result as i64).map(|_| ());
        }
    }
}
