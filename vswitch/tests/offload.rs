//! Superframes and checksums on their way through links, on a virtual clock.

mod common;
#[path = "common/packet.rs"]
mod packet;

use std::time::Duration;

use common::driver::{Header, Shape};
use common::lab::Lab;
use common::virtual_lab::VirtualLab;
use oracle::offload::deliver;
use packet::{Built, ECN, Packet, packets};
use proptest::prelude::*;
use topology::model::*;
use vm_memory::{Bytes, GuestAddress};
use vswitch::config::LinkChange;
use vswitch::port::features::{
    CSUM, GUEST_CSUM, HOST_TSO4, HOST_TSO6, HOST_USO, OFFLOADS, VERSION_1,
};

const MS: u64 = 1_000_000;
const SEND: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_USO;

fn shape(offloads: u64) -> Shape {
    Shape {
        offloads,
        ..Shape::default()
    }
}

fn pair(direction: &Direction, completion: Completion, sender: u64, receiver: u64) -> VirtualLab {
    let mut lab = Lab::with_seed(3);
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.link(a, b, direction, completion);
    let shapes = [("b.eth0", shape(receiver))];
    VirtualLab::with_shapes(&lab.topology(), shape(sender), &shapes)
}

fn tcp(payload: usize) -> Packet {
    Packet {
        v6: false,
        tcp: true,
        tags: 0,
        options: [0, 3],
        flags: 0x19,
        payload,
        seed: 7,
    }
}

/// What the reference makes of it for a receiver without offloads.
fn segments(header: Header, frame: &[u8]) -> Vec<Vec<u8>> {
    let all = deliver(VERSION_1 | OFFLOADS, VERSION_1, header, frame);
    all.into_iter().map(|(_, frame)| frame).collect()
}

fn superframe(packet: &Packet, size: u16) -> (Header, Built) {
    let built = packet.build();
    (built.header(packet.gso_type(), size), built)
}

fn send(lab: &mut VirtualLab, header: Header, frame: &[u8]) {
    lab.guest("a.eth0")
        .queue_chain(header, frame, &[12, 100, 3000], 0);
    lab.kick("a.eth0");
}

/// A megabit per second and 24 bytes of overhead: each segment ends when its own bits have been sent.
#[test]
fn each_segment_takes_its_time() {
    let direction = Direction {
        rate: Some(1_000_000),
        overhead: 24,
        delay: Duration::from_nanos(5),
        ..Direction::default()
    };
    for completion in [Completion::Network, Completion::Nic] {
        // The receiver would take it whole, but the link does not.
        let mut lab = pair(&direction, completion, SEND, OFFLOADS);
        let (header, built) = superframe(&tcp(10_000), 1448);
        send(&mut lab, header, &built.frame);
        let held = completion == Completion::Nic;
        assert_eq!(lab.guest("a.eth0").tx.used_index(), u16::from(!held));
        let mut at = 0;
        for n in 0..7 {
            let payload = if n == 6 { 10_000 - 6 * 1448 } else { 1448 };
            let bits = (built.headers as u64 + payload + 24) * 8;
            at += bits * 1000;
            let passed = lab.now.as_nanos() - 1_000_000_000;
            lab.pass(at + 4 - passed);
            assert!(lab.guest("b.eth0").receive_with_headers().is_empty());
            assert_eq!(
                lab.direction("a.eth0", "b.eth0").queued,
                (5u64).saturating_sub(n)
            );
            // The descriptor is completed with the last segment.
            let done = !held || n == 6;
            assert_eq!(lab.guest("a.eth0").tx.used_index(), u16::from(done));
            lab.pass(1);
            let got = lab.guest("b.eth0").receive_with_headers();
            assert_eq!(got.len(), 1);
            assert_eq!(got[0].1.len() as u64, built.headers as u64 + payload);
            assert_eq!(
                got[0].0[..2],
                [1, 0],
                "the checksum is left to a receiver that completes it"
            );
        }
        let d = lab.direction("a.eth0", "b.eth0");
        let bytes = 10_000 + 7 * built.headers as u64;
        assert_eq!((d.in_frames, d.out_frames), (7, 7));
        assert_eq!(
            (d.in_bytes, d.out_bytes, d.bytes_copied),
            (bytes, bytes, bytes)
        );
        assert!(lab.engine.is_empty());
    }
}

