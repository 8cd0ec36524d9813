//! What a sender leaves to others to do: the checksum (`VIRTIO_NET_F_CSUM`), and cutting a frame larger than the wire allows, a
//! superframe, into segments (`VIRTIO_NET_F_HOST_TSO4`, `…_TSO6`, `…_USO`).
//!
//! A request is checked once against the real headers of its frame. A superframe stands for its segments; one by one they are made from
//! its headers and a part of its payload, when they are copied.

use crate::classify::{IPV4, IPV6, MAX_TAGS, behind_tags};
use crate::frame::Segment;
use crate::net_header::Request;
use crate::ring::Sum;

/// The most bytes of headers a superframe may have.
pub const MAX_HEADERS: usize = 256;
/// The most segments of a TCP superframe: 64 KiB in segments of 16 bytes, which is what a Linux guest has left on a link with the smallest
/// MTU there is, 68, behind the longest options.
const MAX_TCP_SEGMENTS: u32 = 4096;
/// The most segments of a UDP superframe, as in Linux.
const MAX_UDP_SEGMENTS: u32 = 128;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// Of the 13th and 14th byte of a TCP header.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// What is left to do to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Its checksum is to be completed.
    pub checksum: Option<Checksum>,
    /// It is a superframe.
    pub gso: Option<Gso>,
}

/// A checksum to be completed. The field holds the sum of what is not in the range, a pseudo-header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// The sum is of the bytes from here to the end of the frame.
    pub start: u16,
    /// Its field is so far behind `start`.
    pub offset: u16,
}

impl Checksum {
    /// Where the field is.
    pub fn field(self) -> u32 {
        u32::from(self.start) + u32::from(self.offset)
    }
}

/// What a superframe carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl Kind {
    fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }
}

/// How a superframe is cut. All offsets are from the beginning of the frame and have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// What it carries.
    pub kind: Kind,
    /// CWR is for the first segment only.
    pub ecn: bool,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// The IP header.
    pub network: u16,
    /// Bytes before the payload; every segment has as many.
    pub headers: u16,
}

/// A request that does not go with its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Offload {
    /// Checks what the sender of a frame of `len` bytes asks for, by its first bytes: as many as there are, up to
    /// [`MAX_HEADERS`], and only if it is to be cut.
    pub fn check(request: &Request, len: u32, head: &[u8]) -> Result<Self, Malformed> {
        let Some((start, offset)) = request.checksum else {
            return Ok(Self::default());
        };
        let checksum = Checksum { start, offset };
        // What is summed can be an inner packet of any tunnel, so it can be anywhere behind the Ethernet header.
        if usize::from(start) < ETHERNET || checksum.field() + 2 > len {
            return Err(Malformed);
        }
        let mut offload = Self {
            checksum: Some(checksum),
            gso: None,
        };
        let Some(cut) = &request.cut else {
            return Ok(offload);
        };
        let found = Headers::find(head, len, MAX_TAGS).ok_or(Malformed)?;
        let expected = if cut.tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if found.kind.is_tcp() != cut.tcp
            || cut.version.is_some_and(|v| (v == 4) != found.kind.is_v4())
            || (start, offset) != (found.transport, expected)
            || cut.size == 0
            || u32::from(cut.header_len) > len
        {
            return Err(Malformed);
        }
        let gso = Gso {
            kind: found.kind,
            ecn: cut.ecn,
            size: cut.size,
            network: found.network,
            headers: found.payload,
        };
        let most = if cut.tcp {
            MAX_TCP_SEGMENTS
        } else {
            MAX_UDP_SEGMENTS
        };
        match gso.segments(len) {
            // It fits as it is.
            0 | 1 => {}
            n if n <= most => offload.gso = Some(gso),
            _ => return Err(Malformed),
        }
        Ok(offload)
    }

    /// The same of a frame whose addresses and tag had `before` bytes and have `after`.
    #[must_use]
    pub fn moved(mut self, before: u16, after: u16) -> Self {
        let moved = |at: u16| at.saturating_add(after).saturating_sub(before);
        // A sum over a tag that is removed is none of the frame's.
        self.checksum = self.checksum.filter(|c| c.start >= before);
        if let Some(checksum) = &mut self.checksum {
            checksum.start = moved(checksum.start);
        }
        if let Some(gso) = &mut self.gso {
            gso.network = moved(gso.network);
            gso.headers = moved(gso.headers);
        }
        self
    }

    /// Whether `head`, the first bytes of a superframe of `len` bytes read once more, still has the headers that were checked.
    pub fn still_holds(&self, len: u32, head: &[u8]) -> bool {
        self.gso.is_none_or(|gso| {
            // The switch may have added a tag.
            Headers::find(head, len, MAX_TAGS + 1).is_some_and(|found| {
                found.kind == gso.kind
                    && found.network == gso.network
                    && found.payload == gso.headers
                    && self.checksum.is_some_and(|c| c.start == found.transport)
            })
        })
    }
}

