//! The virtio-net header in front of every frame (virtio 1.2 §5.1.6).
//!
//! A header is read once, on a private copy, checked against its frame ([`crate::offload`]), and a new one is built for each
//! receiver; one guest's header bytes never reach another.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::offload::{Kind, Offload};
use crate::port::features::{
    CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, HOST_ECN,
    HOST_TSO4, HOST_TSO6, HOST_USO, VERSION_1,
};

/// The longest header the switch works with.
pub const MAX_LEN: usize = 12;

const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
const NUM_BUFFERS: usize = 10;

/// The shape of the header a guest and the switch agreed on, and what it may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    len: u8,
    features: u64,
}

/// What a header asks for, not yet compared with the frame behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Where the sum begins and, counted from there, where it goes.
    pub checksum: Option<(u16, u16)>,
    /// The frame is to be cut.
    pub cut: Option<Cut>,
}

/// How a frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// It carries TCP; without, UDP.
    pub tcp: bool,
    /// The version of IP, if the header says it.
    pub version: Option<u8>,
    /// CWR belongs to the first segment only.
    pub ecn: bool,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// What the guest believes the headers to be; no more than a hint.
    pub header_len: u16,
}

/// A header asks for what was not agreed on, or for nothing that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAgreed;

impl Layout {
    /// The layout that follows from the acknowledged virtio feature bits: `num_buffers` is there with `VERSION_1` or
    /// `MRG_RXBUF`.
    pub fn from_features(features: u64) -> Self {
        let long = features & (VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        Self {
            len: if long { 12 } else { 10 },
            features,
        }
    }

    /// Bytes before the frame.
    pub const fn bytes(self) -> usize {
        self.len as usize
    }

    const fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Whether the guest takes frames whose checksum is not complete.
    #[inline]
    pub const fn takes_partial(self) -> bool {
        self.has(GUEST_CSUM)
    }

    /// Whether the guest takes a frame as it is: not cut, if it is a superframe.
    #[inline]
    pub fn takes_whole(self, offload: &Offload) -> bool {
        let Some(gso) = &offload.gso else {
            return true;
        };
        let feature = match gso.kind {
            Kind::Tcp4 => GUEST_TSO4,
            Kind::Tcp6 => GUEST_TSO6,
            Kind::Udp4 => GUEST_USO4,
            Kind::Udp6 => GUEST_USO6,
        };
        // Virtio 1.2 §5.1.3.1: each of these depends on GUEST_CSUM.
        self.has(feature) && self.takes_partial() && (!gso.ecn || self.has(GUEST_ECN))
    }

    /// Whether a header, of whatever layout, asks for neither a checksum nor to be cut.
    #[inline]
    pub fn asks_for_nothing(header: &[u8; MAX_LEN]) -> bool {
        u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0
            && u32::from(header[GSO_TYPE]) == VIRTIO_NET_HDR_GSO_NONE
    }

    /// Reads the private copy of the header of a frame a guest sends. `num_buffers` has no meaning in this direction, nor have
    /// flags other than `NEEDS_CSUM`, nor fields of what is not asked for.
    #[inline]
    pub fn read(self, header: &[u8; MAX_LEN]) -> Result<Request, NotAgreed> {
        let needs_checksum = u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let gso = u32::from(header[GSO_TYPE]);
        if Self::asks_for_nothing(header) {
            return Ok(Request {
                checksum: None,
                cut: None,
            });
        }
        let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        // §5.1.6.2: who sets a GSO type has to set NEEDS_CSUM, too.
        if !needs_checksum || !self.has(CSUM) {
            return Err(NotAgreed);
        }
        let ecn = gso & VIRTIO_NET_HDR_GSO_ECN != 0;
        let (feature, tcp, version) = match gso & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE if !ecn => (CSUM, false, None),
            VIRTIO_NET_HDR_GSO_TCPV4 => (HOST_TSO4, true, Some(4)),
            VIRTIO_NET_HDR_GSO_TCPV6 => (HOST_TSO6, true, Some(6)),
            VIRTIO_NET_HDR_GSO_UDP_L4 if !ecn => (HOST_USO, false, None),
            _ => return Err(NotAgreed),
        };
        if !self.has(feature) || ecn && !self.has(HOST_ECN) {
            return Err(NotAgreed);
        }
        let cut = Cut {
            tcp,
            version,
            ecn,
            size: field(GSO_SIZE),
            header_len: field(HDR_LEN),
        };
        Ok(Request {
            checksum: Some((field(CSUM_START), field(CSUM_OFFSET))),
            cut: (gso != VIRTIO_NET_HDR_GSO_NONE).then_some(cut),
        })
    }

    /// The header for a receiver whose frame lies in `buffers` buffers and still needs what `offload` says; the first
    /// [`Layout::bytes`] bytes count.
    #[inline]
    pub fn receive(self, buffers: u16, offload: &Offload) -> [u8; MAX_LEN] {
        let mut header = [0; MAX_LEN];
        put(&mut header, NUM_BUFFERS, buffers);
        if let Some(checksum) = offload.checksum {
            header[FLAGS] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            put(&mut header, CSUM_START, checksum.start);
            put(&mut header, CSUM_OFFSET, checksum.offset);
        }
        if let Some(gso) = &offload.gso {
            let kind = match gso.kind {
                Kind::Tcp4 => VIRTIO_NET_HDR_GSO_TCPV4,
                Kind::Tcp6 => VIRTIO_NET_HDR_GSO_TCPV6,
                Kind::Udp4 | Kind::Udp6 => VIRTIO_NET_HDR_GSO_UDP_L4,
            };
            let ecn = if gso.ecn { VIRTIO_NET_HDR_GSO_ECN } else { 0 };
            header[GSO_TYPE] = (kind | ecn) as u8;
            put(&mut header, HDR_LEN, gso.headers);
            put(&mut header, GSO_SIZE, gso.size);
        }
        header
    }
}