#[test]
fn segments_count_against_the_limit() {
    let mut direction = Direction {
        rate: Some(1_000_000),
        ..Direction::default()
    };
    direction.queue.limit = Limit::Packets(3);
    let mut lab = pair(&direction, Completion::Network, SEND, OFFLOADS);
    let (header, built) = superframe(&tcp(10_000), 1000);
    send(&mut lab, header, &built.frame);
    let d = lab.direction("a.eth0", "b.eth0");
    // One in transmission, three waiting.
    assert_eq!((d.in_frames, d.drops.queue, d.queued), (10, 6, 3));
    let got: Vec<_> = lab.collect_with_headers("b.eth0", 1000 * MS);
    let seq = |f: &[u8]| {
        u32::from_be_bytes(
            f[built.transport + 4..built.transport + 8]
                .try_into()
                .unwrap(),
        )
    };
    let first = seq(&built.frame);
    let passed: Vec<u32> = got
        .iter()
        .map(|(_, _, f)| seq(f).wrapping_sub(first))
        .collect();
    assert_eq!(passed, [0, 1000, 2000, 3000]);
}

/// Where nothing tells it from its segments it stays whole, is copied once and counts as its segments.
#[test]
fn whole_where_it_can_be() {
    for delay in [0, 3] {
        let direction = Direction {
            delay: Duration::from_millis(delay),
            ..Direction::default()
        };
        let mut lab = pair(&direction, Completion::Network, SEND, OFFLOADS);
        let (header, built) = superframe(&tcp(60_000), 1448);
        send(&mut lab, header, &built.frame);
        lab.pass(delay * MS);
        let got = lab.guest("b.eth0").receive_with_headers();
        assert_eq!(got, [(header, built.frame.clone())]);
        let d = lab.direction("a.eth0", "b.eth0");
        let bytes = 60_000 + 42 * built.headers as u64;
        assert_eq!((d.in_frames, d.in_bytes, d.out_frames), (42, bytes, 42));
        assert_eq!(
            (d.out_bytes, d.bytes_copied, d.pool_copies),
            (bytes, bytes, 0)
        );
    }
}

/// The header the receiver gets is made from what was found, not from what the sender wrote.
#[test]
fn headers_are_rebuilt() {
    let mut lab = pair(&Direction::default(), Completion::Network, SEND, OFFLOADS);
    let (mut header, built) = superframe(&tcp(5000), 1000);
    let right = header;
    header[0] = 0xff; // flags that mean nothing here
    header[2..4].copy_from_slice(&[0, 0]); // a wrong hint
    header[10..].copy_from_slice(&[9, 9]);
    send(&mut lab, header, &built.frame);
    let got = lab.guest("b.eth0").receive_with_headers();
    assert_eq!(got, [(right, built.frame)]);
}

/// A bit error after the sender's offload is found by the receiver, as on a wire: the checksum is complete before the bit is flipped.
#[test]
fn corrupted_frames_have_a_checksum() {
    for completion in [Completion::Network, Completion::Nic] {
        for rate in [None, Some(1_000_000_000)] {
            let direction = Direction {
                corrupt: 1.0,
                rate,
                ..Direction::default()
            };
            let mut lab = pair(&direction, completion, SEND, OFFLOADS);
            let (header, built) = superframe(&tcp(50_000), 1448);
            send(&mut lab, header, &built.frame);
            let got = lab.collect_with_headers("b.eth0", 10 * MS);
            let right = segments(header, &built.frame);
            assert_eq!(got.len(), right.len());
            for ((_, header, got), right) in got.iter().zip(&right) {
                assert_eq!(header, &[0; 12]);
                let flipped: u32 = got
                    .iter()
                    .zip(right)
                    .map(|(a, b)| (a ^ b).count_ones())
                    .sum();
                assert_eq!(flipped, 1);
            }
        }
    }
}

/// A guest that changes headers after they were checked gains nothing.
#[test]
fn headers_that_change_are_dropped() {
    let direction = Direction {
        rate: Some(1_000_000),
        overhead: 0,
        ..Direction::default()
    };
    let mut lab = pair(&direction, Completion::Nic, SEND, OFFLOADS);
    let (header, built) = superframe(&tcp(3000), 1000);
    send(&mut lab, header, &built.frame);
    lab.pass((built.headers as u64 + 1000) * 8000);
    let at = lab.guest("a.eth0").last_chain() + 12 + built.network as u64;
    // Longer options than there were.
    lab.guest("a.eth0")
        .memory
        .write_obj(0x4f_u8, GuestAddress(at))
        .unwrap();
    lab.pass(1000 * MS);
    assert_eq!(lab.guest("b.eth0").receive_with_headers().len(), 1);
    let d = lab.direction("a.eth0", "b.eth0");
    assert_eq!((d.in_frames, d.out_frames, d.drops.changed), (3, 1, 2));
    assert_eq!(lab.guest("a.eth0").tx.used_index(), 1);
    assert!(lab.engine.is_empty());
}

