//! What queue disciplines want to know of a frame: its flow, and whether its sender understands congestion marks.
//!
//! Decided once, on a private copy of the frame's first bytes.

/// The bytes that are looked at: Ethernet, two VLAN tags, IPv6 with a few extension headers, ports.
pub const HEADER_BYTES: usize = 128;

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad and the tag that was used before it.
pub(crate) const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
pub(crate) const MAX_TAGS: usize = 2;
/// TCP, UDP, DCCP, SCTP, UDP-Lite: their ports come first.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// What is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Class {
    /// A hash that is the same for frames of one flow: VLAN, IP addresses, protocol and ports. Fragments have no ports, not even the first
    /// of a packet, so that all of a packet are in one flow. Of other frames, the Ethernet addresses and the type.
    pub flow: u32,
    /// Where the field with the ECN bits is, if the sender set ECT(0) or ECT(1).
    pub ecn: Option<Ecn>,
}

/// The place of an ECN field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ecn {
    /// In an IPv4 header at this offset.
    V4(u8),
    /// In an IPv6 header at this offset.
    V6(u8),
}

impl Ecn {
    /// The same field of a frame that begins with `after` bytes in place of `before`.
    #[must_use]
    pub fn moved(self, before: u8, after: u8) -> Self {
        match self {
            Self::V4(at) => Self::V4(at + after - before),
            Self::V6(at) => Self::V6(at + after - before),
        }
    }

    /// Sets CE (RFC 3168) by `update`, which changes the byte at an offset of the frame, if it is there, and returns what it was.
    pub fn mark(self, mut update: impl FnMut(u32, &dyn Fn(u8) -> u8) -> Option<u8>) {
        match self {
            Self::V6(ip) => {
                update(u32::from(ip) + 1, &|byte| byte | 0x30);
            }
            Self::V4(ip) => {
                let ip = u32::from(ip);
                let before = update(ip + 1, &|tos| tos | 3);
                let added = before.map_or(0, |tos| 3 - (tos & 3));
                let high = update(ip + 10, &|byte| byte).unwrap_or(0);
                let low = update(ip + 11, &|byte| byte).unwrap_or(0);
                // RFC 1624: HC' = ~(~HC + (m' - m)).
                let sum = u32::from(!u16::from_be_bytes([high, low])) + u32::from(added);
                let [high, low] = (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes();
                update(ip + 10, &|_| high);
                update(ip + 11, &|_| low);
            }
        }
    }
}

struct Hash(u64);

impl Hash {
    fn add(&mut self, value: u64) {
        let h = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ h >> 32;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_be_bytes(word));
        }
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

/// The EtherType behind at most `tags` VLAN tags of a frame that begins with `head`, and where what it names begins.
pub(crate) fn behind_tags(head: &[u8], tags: usize) -> Option<(u16, usize)> {
    let mut at = 12;
    let mut kind = u16_at(head, at)?;
    for _ in 0..tags {
        if !VLAN.contains(&kind) {
            break;
        }
        at += 4;
        kind = u16_at(head, at)?;
    }
    Some((kind, at + 2))
}

/// Classifies a frame by its first bytes.
pub fn classify(frame: &[u8]) -> Class {
    let mut hash = Hash(0);
    let mut ecn = None;
    if headers(frame, &mut hash, &mut ecn).is_none() {
        hash.bytes(frame.get(..14).unwrap_or(frame));
    }
    Class {
        flow: (hash.0 >> 32) as u32,
        ecn,
    }
}

/// Adds what makes an IP flow; `None` if it is no IP packet.
fn headers(frame: &[u8], hash: &mut Hash, ecn: &mut Option<Ecn>) -> Option<()> {
    let mut at = 12;
    let mut kind = u16_at(frame, at)?;
    for _ in 0..MAX_TAGS {
        if !VLAN.contains(&kind) {
            break;
        }
        hash.add(u64::from(u16_at(frame, at + 2)? & 0xfff));
        at += 4;
        kind = u16_at(frame, at)?;
    }
    let ip = at + 2;
    match kind {
        IPV4 => v4(frame, ip, hash, ecn),
        IPV6 => v6(frame, ip, hash, ecn),
        _ => None,
    }
}

fn v4(frame: &[u8], ip: usize, hash: &mut Hash, ecn: &mut Option<Ecn>) -> Option<()> {
    let header = frame.get(ip..ip + 20)?;
    let words = usize::from(header[0] & 0xf);
    if header[0] >> 4 != 4 || words < 5 {
        return None;
    }
    let protocol = header[9];
    hash.bytes(&header[12..20]);
    hash.add(protocol.into());
    // More fragments, or an offset.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if !fragment {
        ports(frame, ip + 4 * words, protocol, hash);
    }
    let capable = matches!(header[1] & 3, 1 | 2);
    *ecn = capable.then_some(Ecn::V4(ip as u8));
    Some(())
}