fn put(header: &mut [u8; MAX_LEN], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{Checksum, Gso};

    const MRG: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

    #[test]
    fn length_follows_features() {
        assert_eq!(Layout::from_features(0).bytes(), 10);
        assert_eq!(Layout::from_features(MRG).bytes(), 12);
        assert_eq!(Layout::from_features(VERSION_1).bytes(), 12);
    }

    /// Flags, GSO type, and the features without which that is refused; `None` if it always is.
    const ASKED: [(u8, u8, Option<u64>); 17] = [
        (0, 0, Some(0)),
        (2, 0, Some(0)),
        (4, 0, Some(0)),
        (1, 0, Some(CSUM)),
        (3, 0, Some(CSUM)),
        (1, 1, Some(CSUM | HOST_TSO4)),
        (1, 4, Some(CSUM | HOST_TSO6)),
        (1, 5, Some(CSUM | HOST_USO)),
        (1, 0x81, Some(CSUM | HOST_TSO4 | HOST_ECN)),
        (1, 0x84, Some(CSUM | HOST_TSO6 | HOST_ECN)),
        (0, 1, None),
        (0, 5, None),
        (1, 0x80, None),
        (1, 0x85, None),
        (1, 2, None),
        (1, 3, None),
        (1, 0x41, None),
    ];

    #[test]
    fn what_was_not_agreed_on_is_refused() {
        let all = [CSUM, HOST_TSO4, HOST_TSO6, HOST_USO, HOST_ECN];
        for subset in 0..1u32 << all.len() {
            let chosen = (0..all.len()).filter(|i| subset >> i & 1 != 0);
            let features = chosen.fold(VERSION_1, |features, i| features | all[i]);
            let layout = Layout::from_features(features);
            for (flags, gso, needed) in ASKED {
                let mut header = [0xff; 12];
                (header[FLAGS], header[GSO_TYPE]) = (flags, gso);
                let allowed = needed.is_some_and(|needed| features & needed == needed);
                let read = layout.read(&header);
                assert_eq!(read.is_ok(), allowed, "{flags} {gso:#x} {features:#x}");
            }
        }
    }

    #[test]
    fn fields_are_read() {
        let layout = Layout::from_features(VERSION_1 | CSUM | HOST_TSO6 | HOST_ECN);
        let header = [1, 0x84, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let cut = Cut {
            tcp: true,
            version: Some(6),
            ecn: true,
            size: 0x0403,
            header_len: 0x0201,
        };
        let request = Request {
            checksum: Some((0x0605, 0x0807)),
            cut: Some(cut),
        };
        assert_eq!(layout.read(&header), Ok(request));
        let nothing = Request {
            checksum: None,
            cut: None,
        };
        assert_eq!(
            layout.read(&[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            Ok(nothing)
        );
    }

    #[test]
    fn receive_header() {
        let layout = Layout::from_features(VERSION_1);
        let h = layout.receive(0x0102, &Offload::default());
        assert_eq!(h, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        let mut offload = Offload {
            checksum: Some(Checksum {
                start: 0x0201,
                offset: 16,
            }),
            gso: None,
        };
        let h = layout.receive(1, &offload);
        assert_eq!(h, [1, 0, 0, 0, 0, 0, 1, 2, 16, 0, 1, 0]);
        offload.gso = Some(Gso {
            kind: Kind::Tcp4,
            ecn: true,
            size: 0x0304,
            network: 14,
            headers: 66,
        });
        let h = layout.receive(1, &offload);
        assert_eq!(h, [1, 0x81, 66, 0, 4, 3, 1, 2, 16, 0, 1, 0]);
    }

    #[test]
    fn who_takes_what() {
        let whole = |features, kind, ecn| {
            let gso = Gso {
                kind,
                ecn,
                size: 1000,
                network: 14,
                headers: 54,
            };
            let offload = Offload {
                checksum: None,
                gso: Some(gso),
            };
            Layout::from_features(features).takes_whole(&offload)
        };
        let kinds = [
            (Kind::Tcp4, GUEST_TSO4),
            (Kind::Tcp6, GUEST_TSO6),
            (Kind::Udp4, GUEST_USO4),
            (Kind::Udp6, GUEST_USO6),
        ];
        for (kind, feature) in kinds {
            assert!(whole(GUEST_CSUM | feature, kind, false));
            assert!(!whole(feature, kind, false), "depends on GUEST_CSUM");
            assert!(!whole(GUEST_CSUM, kind, false));
            let others = kinds.iter().map(|k| k.1).filter(|f| *f != feature);
            assert!(!whole(others.fold(GUEST_CSUM, |a, f| a | f), kind, false));
            assert!(!whole(GUEST_CSUM | feature, kind, true));
            assert!(whole(GUEST_CSUM | feature | GUEST_ECN, kind, true));
        }
    }
}