/// Hubs pass superframes on; each link and receiver behind them decides for itself.
#[test]
fn through_hubs() {
    let mut lab = Lab::with_seed(5);
    let machines = ["a", "b", "c", "d"].map(|n| lab.machine(n));
    let (x, y) = (lab.hub("x"), lab.hub("y"));
    let shaped = Direction {
        rate: Some(1_000_000_000),
        ..Direction::default()
    };
    let lossy = Direction {
        loss: Loss::Every(3),
        ..Direction::default()
    };
    lab.wire(machines[0], x);
    lab.wire(x, machines[1]);
    lab.link(x, y, &lossy, Completion::Network);
    lab.wire(y, machines[2]);
    lab.link(y, machines[3], &shaped, Completion::Network);
    let shapes = ["b", "d"].map(|n| (format!("{n}.eth0"), shape(OFFLOADS)));
    let shapes = shapes.each_ref().map(|(n, s)| (n.as_str(), *s));
    let mut lab = VirtualLab::with_shapes(&lab.topology(), shape(SEND), &shapes);
    let (header, built) = superframe(&tcp(10_000), 1000);
    send(&mut lab, header, &built.frame);
    assert_eq!(
        lab.guest("b.eth0").receive_with_headers(),
        [(header, built.frame.clone())]
    );
    let mut right = segments(header, &built.frame);
    let mut n = 0;
    right.retain(|_| {
        n += 1;
        n % 3 != 0
    });
    let got = lab.guest("c.eth0").receive_with_headers();
    assert_eq!(got.into_iter().map(|(_, f)| f).collect::<Vec<_>>(), right);
    assert_eq!(lab.collect_with_headers("d.eth0", MS).len(), 7);
    for d in lab.directions() {
        assert_eq!(
            d.in_frames,
            d.out_frames + d.drops.total(),
            "{} > {}",
            d.from,
            d.to
        );
        let copied = if d.to.contains('.') { d.out_bytes } else { 0 };
        // In front of the shaped link to a machine without order of arrival nothing is copied twice either.
        assert_eq!(d.bytes_copied, copied, "{} > {}", d.from, d.to);
    }
    assert!(lab.engine.is_empty());
}

/// A switch adds and removes tags; all that is known of a superframe moves with it, whole, cut, in the pool, and summed.
#[test]
fn tags_are_added_and_removed() {
    let shaped = Direction {
        rate: Some(1_000_000_000),
        ..Direction::default()
    };
    for (first, last) in [
        (Direction::default(), Direction::default()),
        (Direction::default(), shaped.clone()),
        (shaped, Direction::default()),
    ] {
        for receiver in [OFFLOADS, GUEST_CSUM, 0] {
            for tagged_sender in [false, true] {
                let port = |vlan| SwitchPort {
                    vlan: Some(vlan),
                    storm: None,
                };
                let trunk = PortVlan::Trunk {
                    allowed: vec![10..=10],
                    native: None,
                };
                let mut vlans = [PortVlan::Access(10), trunk];
                if tagged_sender {
                    vlans.reverse();
                }
                let node = SwitchNode {
                    ageing: Duration::from_mins(5),
                    table_limit: 64,
                    forward_reserved: false,
                    ports: vlans.map(port).into(),
                };
                let mut lab = Lab::with_seed(1);
                let (a, b) = (lab.machine("a"), lab.machine("b"));
                let switch = lab.switch_with("x", node);
                lab.link(a, switch, &first, Completion::Network);
                lab.link(b, switch, &last, Completion::Network);
                let shapes = [("b.eth0", shape(receiver))];
                let mut lab = VirtualLab::with_shapes(&lab.topology(), shape(SEND), &shapes);
                let (plain_header, plain) = superframe(&tcp(10_000), 1000);
                let mut tagged = plain.clone();
                tagged.frame.splice(12..12, [0x81, 0, 0, 10]);
                tagged.transport += 4;
                tagged.headers += 4;
                let tagged_header = tagged.header(1, 1000);
                let mut ends = [(plain_header, plain.frame), (tagged_header, tagged.frame)];
                if tagged_sender {
                    ends.reverse();
                }
                let [(header, sent), (expected, frame)] = ends;
                send(&mut lab, header, &sent);
                let got = lab.collect_with_headers("b.eth0", 10 * MS);
                let got: Vec<_> = got.into_iter().map(|(_, h, f)| (h, f)).collect();
                let mut right =
                    deliver(VERSION_1 | OFFLOADS, VERSION_1 | receiver, expected, &frame);
                if right.len() == 1 && (first.rate, last.rate) != (None, None) {
                    right = deliver(
                        VERSION_1 | OFFLOADS,
                        VERSION_1 | GUEST_CSUM,
                        expected,
                        &frame,
                    );
                }
                assert!(
                    got == right,
                    "{:?} {:?} {receiver:#x} {tagged_sender}",
                    first.rate,
                    last.rate
                );
                assert!(lab.engine.is_empty());
            }
        }
    }
}

