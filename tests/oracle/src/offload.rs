//! Offloads, done the plain way: headers are parsed and written by `etherparse`, every segment is a vector of its own.

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

/// The header in front of a frame.
pub type Header = [u8; 12];

/// All features that matter here.
pub const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

const NEEDS_CSUM: u8 = 1;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;
const ECN: u8 = 0x80;

/// What a receiver with the features `to` gets of a frame that a sender with the features `from` has sent: frames with their
/// headers, `num_buffers` still 0. Nothing if the header asks for what it must not.
pub fn deliver(from: u64, to: u64, header: Header, frame: &[u8]) -> Vec<(Header, Vec<u8>)> {
    deliver_checked(from, to, header, frame).unwrap_or_default()
}

fn field(header: Header, at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

fn deliver_checked(
    from: u64,
    to: u64,
    header: Header,
    frame: &[u8],
) -> Option<Vec<(Header, Vec<u8>)>> {
    let (needs_checksum, kind) = (header[0] & NEEDS_CSUM != 0, header[1]);
    if !needs_checksum {
        return (kind == 0).then(|| vec![([0; 12], frame.to_vec())]);
    }
    let (start, offset) = (field(header, 6), field(header, 8));
    let (begin, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if !has(from, VIRTIO_NET_F_CSUM) || begin < 14 || at + 2 > frame.len() {
        return None;
    }
    let mut partial = [0; 12];
    partial[0] = NEEDS_CSUM;
    partial[6..10].copy_from_slice(&header[6..10]);
    let partial_wanted = has(to, VIRTIO_NET_F_GUEST_CSUM);
    let single = || {
        if partial_wanted {
            return vec![(partial, frame.to_vec())];
        }
        let mut whole = frame.to_vec();
        let sum = checksum(&frame[begin..]);
        whole[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        vec![([0; 12], whole)]
    };
    if kind == 0 {
        return Some(single());
    }

    let parsed = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let ecn = kind & ECN != 0;
    let version = match parsed.net.as_ref()? {
        NetHeaders::Ipv4(ip, extensions) => {
            let plain = !ip.is_fragmenting_payload() && extensions.is_empty();
            plain.then_some(4)?
        }
        NetHeaders::Ipv6(_, extensions) => {
            (extensions.fragment.is_none() && extensions.auth.is_none()).then_some(6)?
        }
        NetHeaders::Arp(_) => return None,
    };
    let (is_tcp, host, guest, field_offset) = match (parsed.transport.as_ref()?, version) {
        (TransportHeader::Tcp(_), 4) => (true, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4, 16),
        (TransportHeader::Tcp(_), _) => (true, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6, 16),
        (TransportHeader::Udp(_), 4) => (false, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, 6),
        (TransportHeader::Udp(_), _) => (false, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO6, 6),
        _ => return None,
    };
    let right_kind = match kind & !ECN {
        TCP4 => is_tcp && version == 4,
        TCP6 => is_tcp && version == 6,
        UDP => !is_tcp && !ecn,
        _ => false,
    };
    let payload = parsed.payload.slice();
    let headers = frame.len() - payload.len();
    let transport = headers - parsed.transport.as_ref()?.header_len();
    let size = usize::from(field(header, 4));
    if !right_kind
        || !has(from, host)
        || ecn && !has(from, VIRTIO_NET_F_HOST_ECN)
        || (begin, offset) != (transport, field_offset)
        || size == 0
        || payload.is_empty()
        || headers > 256
        || usize::from(field(header, 2)) > frame.len()
    {
        return None;
    }
    let count = payload.len().div_ceil(size);
    if count > if is_tcp { 4096 } else { 128 } {
        return None;
    }
    if count == 1 {
        return Some(single());
    }
    if has(to, guest) && partial_wanted && (!ecn || has(to, VIRTIO_NET_F_GUEST_ECN)) {
        let mut whole = partial;
        whole[1] = kind;
        whole[2..4].copy_from_slice(&(headers as u16).to_le_bytes());
        whole[4..6].copy_from_slice(&header[4..6]);
        return Some(vec![(whole, frame.to_vec())]);
    }
    let segments = payload.chunks(size).enumerate().map(|(n, data)| {
        let bytes = segment(
            frame,
            &parsed,
            n,
            n * size,
            data,
            n + 1 == count,
            ecn,
            !partial_wanted,
        );
        (if partial_wanted { partial } else { [0; 12] }, bytes)
    });
    Some(segments.collect())
}

/// Segment `n`, whose data begins `passed` bytes into the payload.
#[expect(clippy::too_many_arguments, reason = "the plainest way to say it")]
fn segment(
    frame: &[u8],
    parsed: &PacketHeaders<'_>,
    n: usize,
    passed: usize,
    data: &[u8],
    last: bool,
    ecn: bool,
    complete: bool,
) -> Vec<u8> {
    let mut transport = parsed.transport.clone();
    let l4_len = transport.as_ref().map_or(0, TransportHeader::header_len) + data.len();
    match &mut transport {
        Some(TransportHeader::Tcp(tcp)) => {
            tcp.sequence_number = tcp.sequence_number.wrapping_add(passed as u32);
            tcp.fin &= last;
            tcp.psh &= last;
            tcp.cwr &= !ecn || n == 0;
        }
        Some(TransportHeader::Udp(udp)) => udp.length = l4_len as u16,
        _ => {}
    }
    let mut bytes = Vec::new();
    let ethernet = 14 + 4 * parsed.link_exts.len();
    bytes.extend_from_slice(&frame[..ethernet]);
    let (mut source, mut destination) = (Vec::new(), Vec::new());
    match &parsed.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            let mut ip = ip.clone();
            ip.total_len = (ip.header_len() + l4_len) as u16;
            ip.identification = ip.identification.wrapping_add(n as u16);
            ip.header_checksum = ip.calc_header_checksum();
            // The bit that must be zero is not kept, so no test sets it.
            bytes.extend_from_slice(&ip.to_bytes());
            source.extend(ip.source);
            destination.extend(ip.destination);
        }
        Some(NetHeaders::Ipv6(ip, extensions)) => {
            let mut ip = ip.clone();
            let extensions_len = extensions.header_len();
            ip.payload_length = (extensions_len + l4_len) as u16;
            bytes.extend_from_slice(&ip.to_bytes());
            let at = ethernet + 40;
            bytes.extend_from_slice(&frame[at..at + extensions_len]);
            source.extend(ip.source);
            destination.extend(ip.destination);
        }
        _ => {}
    }
    let (v4, v6) = (source.len() == 4, destination.len() == 16);
    let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).unwrap_or_default();
    let address6 = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).unwrap_or_default();
    match transport {
        Some(TransportHeader::Tcp(mut tcp)) => {
            let sum = if v4 {
                tcp.calc_checksum_ipv4_raw(address(&source), address(&destination), data)
            } else {
                tcp.calc_checksum_ipv6_raw(address6(&source), address6(&destination), data)
            };
            tcp.checksum = match sum {
                Ok(sum) if complete => sum,
                _ => pseudo(&source, &destination, 6, l4_len),
            };
            if complete && tcp.checksum == 0 {
                tcp.checksum = 0xffff;
            }
            bytes.extend_from_slice(&tcp.to_bytes());
        }
        Some(TransportHeader::Udp(mut udp)) => {
            let sum = if v6 {
                udp.calc_checksum_ipv6_raw(address6(&source), address6(&destination), data)
            } else {
                udp.calc_checksum_ipv4_raw(address(&source), address(&destination), data)
            };
            udp.checksum = match sum {
                Ok(sum) if complete => sum,
                _ => pseudo(&source, &destination, 17, l4_len),
            };
            bytes.extend_from_slice(&udp.to_bytes());
        }
        _ => {}
    }
    bytes.extend_from_slice(data);
    bytes
}

/// The sum of a pseudo-header, as a sender leaves it in the field of a checksum that others complete.
pub fn pseudo(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> u16 {
    let mut bytes = [source, destination].concat();
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    sum(&bytes)
}

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum; never 0, as UDP demands.
pub fn checksum(bytes: &[u8]) -> u16 {
    match !sum(bytes) {
        0 => 0xffff,
        sum => sum,
    }
}