fn v6(frame: &[u8], ip: usize, hash: &mut Hash, ecn: &mut Option<Ecn>) -> Option<()> {
    let header = frame.get(ip..ip + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    hash.bytes(&header[8..40]);
    let capable = matches!(header[1] >> 4 & 3, 1 | 2);
    let (mut next, mut at) = (header[6], ip + 40);
    let mut fragment = false;
    // Hop-by-hop options, routing, fragment, authentication, destination options; each says what follows (RFC 8200 §4).
    while let Some(extension) = frame.get(at..at + 2) {
        let len = match next {
            0 | 43 | 60 => (usize::from(extension[1]) + 1) * 8,
            44 => {
                fragment = true;
                8
            }
            51 => (usize::from(extension[1]) + 2) * 4,
            _ => break,
        };
        next = extension[0];
        at += len;
    }
    hash.add(next.into());
    if !fragment {
        ports(frame, at, next, hash);
    }
    *ecn = capable.then_some(Ecn::V6(ip as u8));
    Some(())
}

fn ports(frame: &[u8], at: usize, protocol: u8, hash: &mut Hash) {
    if WITH_PORTS.contains(&protocol)
        && let Some(ports) = frame.get(at..at + 4)
    {
        hash.bytes(ports);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn ethernet(tags: &[(u16, u16)], kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = MACS.to_vec();
        for (tpid, tci) in tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn ipv4(tos: u8, fragment: u16, source: u8, sport: u16) -> Vec<u8> {
        let mut p = vec![
            0x45, tos, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, source, 10, 0, 0, 9,
        ];
        p[6..8].copy_from_slice(&fragment.to_be_bytes());
        p.extend(sport.to_be_bytes());
        p.extend([0, 80]);
        p
    }

    fn ipv6(class: u8, first: u8, extensions: &[u8], sport: u16) -> Vec<u8> {
        let mut p = vec![0x60 | class >> 4, class << 4 | 5, 1, 2, 0, 20, first, 64];
        p.extend([0xfd; 32]);
        p.extend(extensions);
        p.extend(sport.to_be_bytes());
        p.extend([0, 80]);
        p
    }

    fn v4_class(tos: u8, fragment: u16, source: u8, sport: u16) -> Class {
        classify(&ethernet(&[], IPV4, &ipv4(tos, fragment, source, sport)))
    }

    #[test]
    fn flows_of_ipv4() {
        let base = v4_class(0, 0, 1, 1000);
        assert_eq!(base, v4_class(0, 0, 1, 1000));
        assert_ne!(base.flow, v4_class(0, 0, 2, 1000).flow);
        assert_ne!(base.flow, v4_class(0, 0, 1, 1001).flow);
        // Don't fragment is no fragment; all fragments of a packet are one flow, whatever stands where ports would be.
        assert_eq!(base.flow, v4_class(0, 0x4000, 1, 1000).flow);
        let first = v4_class(0, 0x2000, 1, 1000);
        assert_eq!(first.flow, v4_class(0, 100, 1, 7).flow);
        assert_ne!(first.flow, base.flow);
    }

    #[test]
    fn flows_of_ipv6() {
        let class = |first, extensions: &[u8], sport| {
            classify(&ethernet(&[], IPV6, &ipv6(0, first, extensions, sport))).flow
        };
        let base = class(6, &[], 1000);
        assert_ne!(base, class(6, &[], 1001));
        assert_ne!(base, class(17, &[], 1000));
        // Extension headers are no part of the flow, but a fragment header hides the ports.
        assert_eq!(base, class(0, &[6, 0, 1, 4, 0, 0, 0, 0], 1000));
        let fragment = [6, 0, 0, 1, 0, 0, 0, 9];
        assert_eq!(class(44, &fragment, 1000), class(44, &fragment, 1001));
        assert_ne!(class(44, &fragment, 1000), base);
    }

    #[test]
    fn vlans_and_others() {
        let tagged = |vid: u16| {
            let tags = [(0x88a8, 7), (0x8100, 0x2000 | vid)];
            classify(&ethernet(&tags, IPV4, &ipv4(1, 0, 1, 1000)))
        };
        assert_eq!(tagged(5), tagged(5));
        assert_ne!(tagged(5).flow, tagged(6).flow);
        assert_eq!(tagged(5).ecn, Some(Ecn::V4(22)));
        let arp = classify(&ethernet(&[], 0x0806, &[1; 28]));
        assert_eq!(arp.flow, classify(&ethernet(&[], 0x0806, &[2; 28])).flow);
        assert_eq!(arp.ecn, None);
    }

    #[test]
    fn only_capable_senders() {
        for (bits, capable) in [(0, false), (1, true), (2, true), (3, false)] {
            assert_eq!(
                v4_class(0xa0 | bits, 0, 1, 1).ecn,
                capable.then_some(Ecn::V4(14))
            );
            let v6 = classify(&ethernet(&[], IPV6, &ipv6(0xa0 | bits, 6, &[], 1)));
            assert_eq!(v6.ecn, capable.then_some(Ecn::V6(14)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes(frame in prop::collection::vec(any::<u8>(), 0..HEADER_BYTES), cut in 0usize..HEADER_BYTES) {
            classify(&frame);
            let whole = ethernet(&[], IPV6, &ipv6(2, 0, &[60, 1, 0, 0, 0, 0, 0, 0], 1));
            classify(&whole[..cut.min(whole.len())]);
        }
    }
}