/// Frames that wait in the receiver's buffers go back to the pool when the link begins to reorder, with the right checksum.
#[test]
fn a_change_keeps_checksums() {
    for receiver in [0, GUEST_CSUM] {
        let direction = Direction {
            rate: Some(1_000_000),
            ..Direction::default()
        };
        let mut lab = pair(&direction, Completion::Network, SEND, receiver);
        let (header, built) = superframe(&tcp(10_000), 1000);
        send(&mut lab, header, &built.frame);
        lab.pass(20 * MS);
        let reorder = Reorder {
            probability: 0.0,
            gap: 1,
        };
        let set = Patch {
            reorder: Some(Some(reorder)),
            ..Patch::default()
        };
        let change = LinkChange {
            lanes: [0, 1],
            set: [set.clone(), set],
        };
        lab.engine.change(&change, lab.now);
        let got = lab.collect_with_headers("b.eth0", 1000 * MS);
        let model = deliver(
            VERSION_1 | OFFLOADS,
            VERSION_1 | receiver,
            header,
            &built.frame,
        );
        let got: Vec<_> = got.into_iter().map(|(_, h, f)| (h, f)).collect();
        assert_eq!(got, model);
        assert!(lab.direction("a.eth0", "b.eth0").pool_copies > 0);
    }
}

fn direction() -> impl Strategy<Value = Direction> {
    let rate = prop::option::of(100_000u64..10_000_000_000);
    let chance = || prop_oneof![2 => Just(0.0), 1 => 0.0..0.5f64];
    let times = [0u64..3, 0u64..3];
    (
        rate,
        times,
        chance(),
        chance(),
        chance(),
        chance(),
        any::<bool>(),
    )
        .prop_map(
            |(rate, [delay, spread], loss, ber, duplicate, corrupt, reorder)| Direction {
                rate,
                delay: Duration::from_millis(delay),
                jitter: Jitter {
                    spread: Duration::from_millis(spread),
                    distribution: Distribution::Uniform,
                },
                reorder: reorder.then_some(Reorder {
                    probability: 0.3,
                    gap: 2,
                }),
                loss: Loss::Random(loss),
                ber: ber * 1e-4,
                duplicate,
                corrupt,
                ..Direction::default()
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// On any link a superframe meets the same fate at the same times as its segments sent one by one.
    #[test]
    fn the_same_as_its_segments(
        mut direction in direction(),
        nic: bool,
        packets in prop::collection::vec((packets(20_000), 200u16..1500), 1..3),
        limit in 1u32..40,
    ) {
        let completion = if nic { Completion::Nic } else { Completion::Network };
        // A guest that is held back between two segments cannot be told from one that is not.
        direction.queue.limit = Limit::Packets(if nic { 1000 } else { limit });
        let mut one = pair(&direction, completion, SEND | ECN_TOO, 0);
        let mut many = pair(&direction, completion, 0, 0);
        for (packet, size) in packets {
            let size = size.max(packet.payload.div_ceil(25) as u16).max(1);
            let (mut header, built) = superframe(&packet, size);
            if packet.tcp && packet.flags & 0x80 != 0 {
                header[1] |= ECN;
            }
            let right = segments(header, &built.frame);
            prop_assert_eq!(right.len(), packet.payload.div_ceil(size.into()).max(1) * usize::from(packet.payload > 0));
            send(&mut one, header, &built.frame);
            for frame in right {
                many.guest("a.eth0").queue_chain([0; 12], &frame, &[], 0);
            }
            many.kick("a.eth0");
        }
        let (one_got, many_got) = (one.collect("b.eth0", 5000 * MS), many.collect("b.eth0", 5000 * MS));
        prop_assert_eq!(one_got.len(), many_got.len());
        for (n, (one, many)) in one_got.iter().zip(&many_got).enumerate() {
            prop_assert_eq!(one.0, many.0, "time of {}", n);
            prop_assert_eq!(&one.1, &many.1, "frame {}", n);
        }
        let (one, many) = (one.direction("a.eth0", "b.eth0"), many.direction("a.eth0", "b.eth0"));
        prop_assert_eq!(format!("{one:?}"), format!("{many:?}"));
    }
}

const ECN_TOO: u64 = vswitch::port::features::HOST_ECN;
