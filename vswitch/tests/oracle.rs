//! The switch against the reference back-end: what is sent through both comes out equal.

mod common;
#[path = "common/packet.rs"]
mod packet;

use std::path::PathBuf;

use common::driver::{Guest, Header, Shape};
use common::frontend::Connection;
use common::lab::{Running, pair};
use common::{eventually, frame, mac};
use packet::{ECN, Packet, packets};
use proptest::prelude::*;
use vswitch::port::features::{
    CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, HOST_ECN, HOST_TSO4,
    HOST_TSO6, HOST_USO, OFFLOADS,
};

/// A back-end with two ports.
struct BackEnd {
    sockets: [PathBuf; 2],
    /// What it lives in.
    lab: Result<Running, tempfile::TempDir>,
}

impl BackEnd {
    fn switch() -> Self {
        let lab = pair().run();
        Self {
            sockets: ["a.eth0", "b.eth0"].map(|name| lab.socket(name)),
            lab: Ok(lab),
        }
    }

    /// Its threads end with the test program.
    fn oracle() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets = ["a", "b"].map(|name| dir.path().join(name));
        oracle::serve(sockets.clone()).unwrap();
        Self {
            sockets,
            lab: Err(dir),
        }
    }

    /// Two guests, connected.
    fn guests(&self, shapes: [Shape; 2]) -> [(Guest, Connection); 2] {
        let mut shapes = shapes.into_iter();
        let mut guests = self.sockets.each_ref().map(|socket| {
            let shape = shapes.next().unwrap();
            let guest = Guest::new(shape);
            let connection = Connection::start(socket, &guest);
            (guest, connection)
        });
        let [(a, _), (b, _)] = &mut guests;
        let hello = frame(mac(2), mac(1), 60, 0);
        let mut tries = 0;
        eventually("the wire", || {
            if tries % 100 == 0 {
                a.send(&hello);
            }
            tries += 1;
            b.receive().is_some()
        });
        guests
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    (any::<bool>(), any::<bool>()).prop_map(|(event_idx, mergeable)| Shape {
        event_idx,
        mergeable,
        ..Shape::default()
    })
}

/// With some of the offloads, mostly many. Without mergeable buffers, who takes superframes posts buffers for them.
fn offloading() -> impl Strategy<Value = Shape> {
    let features = prop_oneof![
        3 => Just(u64::MAX),
        1 => any::<u64>(),
        1 => Just(!GUEST_CSUM),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a | b)
    ];
    (shape(), features).prop_map(|(shape, features)| {
        let large = !shape.mergeable;
        Shape {
            size: if large { 128 } else { 256 },
            rx_buffer: if large { 65_600 } else { shape.rx_buffer },
            offloads: features & OFFLOADS,
            ..shape
        }
    })
}

/// A packet with what is asked for it, and the buffers it is sent in.
#[derive(Debug, Clone)]
struct Sent {
    packet: Packet,
    size: u16,
    /// A field of the header, and what is written there that does not belong there.
    wrong: Option<(usize, u8)>,
    pieces: Vec<usize>,
    indirect: usize,
}

