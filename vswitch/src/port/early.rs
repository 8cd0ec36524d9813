//! Rings enabled before features are set.
//!
//! QEMU sends SET_VRING_ENABLE of a network device before the first SET_FEATURES. The specification allows the request once
//! the back-end has *offered* protocol features; the vhost crate demands that the front-end has acknowledged them, reads
//! the message and fails. So each message is looked at before the crate reads it, and a request it fails on for that
//! reason is carried out here.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::message::FrontendReq;

const HEADER: usize = 12;
const BODY: usize = 8;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// A SET_VRING_ENABLE request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Enable {
    pub(super) index: u32,
    pub(super) on: bool,
    need_reply: bool,
}

impl Enable {
    /// Waits for the next message and looks whether it is one.
    pub(super) fn peek(stream: &UnixStream) -> Option<Self> {
        let mut bytes = [0; HEADER + BODY];
        // An error, or less than a whole message, is for the crate to find.
        let (_, length) = recv(stream, &mut bytes, RecvFlags::PEEK).ok()?;
        (length == bytes.len())
            .then(|| Self::parse(&bytes))
            .flatten()
    }

    fn parse(bytes: &[u8; HEADER + BODY]) -> Option<Self> {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (request, flags, size) = (word(0), word(4), word(8));
        let is_enable =
            request == u32::from(FrontendReq::SET_VRING_ENABLE) && size as usize == BODY;
        let is_valid = flags & !NEED_REPLY == VERSION && word(16) <= 1;
        (is_enable && is_valid).then(|| Self {
            index: word(12),
            on: word(16) == 1,
            need_reply: flags & NEED_REPLY != 0,
        })
    }

    /// Tells the front-end that it is done, if it wants to know.
    pub(super) fn acknowledge(self, mut stream: &UnixStream) -> io::Result<()> {
        if !self.need_reply {
            return Ok(());
        }
        let header = [
            u32::from(FrontendReq::SET_VRING_ENABLE),
            VERSION | REPLY,
            BODY as u32,
        ];
        let mut answer: Vec<u8> = header.iter().flat_map(|w| w.to_ne_bytes()).collect();
        answer.extend_from_slice(&0u64.to_ne_bytes());
        stream.write_all(&answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: u32, flags: u32, size: u32, index: u32, num: u32) -> [u8; 20] {
        let mut m = [0; 20];
        for (i, w) in [request, flags, size, index, num].into_iter().enumerate() {
            m[4 * i..4 * i + 4].copy_from_slice(&w.to_ne_bytes());
        }
        m
    }

    #[test]
    fn only_well_formed_requests() {
        let parse = |r, f, s, i, n| Enable::parse(&message(r, f, s, i, n));
        let expected = Enable {
            index: 1,
            on: true,
            need_reply: true,
        };
        assert_eq!(parse(18, 9, 8, 1, 1), Some(expected));
        assert_eq!(
            parse(18, 1, 8, 1, 0),
            Some(Enable {
                index: 1,
                on: false,
                need_reply: false
            })
        );
        assert_eq!(parse(17, 1, 8, 1, 1), None);
        assert_eq!(parse(18, 2, 8, 1, 1), None);
        assert_eq!(parse(18, 5, 8, 1, 1), None);
        assert_eq!(parse(18, 1, 16, 1, 1), None);
        assert_eq!(parse(18, 1, 8, 1, 2), None);
    }
}
