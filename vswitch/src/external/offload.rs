//! Completes what a sender on the host left to its network card: checksums, and the cutting of superframes (virtio 1.2
//! §5.1.6.2 describes the header that says what).
//!
//! Frames between ports are complete, so this is done to those that come from outside, before they enter the lab.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// The longest headers a segment may have: Ethernet with two tags, IP, TCP with options.
const MAX_HEADERS: usize = 256;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What was left to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incomplete {
    /// From here to the end the checksum is to be taken; where the transport header begins.
    start: usize,
    /// Where it is to be written, from `start`.
    offset: usize,
    /// Of a superframe: what it is, and how much each segment is to carry.
    segments: Option<(u32, usize)>,
}

/// It cannot be done, as the headers contradict each other or ask for something that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Incomplete {
    /// What a virtio-net header asks for; `None`: nothing.
    pub fn from_header(header: &[u8; 16]) -> Option<Self> {
        let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let kind = u32::from(header[1]) & !VIRTIO_NET_HDR_GSO_ECN;
        let segments = (kind != VIRTIO_NET_HDR_GSO_NONE).then(|| (kind, field(4)));
        let checksum = u32::from(header[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        // A superframe whose checksum is known, as of one that a network card has put together, needs one for each segment all the
        // same, but does not say where its headers are.
        (checksum || segments.is_some()).then(|| Self {
            start: if checksum { field(6) } else { 0 },
            offset: field(8),
            segments,
        })
    }

    /// Whether the frame is to be cut.
    pub fn is_superframe(&self) -> bool {
        self.segments.is_some()
    }

    /// Writes the checksum of a frame that need not be cut.
    pub fn complete(&self, frame: &mut [u8]) -> Result<(), Malformed> {
        let covered = frame.get_mut(self.start..).ok_or(Malformed)?;
        let sum = checksum(&[covered]);
        let field = covered.get_mut(self.offset..self.offset + 2);
        field.ok_or(Malformed)?.copy_from_slice(&sum);
        Ok(())
    }
}

/// The Internet checksum (RFC 1071) of pieces that, but for the last, have an even length; never 0, which UDP has another meaning for.
fn checksum(pieces: &[&[u8]]) -> [u8; 2] {
    let mut sum: u64 = 0;
    for piece in pieces {
        for word in piece.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                word[0],
                word.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => [0xff; 2],
        sum => sum.to_be_bytes(),
    }
}

/// The headers of a superframe.
struct Headers {
    ip: usize,
    is_v4: bool,
    transport: usize,
    protocol: u8,
    end: usize,
}

impl Headers {
    fn parse(frame: &[u8], kind: u32) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let mut ip = 14;
        while VLAN.contains(&u16_at(ip - 2)?) {
            ip += 4;
        }
        let (is_v4, mut transport, mut protocol) = match frame.get(ip)? >> 4 {
            4 => {
                let length = usize::from(frame.get(ip)? & 0xf) * 4;
                (true, ip + length.max(20), *frame.get(ip + 9)?)
            }
            6 => (false, ip + 40, *frame.get(ip + 6)?),
            _ => return None,
        };
        // Hop-by-hop, routing and destination options may stand between.
        while !is_v4 && [0, 43, 60].contains(&protocol) {
            protocol = *frame.get(transport)?;
            transport += (usize::from(*frame.get(transport + 1)?) + 1) * 8;
        }
        let length = match (kind, protocol, is_v4) {
            (VIRTIO_NET_HDR_GSO_TCPV4, TCP, true) | (VIRTIO_NET_HDR_GSO_TCPV6, TCP, false) => {
                usize::from(*frame.get(transport + 12)? >> 4) * 4
            }
            (VIRTIO_NET_HDR_GSO_UDP_L4, UDP, _) => 8,
            _ => return None,
        };
        let end = transport + length;
        let least = if protocol == TCP { 20 } else { 8 };
        (length >= least && end <= frame.len() && end <= MAX_HEADERS).then_some(Self {
            ip,
            is_v4,
            transport,
            protocol,
            end,
        })
    }

    /// The addresses, the protocol and the length that a transport checksum covers.
    fn pseudo(&self, headers: &[u8], length: usize) -> ([u8; 40], usize) {
        let mut pseudo = [0; 40];
        let (from, bytes) = if self.is_v4 { (12, 8) } else { (8, 32) };
        pseudo[..bytes].copy_from_slice(&headers[self.ip + from..self.ip + from + bytes]);
        pseudo[bytes..bytes + 4].copy_from_slice(&(length as u32).to_be_bytes());
        pseudo[bytes + 7] = self.protocol;
        (pseudo, bytes + 8)
    }
}