impl Sent {
    fn build(&self) -> (Header, Vec<u8>) {
        let built = self.packet.build();
        // No more segments than there are buffers.
        let size = self.size.max((self.packet.payload / 100 + 1) as u16);
        let ecn = if self.packet.flags & 0x80 != 0 && self.packet.tcp {
            ECN
        } else {
            0
        };
        let mut header = built.header(self.packet.gso_type() | ecn, size);
        match self.wrong {
            // Any other size is right, but may need more buffers than there are.
            Some((4 | 5, _)) => header[4..6].fill(0),
            Some((at, value)) => header[at] = value,
            None => {}
        }
        (header, built.frame)
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let value = prop_oneof![0u8..8, any::<u8>()];
    let pieces = prop::collection::vec(prop_oneof![0usize..100, 0usize..9000], 0..6);
    (
        packets(64_000),
        1u16..9000,
        prop::option::weighted(0.2, (0usize..10, value)),
        pieces,
        0usize..4,
    )
        .prop_map(|(packet, size, wrong, pieces, indirect)| Sent {
            packet,
            size,
            wrong,
            pieces,
            indirect,
        })
}

/// Everything that comes out at `b` of what is sent at `a`, up to a last plain frame.
fn through(back_end: &BackEnd, shapes: [Shape; 2], all: &[Sent]) -> Vec<Vec<(Header, Vec<u8>)>> {
    let [(mut a, _ca), (mut b, _cb)] = back_end.guests(shapes);
    let end = frame(mac(2), mac(1), 60, u32::MAX);
    let one = |sent: &Sent| {
        let (header, bytes) = sent.build();
        a.queue_chain(header, &bytes, &sent.pieces, sent.indirect);
        a.send(&end);
        let mut got = Vec::new();
        eventually("the end", || {
            got.extend(b.receive_with_headers());
            got.pop_if(|(_, frame)| *frame == end).is_some()
        });
        // Left over from connecting.
        got.retain(|(_, f)| f[12..18] != [0x88, 0xb5, 0, 0, 0, 0]);
        got
    };
    all.iter().map(one).collect()
}

/// Every pair of sender and receiver, through real ports: exactly what the reference makes of it, each byte copied once.
#[test]
fn every_pair() {
    let sets = [
        0,
        CSUM | GUEST_CSUM,
        CSUM | GUEST_CSUM | HOST_TSO4 | GUEST_TSO4,
        CSUM | GUEST_CSUM | HOST_TSO6 | GUEST_TSO6,
        CSUM | GUEST_CSUM | HOST_USO | GUEST_USO4,
        OFFLOADS & !(HOST_ECN | GUEST_ECN),
        OFFLOADS & !GUEST_CSUM,
        OFFLOADS,
    ];
    let packet = |v6, tcp, flags, payload| Sent {
        packet: Packet {
            v6,
            tcp,
            tags: 0,
            options: [0, 3],
            flags,
            payload,
            seed: 1,
        },
        size: 1400,
        wrong: None,
        pieces: vec![12],
        indirect: 0,
    };
    let all = [
        packet(false, true, 0x18, 60_000),
        packet(true, true, 0x18, 60_000),
        packet(false, true, 0x98, 20_000),
        packet(false, false, 0, 20_000),
        packet(true, false, 0, 20_000),
        packet(false, true, 0x18, 1000),
    ];
    for from in sets {
        for to in sets {
            let lab = pair().run();
            let shapes = [from, to].map(|offloads| Shape {
                offloads,
                ..Shape::default()
            });
            let back_end = BackEnd {
                sockets: ["a.eth0", "b.eth0"].map(|name| lab.socket(name)),
                lab: Ok(lab),
            };
            let got = through(&back_end, shapes, &all);
            for (sent, got) in all.iter().zip(got) {
                let (header, frame) = sent.build();
                let right = oracle::offload::deliver(from, to, header, &frame);
                assert!(got == right, "{from:#x} > {to:#x}: {sent:?}");
                // One that may not ask for this sends nothing.
                let may = from & CSUM != 0;
                assert!(may || got.is_empty());
            }
            let lab = back_end.lab.as_ref().unwrap();
            let d = lab.direction("a.eth0", "b.eth0");
            assert_eq!((d.bytes_copied, d.out_frames), (d.out_bytes, d.in_frames));
            assert_eq!((d.pool_copies, d.drops.total()), (0, 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn frames_come_out_equal(shape in shape(), lengths in prop::collection::vec(18usize..2000, 1..100)) {
        let frames: Vec<_> = (1..).zip(lengths).map(|(tag, len)| frame(mac(2), mac(1), len, tag)).collect();
        for back_end in [BackEnd::switch(), BackEnd::oracle()] {
            let [(mut a, _ca), (mut b, _cb)] = back_end.guests([shape; 2]);
            for f in &frames {
                assert!(a.queue(f));
            }
            a.tx.publish();
            let mut got = Vec::new();
            eventually("the frames", || {
                got.extend(b.receive_all());
                got.last() == frames.last()
            });
            got.retain(|f| f[14..18] != [0; 4]);
            prop_assert_eq!(&got, &frames);
        }
    }

    #[test]
    fn offloads_come_out_equal(a in offloading(), b in offloading(), all in prop::collection::vec(sent(), 1..10)) {
        let [switch, oracle] = [BackEnd::switch(), BackEnd::oracle()]
            .map(|back_end| through(&back_end, [a, b], &all));
        for (sent, (switch, oracle)) in all.iter().zip(switch.into_iter().zip(oracle)) {
            prop_assert_eq!(switch.len(), oracle.len(), "{:?}", sent);
            for (n, (switch, oracle)) in switch.iter().zip(&oracle).enumerate() {
                prop_assert_eq!(switch.0, oracle.0, "header of frame {} of {:?}", n, sent);
                let differs = switch.1.iter().zip(&oracle.1).position(|(x, y)| x != y);
                prop_assert_eq!(differs, None, "frame {} of {:?}", n, sent);
                prop_assert_eq!(switch.1.len(), oracle.1.len(), "frame {} of {:?}", n, sent);
            }
        }
    }
}
