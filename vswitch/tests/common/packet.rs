//! Packets for offloads.
#![allow(dead_code, reason = "each test program uses its own part of it")]

use oracle::offload::pseudo;
use proptest::prelude::*;

use crate::common::driver::Header;

/// How a packet is made.
#[derive(Debug, Clone)]
pub struct Packet {
    pub v6: bool,
    pub tcp: bool,
    /// VLAN tags in front.
    pub tags: usize,
    /// Words of IPv4 or TCP options; of 8 bytes of an IPv6 extension header.
    pub options: [usize; 2],
    pub flags: u8,
    pub payload: usize,
    pub seed: u32,
}

/// A frame and where its headers are.
#[derive(Debug, Clone)]
pub struct Built {
    pub frame: Vec<u8>,
    pub network: usize,
    pub transport: usize,
    pub headers: usize,
    /// Where the checksum is, behind `transport`.
    pub checksum: usize,
}

pub const TCP4: u8 = 1;
pub const TCP6: u8 = 4;
pub const USO: u8 = 5;
pub const ECN: u8 = 0x80;

impl Packet {
    pub fn gso_type(&self) -> u8 {
        match (self.tcp, self.v6) {
            (true, false) => TCP4,
            (true, true) => TCP6,
            (false, _) => USO,
        }
    }

    /// With the sum of the pseudo-header in the place of the checksum.
    pub fn build(&self) -> Built {
        let mut x = self.seed | 1;
        let mut random = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for n in 0..self.tags {
            frame.extend(if n + 1 < self.tags {
                [0x88, 0xa8]
            } else {
                [0x81, 0]
            });
            frame.extend([random(), random()]);
        }
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        let network = frame.len();
        let l4 = if self.tcp {
            20 + 4 * self.options[1]
        } else {
            8
        };
        let protocol = if self.tcp { 6 } else { 17 };
        let addresses: Vec<u8>;
        if self.v6 {
            let extension = 8 * self.options[0].min(3);
            let len = (extension + l4 + self.payload) as u16;
            frame.extend([0x60, random(), random(), random()]);
            frame.extend(len.to_be_bytes());
            frame.extend([if extension > 0 { 60 } else { protocol }, 64]);
            addresses = (0..32).map(|_| random()).collect();
            frame.extend(&addresses);
            if extension > 0 {
                // Destination options: padding.
                frame.extend([
                    protocol,
                    (extension / 8 - 1) as u8,
                    1,
                    (extension - 4) as u8,
                ]);
                frame.extend(std::iter::repeat_n(0, extension - 4));
            }
        } else {
            let header = 20 + 4 * self.options[0];
            let len = (header + l4 + self.payload) as u16;
            frame.extend([0x40 | (header / 4) as u8, random()]);
            frame.extend(len.to_be_bytes());
            frame.extend([random(), random(), 0x40, 0, 64, protocol, 0, 0]);
            addresses = (0..8).map(|_| random()).collect();
            frame.extend(&addresses);
            frame.extend(std::iter::repeat_n(1, header - 20));
            let sum = oracle::offload::checksum(&frame[network..]);
            frame[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let transport = frame.len();
        let (source, destination) = addresses.split_at(addresses.len() / 2);
        let sum = pseudo(source, destination, protocol, l4 + self.payload).to_be_bytes();
        if self.tcp {
            frame.extend([0x12, 0x34, 0, 80]);
            frame.extend((0..8).map(|_| random()));
            frame.extend([
                ((l4 / 4) << 4) as u8,
                self.flags,
                1,
                2,
                sum[0],
                sum[1],
                0,
                0,
            ]);
            frame.extend(std::iter::repeat_n(1, l4 - 20));
        } else {
            frame.extend([0x12, 0x34, 0, 80]);
            frame.extend(((l4 + self.payload) as u16).to_be_bytes());
            frame.extend(sum);
        }
        let headers = frame.len();
        frame.extend((0..self.payload).map(|_| random()));
        Built {
            frame,
            network,
            transport,
            headers,
            checksum: if self.tcp { 16 } else { 6 },
        }
    }
}

impl Built {
    /// A header that asks for the checksum and, with a size, to be cut.
    pub fn header(&self, gso_type: u8, size: u16) -> Header {
        let mut header = [0; 12];
        header[0] = 1;
        header[1] = gso_type;
        header[2..4].copy_from_slice(&(self.headers as u16).to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&(self.transport as u16).to_le_bytes());
        header[8..10].copy_from_slice(&(self.checksum as u16).to_le_bytes());
        header
    }
}

/// Any packet of up to `payload` bytes of payload.
pub fn packets(payload: usize) -> impl Strategy<Value = Packet> {
    let payload = prop_oneof![0usize..100, 1usize..payload];
    (
        any::<[bool; 2]>(),
        0usize..3,
        [0usize..11, 0usize..11],
        any::<u8>(),
        payload,
        any::<u32>(),
    )
        .prop_map(|([v6, tcp], tags, options, flags, payload, seed)| Packet {
            v6,
            tcp,
            tags,
            options,
            flags,
            payload,
            seed,
        })
}