/// Cuts a superframe as its sender's network card would have done, and hands the headers and payload of each segment to `each`.
pub fn segments(
    frame: &[u8],
    incomplete: Incomplete,
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    const FIN_PSH: u8 = 0x01 | 0x08;
    const CWR: u8 = 0x80;
    let (kind, size) = incomplete.segments.ok_or(Malformed)?;
    let layout = Headers::parse(frame, kind).ok_or(Malformed)?;
    let Headers {
        ip,
        is_v4,
        transport,
        protocol,
        end,
    } = layout;
    if size == 0 {
        return Err(Malformed);
    }
    let (template, payload) = frame.split_at(end);
    let last = payload.len().div_ceil(size).saturating_sub(1);
    for (index, piece) in payload.chunks(size).enumerate() {
        let mut buffer = [0; MAX_HEADERS];
        let headers = &mut buffer[..end];
        headers.copy_from_slice(template);
        let length = (end - transport + piece.len()) as u16;
        if is_v4 {
            let id = u16::from_be_bytes([headers[ip + 4], headers[ip + 5]]);
            let id = id.wrapping_add(index as u16);
            let total = (transport - ip) as u16 + length;
            headers[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
            headers[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
            headers[ip + 10..ip + 12].fill(0);
            let sum = checksum(&[&headers[ip..transport]]);
            headers[ip + 10..ip + 12].copy_from_slice(&sum);
        } else {
            let total = (transport - ip - 40) as u16 + length;
            headers[ip + 4..ip + 6].copy_from_slice(&total.to_be_bytes());
        }
        let field = if protocol == TCP {
            let at = transport + 4;
            let sequence = headers[at..].first_chunk().copied().unwrap_or_default();
            let sequence = u32::from_be_bytes(sequence).wrapping_add((index * size) as u32);
            headers[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            if index < last {
                headers[transport + 13] &= !FIN_PSH;
            }
            if index > 0 {
                headers[transport + 13] &= !CWR;
            }
            transport + 16
        } else {
            headers[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
            transport + 6
        };
        headers[field..field + 2].fill(0);
        let (pseudo, pseudo_len) = layout.pseudo(headers, length.into());
        let sum = checksum(&[&pseudo[..pseudo_len], &headers[transport..], piece]);
        headers[field..field + 2].copy_from_slice(&sum);
        each(headers, piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(flags: u8, kind: u8, size: u16, start: u16, offset: u16) -> [u8; 16] {
        let mut h = [0; 16];
        (h[0], h[1]) = (flags, kind);
        for (at, value) in [(4, size), (6, start), (8, offset)] {
            h[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        h
    }

    fn v4(protocol: u8, transport: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut f = vec![2; 12];
        f.extend([8, 0, 0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 9, 9]);
        f.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        f.extend(transport);
        f.extend(payload);
        f
    }

    fn v6(protocol: u8, transport: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut f = vec![2; 12];
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 64]);
        f.extend([0xfd; 32]);
        f.extend(transport);
        f.extend(payload);
        f
    }

    fn tcp() -> [u8; 20] {
        let mut t = [0; 20];
        t[4..8].copy_from_slice(&(u32::MAX - 50).to_be_bytes());
        t[12] = 0x50;
        t[13] = 0x80 | 0x10 | 0x08 | 0x01;
        t
    }

    fn is_right(frame: &[u8], layout: &Headers) -> bool {
        let length = frame.len() - layout.transport;
        let (pseudo, n) = layout.pseudo(frame, length);
        let sum = checksum(&[&pseudo[..n], &frame[layout.transport..]]);
        // Over a right checksum the sum is 0.
        sum == [0xff; 2]
    }

    #[test]
    fn nothing_to_do() {
        assert_eq!(Incomplete::from_header(&[0; 16]), None);
        let valid = header(2, 0, 0, 34, 6);
        assert_eq!(Incomplete::from_header(&valid), None);
    }

    #[test]
    fn a_partial_checksum() {
        let payload = [7, 8, 9];
        let mut udp = [0u8; 8];
        udp[4..6].copy_from_slice(&11u16.to_be_bytes());
        let mut frame = v4(17, &udp, &payload);
        let layout = Headers::parse(&frame, VIRTIO_NET_HDR_GSO_UDP_L4).unwrap();
        // The sender leaves the sum of the pseudo header in the field.
        let (pseudo, n) = layout.pseudo(&frame, 11);
        let partial = checksum(&[&pseudo[..n]]).map(|b| !b);
        frame[40..42].copy_from_slice(&partial);
        let todo = Incomplete::from_header(&header(1, 0, 0, 34, 6)).unwrap();
        todo.complete(&mut frame).unwrap();
        assert!(is_right(&frame, &layout));
        for (start, offset) in [(34, 10), (60, 0), (u16::MAX, u16::MAX)] {
            let todo = Incomplete::from_header(&header(1, 0, 0, start, offset)).unwrap();
            assert_eq!(todo.complete(&mut frame), Err(Malformed));
        }
    }

    #[test]
    fn superframes_are_cut() {
        let payload: Vec<u8> = (0..=255).cycle().take(250).collect();
        let mut udp = [0u8; 8];
        udp[4..6].copy_from_slice(&258u16.to_be_bytes());
        let cases = [
            (VIRTIO_NET_HDR_GSO_TCPV4, v4(6, &tcp(), &payload)),
            (VIRTIO_NET_HDR_GSO_TCPV6, v6(6, &tcp(), &payload)),
            (VIRTIO_NET_HDR_GSO_UDP_L4, v4(17, &udp, &payload)),
            (VIRTIO_NET_HDR_GSO_UDP_L4, v6(17, &udp, &payload)),
        ];
        for (kind, frame) in cases {
            let ecn = VIRTIO_NET_HDR_GSO_ECN as u8;
            let todo = Incomplete::from_header(&header(1, kind as u8 | ecn, 100, 34, 16)).unwrap();
            assert!(todo.is_superframe());
            let mut cut: Vec<Vec<u8>> = Vec::new();
            segments(&frame, todo, |h, p| cut.push([h, p].concat())).unwrap();
            let layout = Headers::parse(&frame, kind).unwrap();
            let data: Vec<u8> = cut.iter().flat_map(|s| s[layout.end..].to_vec()).collect();
            assert_eq!(data, payload);
            let sizes: Vec<usize> = cut.iter().map(|s| s.len() - layout.end).collect();
            assert_eq!(sizes, [100, 100, 50]);
            for (n, segment) in cut.iter().enumerate() {
                assert!(is_right(segment, &layout), "kind {kind}, segment {n}");
                let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
                let length = segment.len() - layout.ip;
                if layout.is_v4 {
                    assert_eq!(usize::from(word(16)), length);
                    assert_eq!(word(18), 0xffffu16.wrapping_add(n as u16));
                    assert_eq!(checksum(&[&segment[14..34]]), [0xff; 2]);
                } else {
                    assert_eq!(usize::from(word(18)), length - 40);
                }
                if layout.protocol == TCP {
                    let flags = segment[layout.transport + 13];
                    let expected = [0x80 | 0x10, 0x10, 0x10 | 0x08 | 0x01][n];
                    assert_eq!(flags, expected, "segment {n}");
                    let at = layout.transport + 4;
                    let sequence = u32::from_be_bytes(*segment[at..].first_chunk().unwrap());
                    assert_eq!(sequence, (u32::MAX - 50).wrapping_add(100 * n as u32));
                } else {
                    let at = layout.transport + 4;
                    assert_eq!(usize::from(word(at)), segment.len() - layout.transport);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes(header in any::<[u8; 16]>(), mut frame in prop::collection::vec(any::<u8>(), 0..400), ip in any::<bool>()) {
            if ip && frame.len() > 30 {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
                frame[23] = 6;
            }
            if let Some(todo) = Incomplete::from_header(&header) {
                let _ = todo.complete(&mut frame);
                for kind in [1, 4, 5] {
                    let todo = Incomplete { segments: Some((kind, 7)), ..todo };
                    let _ = segments(&frame, todo, |_, _| ());
                }
            }
        }
    }
}
