//! SET_VRING_ENABLE before SET_FEATURES, as QEMU sends it.
//!
//! QEMU enables a NIC's rings when it creates the NIC (`peer_attach` in `hw/net/virtio-net.c`), long before the
//! driver has chosen features, and does not repeat it. The specification allows the request once
//! `VHOST_USER_F_PROTOCOL_FEATURES` "has been negotiated", which QEMU takes to be GET_FEATURES and the vhost crate
//! to be SET_FEATURES: the crate would end the connection. Until SET_FEATURES such requests are therefore taken off
//! the stream here.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

/// Request, flags and size, each 32 bits in the host's byte order.
const HEADER: usize = 12;
/// Ring and state, 32 bits each.
const BODY: usize = 8;
const SET_VRING_ENABLE: u32 = 18;
/// Version 1, and nothing else: no reply is asked for.
const FLAGS: u32 = 1;

/// Waits for the next request. If it enables or disables a ring, takes it and returns ring and state; leaves any
/// other where it is.
pub(super) fn take(stream: &UnixStream) -> io::Result<Option<(u32, u32)>> {
    let mut header = [0; HEADER];
    let (peeked, _) = recv(stream, &mut header, RecvFlags::PEEK | RecvFlags::WAITALL)?;
    let word = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let wanted = [SET_VRING_ENABLE, FLAGS, BODY as u32];
    if peeked < HEADER || [0, 4, 8].map(|at| word(&header, at)) != wanted {
        return Ok(None);
    }
    let mut request = [0; HEADER + BODY];
    let (taken, _) = recv(stream, &mut request, RecvFlags::WAITALL)?;
    if taken < request.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((word(&request, HEADER), word(&request, HEADER + 4))))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn request(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn takes_its_own_request_and_leaves_others() {
        let (mut front_end, mut stream) = UnixStream::pair().unwrap();
        let other = request(&[1, 1, 0]);
        front_end.write_all(&request(&[18, 1, 8, 1, 1])).unwrap();
        front_end.write_all(&other).unwrap();
        assert_eq!(take(&stream).unwrap(), Some((1, 1)));
        assert_eq!(take(&stream).unwrap(), None);
        let mut rest = vec![0; other.len()];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(rest, other);
    }

    #[test]
    fn one_that_wants_a_reply_is_not_ours() {
        let (mut front_end, stream) = UnixStream::pair().unwrap();
        front_end
            .write_all(&request(&[18, 1 | 8, 8, 0, 1]))
            .unwrap();
        assert_eq!(take(&stream).unwrap(), None);
    }

    #[test]
    fn a_front_end_that_goes_in_the_middle_is_an_error() {
        let (mut front_end, stream) = UnixStream::pair().unwrap();
        front_end.write_all(&request(&[18, 1, 8, 1])).unwrap();
        drop(front_end);
        assert!(take(&stream).is_err());
    }
}