impl Gso {
    /// In how many segments a frame of `len` bytes is cut.
    pub fn segments(&self, len: u32) -> u32 {
        len.saturating_sub(self.headers.into())
            .div_ceil(self.size.max(1).into())
    }

    /// Bytes of the longest segment of a frame that is long enough.
    pub fn longest(&self) -> u32 {
        u32::from(self.headers) + u32::from(self.size)
    }

    /// The payload of segment `index` of a frame of `len` bytes: where it begins and how many bytes it has.
    pub fn payload(&self, len: u32, index: u16) -> (u32, u32) {
        let start = u32::from(self.headers) + u32::from(index) * u32::from(self.size);
        (start, len.saturating_sub(start).min(self.size.into()))
    }

    /// Makes `head`, the headers of a superframe, those of one of its segments, of `len` bytes. The checksum of the transport
    /// header remains to be completed.
    pub fn cut(&self, head: &mut [u8], checksum: Checksum, segment: Segment, len: u32) {
        let Segment { index, whole, last } = segment;
        let (network, transport) = (usize::from(self.network), usize::from(checksum.start));
        if self.kind.is_v4() {
            let ip = &mut head[network..transport];
            put(ip, 2, (len - u32::from(self.network)) as u16);
            let id = u16::from_be_bytes([ip[4], ip[5]]);
            put(ip, 4, id.wrapping_add(index));
            put(ip, 10, 0);
            let mut sum = Sum::default();
            sum.bytes(ip);
            put(ip, 10, !sum.get());
        } else {
            // Behind the fixed header; extension headers are payload.
            put(
                head,
                network + 4,
                (len - u32::from(self.network) - 40) as u16,
            );
        }
        let before = (whole - transport as u32) as u16;
        let after = (len - transport as u32) as u16;
        let l4 = &mut head[transport..];
        if self.kind.is_tcp() {
            let passed = u32::from(index) * u32::from(self.size);
            let seq = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            l4[4..8].copy_from_slice(&seq.wrapping_add(passed).to_be_bytes());
            if !last {
                l4[TCP_FLAGS] &= !(FIN | PSH);
            }
            if self.ecn && index > 0 {
                l4[TCP_FLAGS] &= !CWR;
            }
        } else {
            put(l4, 4, after);
        }
        // The pseudo-header of the segment differs from that of the superframe by the length only. The sender has summed it, and it
        // knows the final destination behind a routing header.
        let field = usize::from(checksum.offset);
        let mut sum = Sum::default();
        sum.number(u16::from_be_bytes([l4[field], l4[field + 1]]));
        sum.number(!before);
        sum.number(after);
        put(l4, field, sum.get());
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where the headers of a packet that can be cut are.
#[derive(Debug, PartialEq, Eq)]
struct Headers {
    kind: Kind,
    network: u16,
    transport: u16,
    payload: u16,
}

impl Headers {
    /// Finds the headers of a frame of `len` bytes that begins with `head`; `None` if it is no complete, unfragmented TCP or UDP packet, or
    /// has bytes behind it.
    fn find(head: &[u8], len: u32, tags: usize) -> Option<Self> {
        let (ethertype, network) = behind_tags(head, tags)?;
        let packet = len.checked_sub(network as u32)?;
        let (protocol, transport) = match ethertype {
            IPV4 => {
                let ip = head.get(network..network + 20)?;
                let words = usize::from(ip[0] & 0xf);
                // No fragment: neither more to come nor an offset.
                let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
                let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
                let right = ip[0] >> 4 == 4 && words >= 5 && fragment == 0 && total == packet;
                right.then_some((ip[9], network + 4 * words))?
            }
            IPV6 => {
                let ip = head.get(network..network + 40)?;
                let payload = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
                if ip[0] >> 4 != 6 || payload + 40 != packet {
                    return None;
                }
                v6_transport(head, ip[6], network + 40)?
            }
            _ => return None,
        };
        let kind = match (ethertype, protocol) {
            (IPV4, TCP) => Kind::Tcp4,
            (IPV4, UDP) => Kind::Udp4,
            (_, TCP) => Kind::Tcp6,
            (_, UDP) => Kind::Udp6,
            _ => return None,
        };
        let headers = if kind.is_tcp() {
            let words = usize::from(*head.get(transport + 12)? >> 4);
            if words < 5 {
                return None;
            }
            transport + 4 * words
        } else {
            transport + 8
        };
        // There is a payload, and all headers are in `head`.
        let fits = headers <= head.len() && headers < len as usize;
        fits.then_some(Self {
            kind,
            network: network as u16,
            transport: transport as u16,
            payload: headers as u16,
        })
    }
}

/// The protocol behind extension headers that begin at `at`, and where it begins (RFC 8200 §4). Fragments cannot be cut.
fn v6_transport(head: &[u8], mut next: u8, mut at: usize) -> Option<(u8, usize)> {
    loop {
        let words = |bytes: &[u8]| usize::from(bytes[1]);
        match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                let extension = head.get(at..at + 2)?;
                next = extension[0];
                at += (words(extension) + 1) * 8;
            }
            _ => return Some((next, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net_header::Cut;
    use proptest::prelude::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    /// A frame with `l4` and 3000 bytes of payload behind the given IP header, whose length field is set.
    fn frame(ethertype: u16, ip: &[u8], l4: &[u8]) -> Vec<u8> {
        let mut f = [&MACS[..], &ethertype.to_be_bytes(), ip, l4].concat();
        f.extend([0x55; 3000]);
        let total = f.len() - 14;
        match ethertype {
            IPV4 => put(&mut f, 16, total as u16),
            IPV6 => put(&mut f, 18, (total - 40) as u16),
            _ => {}
        }
        f
    }

    fn v4(first: u8, fragment: u16, protocol: u8) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        let mut ip = vec![first, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
        ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        ip
    }

    fn v6(version: u8, next: u8, extensions: &[u8]) -> Vec<u8> {
        let mut ip = vec![version << 4, 0, 0, 0, 0, 0, next, 64];
        ip.extend([0xfd; 32]);
        ip.extend(extensions);
        ip
    }

    fn tcp(words: u8) -> Vec<u8> {
        let mut tcp = vec![0; usize::from(words.max(5)) * 4];
        tcp[12] = words << 4;
        tcp
    }

    fn request(tcp: bool, version: Option<u8>, start: u16, size: u16) -> Request {
        let cut = Cut {
            tcp,
            version,
            ecn: false,
            size,
            header_len: 0,
        };
        Request {
            checksum: Some((start, if tcp { 16 } else { 6 })),
            cut: Some(cut),
        }
    }

    fn check(request: &Request, frame: &[u8]) -> Result<Offload, Malformed> {
        let head = &frame[..frame.len().min(MAX_HEADERS)];
        Offload::check(request, frame.len() as u32, head)
    }

    fn gso(request: &Request, frame: &[u8]) -> Option<(Kind, u16, u16, u32)> {
        let gso = check(request, frame).ok()?.gso?;
        Some((
            gso.kind,
            gso.network,
            gso.headers,
            gso.segments(frame.len() as u32),
        ))
    }

    #[test]
    fn what_can_be_cut() {
        let t4 = |start| request(true, Some(4), start, 1000);
        let t6 = |start| request(true, Some(6), start, 1000);
        let u = |start| request(false, None, start, 1000);
        let plain = frame(IPV4, &v4(0x45, 0x4000, TCP), &tcp(5));
        assert_eq!(gso(&t4(34), &plain), Some((Kind::Tcp4, 14, 54, 3)));
        let options = [v4(0x46, 0, TCP), vec![1; 4]].concat();
        let options = frame(IPV4, &options, &tcp(15));
        assert_eq!(gso(&t4(38), &options), Some((Kind::Tcp4, 14, 98, 3)));
        let udp = frame(IPV4, &v4(0x45, 0, UDP), &[0; 8]);
        assert_eq!(gso(&u(34), &udp), Some((Kind::Udp4, 14, 42, 3)));
        let six = frame(IPV6, &v6(6, TCP, &[]), &tcp(5));
        assert_eq!(gso(&t6(54), &six), Some((Kind::Tcp6, 14, 74, 3)));
        // Hop-by-hop options, routing with 16 bytes, destination options.
        let chain = [
            &[43, 0, 1, 4, 0, 0, 0, 0],
            &[60, 1][..],
            &[0; 14],
            &[UDP, 0, 1, 4, 0, 0, 0, 0],
        ]
        .concat();
        let six = frame(IPV6, &v6(6, 0, &chain), &[0; 8]);
        assert_eq!(gso(&u(86), &six), Some((Kind::Udp6, 14, 94, 3)));
        for tags in 1..=3 {
            let mut tagged = plain.clone();
            for _ in 0..tags {
                tagged.splice(12..12, [0x81, 0, 0, 5]);
            }
            let found = gso(&t4(34 + 4 * tags), &tagged);
            let right = (Kind::Tcp4, 14 + 4 * tags, 54 + 4 * tags, 3);
            assert_eq!(found, (tags < 3).then_some(right));
        }
    }

    #[test]
    fn what_cannot() {
        let t4 = request(true, Some(4), 34, 1000);
        let t6 = request(true, Some(6), 54, 1000);
        let u = request(false, None, 34, 1000);
        let good = frame(IPV4, &v4(0x45, 0, TCP), &tcp(5));
        let good6 = frame(IPV6, &v6(6, TCP, &[]), &tcp(5));
        let change = |f: &[u8], at: usize, value: u8| {
            let mut f = f.to_vec();
            f[at] = value;
            f
        };
        let v6_next = |next| frame(IPV6, &v6(6, next, &[TCP, 0, 0, 0, 0, 0, 0, 0]), &tcp(5));
        let longer = [&good[..], &[0; 10]].concat();
        let after = request(true, Some(6), 62, 1000);
        let bad: [(&str, &Request, Vec<u8>); 21] = [
            ("version 5", &t4, change(&good, 14, 0x55)),
            ("a short header", &t4, change(&good, 14, 0x44)),
            (
                "options the checksum does not start behind",
                &t4,
                change(&good, 14, 0x46),
            ),
            ("more fragments", &t4, change(&good, 20, 0x20)),
            ("a fragment", &t4, change(&good, 21, 1)),
            ("a wrong length", &t4, change(&good, 17, 0)),
            ("bytes behind the packet", &t4, longer),
            ("UDP as TCP", &t4, change(&good, 23, UDP)),
            ("TCP as UDP", &u, good.clone()),
            ("ICMP", &t4, change(&good, 23, 1)),
            ("a short TCP header", &t4, change(&good, 46, 0x40)),
            ("ARP", &t4, change(&good, 13, 6)),
            ("IPv6 as IPv4", &t4, good6.clone()),
            ("IPv4 as IPv6", &t6, good.clone()),
            ("version 4", &t6, change(&good6, 14, 0x40)),
            ("a wrong length", &t6, change(&good6, 19, 0)),
            ("a fragment header", &after, v6_next(44)),
            ("an authentication header", &after, v6_next(51)),
            ("no next header", &after, v6_next(59)),
            ("no payload", &t4, good[..54].to_vec()),
            ("half a header", &t4, good[..40].to_vec()),
        ];
        for (what, request, frame) in bad {
            assert_eq!(check(request, &frame), Err(Malformed), "{what}");
        }
        // Extension headers beyond what is looked at.
        let mut long = vec![TCP, 30];
        long.resize(31 * 8, 0);
        let long = frame(IPV6, &v6(6, 60, &long), &tcp(5));
        let request = request(true, Some(6), 54 + 31 * 8, 1000);
        assert_eq!(check(&request, &long), Err(Malformed));
    }

    #[test]
    fn numbers_in_the_request() {
        let tcp_frame = frame(IPV4, &v4(0x45, 0, TCP), &tcp(5));
        let udp_frame = frame(IPV4, &v4(0x45, 0, UDP), &[0; 8]);
        let segments = |tcp: bool, size| {
            let frame = if tcp { &tcp_frame } else { &udp_frame };
            let offload = check(&request(tcp, tcp.then_some(4), 34, size), frame)?;
            Ok(offload
                .gso
                .map_or(1, |gso| gso.segments(frame.len() as u32)))
        };
        for (is_tcp, size, right) in [
            (true, 0, Err(Malformed)),
            (true, 1, Ok(3000)),
            (true, 1500, Ok(2)),
            (true, 2999, Ok(2)),
            (true, 3000, Ok(1)),
            (true, 65535, Ok(1)),
            (false, 0, Err(Malformed)),
            (false, 23, Err(Malformed)), // 131
            (false, 24, Ok(125)),
        ] {
            assert_eq!(segments(is_tcp, size), right, "{is_tcp} {size}");
        }
        let mut big = tcp_frame.clone();
        big.resize(5000 + 54, 0);
        put(&mut big, 16, 5040);
        assert_eq!(check(&request(true, Some(4), 34, 1), &big), Err(Malformed));
        let mut wrong = request(true, Some(4), 34, 1000);
        wrong.checksum = Some((34, 6));
        assert_eq!(check(&wrong, &tcp_frame), Err(Malformed));
        let mut hint = request(true, Some(4), 34, 1000);
        if let Some(cut) = &mut hint.cut {
            cut.header_len = 3055;
        }
        assert_eq!(check(&hint, &tcp_frame), Err(Malformed));
    }

    #[test]
    fn checksums_of_anything() {
        let ask = |start, offset, len| {
            let request = Request {
                checksum: Some((start, offset)),
                cut: None,
            };
            Offload::check(&request, len, &[]).is_ok()
        };
        assert!(ask(14, 0, 16) && ask(34, 16, 60) && ask(34, 6, 42));
        assert!(
            !ask(13, 16, 60) && !ask(0, 0, 60),
            "not of the Ethernet header"
        );
        assert!(!ask(14, 1, 16) && !ask(34, 16, 51));
        assert!(!ask(65535, 65535, 65557) && !ask(1000, 0, 60));
    }

    proptest! {
        #[test]
        fn any_bytes(mut head in prop::collection::vec(any::<u8>(), 0..MAX_HEADERS), six: bool, len in 0u32..70_000, start: u16, size: u16) {
            if head.len() > 14 {
                put(&mut head, 12, if six { IPV6 } else { IPV4 });
                head[14] = if six { 0x60 } else { 0x45 };
            }
            let len = len.max(head.len() as u32);
            if let Some(found) = Headers::find(&head, len, MAX_TAGS) {
                prop_assert!(u32::from(found.payload) < len && usize::from(found.payload) <= head.len());
                prop_assert!(found.network < found.transport && found.transport < found.payload);
                let request = request(found.kind.is_tcp(), None, found.transport, size);
                let _ = Offload::check(&request, len, &head);
            }
            let _ = Offload::check(&request(true, None, start, size), len, &head);
        }
    }
}
