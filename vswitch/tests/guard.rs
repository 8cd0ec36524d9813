//! What an interface may send: no frame longer than its MTU, and if it is locked none in another's name.

mod common;
#[path = "common/packet.rs"]
mod packet;

use std::path::Path;

use common::driver::Shape;
use common::virtual_lab::VirtualLab;
use common::{BROADCAST, frame, mac};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use jail::attempt::held;
use packet::Packet;
use proptest::prelude::*;
use topology::model::Topology;
use vm_memory::{Bytes, GuestAddress};
use vswitch::counters::Drops;
use vswitch::port::features;

const MINE: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 2];
const MINE6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const OTHER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// What the interface makes of its MAC address.
const LOCAL6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 1];
const ALL6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const NOBODY6: [u8; 16] = [0; 16];

/// Two hosts; `attributes` of the first one's interface, `link` of the link between them.
fn topology(attributes: &str, link: &str) -> Topology {
    let text = format!(
        r#"{{"name": "lab", "nodes": {{
            "a": {{"kind": "host", "interfaces": {{"eth0": {{"mac": "02:00:00:00:00:01",
                "addresses": ["10.0.0.1/24", "fd00::1/64"]{attributes}}}}}}},
            "b": {{"kind": "host", "interfaces": {{"eth0": {{"mtu": 65535}}}}}}, "s": {{"kind": "switch"}}}},
            "links": [{link}]}}"#
    );
    let loaded = Topology::parse(&text, Path::new("lab.json"));
    loaded.unwrap_or_else(|report| panic!("{report}")).topology
}

const DIRECT: &str = r#"{"endpoints": ["a:eth0", "b:eth0"]}"#;
/// All ways of a frame: straight, with a delay, with a queue, over a switch.
const LINKS: [&str; 4] = [
    DIRECT,
    r#"{"endpoints": ["a:eth0", "b:eth0"], "delay": "1ms"}"#,
    r#"{"endpoints": ["a:eth0", "b:eth0"], "rate": "1Gbit", "queue": {"kind": "fq_codel"}}"#,
    r#"{"endpoints": ["a:eth0", "s"]}, {"endpoints": ["s", "b:eth0"]}"#,
];

fn lab(attributes: &str, link: &str) -> VirtualLab {
    VirtualLab::new(&topology(attributes, link), Shape::default())
}

/// What arrives of what was sent.
fn arrives(lab: &mut VirtualLab) -> Vec<Vec<u8>> {
    let got = lab.collect("b.eth0", 10_000_000);
    got.into_iter().map(|(_, frame)| frame).collect()
}

/// Of the direction that leads away from the first host.
fn drops(lab: &VirtualLab) -> Drops {
    let direction = lab.directions().into_iter().find(|d| d.from == "a.eth0");
    direction.unwrap().drops
}

fn own(tag: u32) -> Vec<u8> {
    frame(mac(2), mac(1), 500, tag)
}

#[test]
fn a_frame_that_the_mtu_does_not_allow_is_dropped() {
    for link in LINKS {
        let mut lab = lab(r#", "mtu": 1400"#, link);
        // With room for two tags.
        let longest = frame(mac(2), mac(1), 1422, 1);
        lab.send("a.eth0", &longest);
        lab.send("a.eth0", &frame(mac(2), mac(1), 1423, 2));
        lab.send("a.eth0", &own(3));
        assert!(arrives(&mut lab) == [longest, own(3)], "{link}");
        assert_eq!(drops(&lab).mtu, 1, "{link}");
        assert_eq!(lab.guest("a.eth0").tx.used_index(), 3, "all are completed");
    }
}

#[test]
fn of_a_superframe_the_segments_count() {
    let shape = Shape {
        offloads: features::CSUM | features::HOST_TSO4,
        ..Shape::default()
    };
    for link in LINKS {
        let mut lab = VirtualLab::new(&topology(r#", "mtu": 1400"#, link), shape);
        let packet = Packet {
            v6: false,
            tcp: true,
            tags: 0,
            options: [0, 0],
            flags: 0x10,
            payload: 6000,
            seed: 1,
        };
        let built = packet.build();
        let fits = 1422 - built.headers as u16;
        for size in [fits, fits + 1] {
            let header = built.header(packet.gso_type(), size);
            lab.guest("a.eth0")
                .queue_chain(header, &built.frame, &[], 0);
            lab.kick("a.eth0");
        }
        let bytes: usize = arrives(&mut lab)
            .iter()
            .map(|frame| frame.len() - built.headers)
            .sum();
        assert_eq!(bytes, 6000, "{link}");
        let segments = 6000_u64.div_ceil(u64::from(fits) + 1);
        assert_eq!(drops(&lab).mtu, segments, "{link}");
    }
}

#[test]
fn a_locked_interface_sends_from_its_own_mac_address() {
    for link in LINKS {
        for lock in ["none", "mac", "address"] {
            let mut lab = lab(&format!(r#", "lock": "{lock}""#), link);
            lab.send("a.eth0", &own(1));
            lab.send("a.eth0", &frame(mac(2), mac(3), 500, 2));
            lab.send("a.eth0", &frame(BROADCAST, mac(1), 14, 3));
            let got = arrives(&mut lab).len();
            let passed = match lock {
                "none" => 3,
                "mac" => 2,
                // These are no IP packets.
                _ => 0,
            };
            assert_eq!(
                (got, drops(&lab).lock),
                (passed, 3 - passed as u64),
                "{lock}: {link}"
            );
            assert_eq!(lab.guest("a.eth0").tx.used_index(), 3, "all are completed");
            assert!(lab.engine.is_empty());
        }
    }
}

/// A frame and its tags.
fn tagged(frame: &[u8], tags: usize) -> Vec<u8> {
    let tags = [0x81, 0, 0, 5].repeat(tags);
    [&frame[..12], &tags, &frame[12..]].concat()
}

fn v4(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(1), mac(2))
        .ipv4(from, to, 64)
        .udp(68, 67)
        .write(&mut bytes, &[1, 2, 3])
        .unwrap();
    bytes
}

fn v6(from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(1), mac(2))
        .ipv6(from, to, 64)
        .tcp(1, 2, 3, 4)
        .write(&mut bytes, &[1, 2, 3])
        .unwrap();
    bytes
}

/// A neighbour-discovery message about `target`, behind `options` of hop-by-hop options.
fn discovery(kind: u8, target: [u8; 16], options: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for n in 1..=options {
        let next = if n == options { 58 } else { 0 };
        payload.extend([next, 1]);
        payload.extend([1, 12].iter().chain(&[0; 12]));
    }
    payload.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend(target);
    let mut bytes = [&mac(2)[..], &mac(1), &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([if options > 0 { 0 } else { 58 }, 255]);
    bytes.extend(MINE6.iter().chain(&OTHER6));
    bytes.extend(payload);
    bytes
}

fn arp(hardware: [u8; 6], protocol: [u8; 4]) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REPLY,
        &hardware,
        &protocol,
        &mac(2),
        &OTHER,
    );
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(1), BROADCAST)
        .arp(packet.unwrap())
        .write(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn and_from_its_own_addresses() {
    let mut other_arp = arp(mac(1), MINE);
    other_arp[18] = 8;
    let mut short = v4(MINE, OTHER);
    short.truncate(30);
    let mut wrong_version = v4(MINE, OTHER);
    wrong_version[14] = 0x65;
    let cases = [
        ("IPv4", v4(MINE, OTHER), true),
        ("another's IPv4", v4(OTHER, MINE), false),
        ("DHCP", v4([0; 4], [255; 4]), true),
        ("from nobody", v4([0; 4], OTHER), false),
        ("IPv4 cut off", short, false),
        ("IPv4 that is none", wrong_version, false),
        ("IPv6", v6(MINE6, OTHER6), true),
        ("another's IPv6", v6(OTHER6, MINE6), false),
        ("link-local", v6(LOCAL6, OTHER6), true),
        ("from nobody to all", v6(NOBODY6, ALL6), true),
        ("from nobody to one", v6(NOBODY6, OTHER6), false),
        ("ARP", arp(mac(1), MINE), true),
        ("ARP probe", arp(mac(1), [0; 4]), true),
        ("ARP of another's address", arp(mac(1), OTHER), false),
        ("ARP with another's MAC", arp(mac(2), MINE), false),
        ("ARP of another kind", other_arp, false),
        ("solicitation", discovery(135, OTHER6, 0), true),
        ("advertisement", discovery(136, MINE6, 0), true),
        ("another's advertisement", discovery(136, OTHER6, 0), false),
        ("the same behind options", discovery(136, OTHER6, 5), false),
        ("router advertisement", discovery(134, MINE6, 0), false),
        ("redirect", discovery(137, MINE6, 1), false),
        ("neither ARP nor IP", own(1), false),
    ];
    let mut tries = 0;
    for (what, sent, passes) in cases {
        for tags in 0..=3 {
            let mut lab = lab(r#", "lock": "address""#, DIRECT);
            let sent = tagged(&sent, tags);
            lab.send("a.eth0", &sent);
            // Nobody looks behind more than two tags, so nothing may be there.
            let expected: Vec<_> = std::iter::once(sent)
                .filter(|_| passes && tags < 3)
                .collect();
            assert!(arrives(&mut lab) == expected, "{what}, {tags} tags");
            tries += u64::from(!passes);
            assert_eq!(
                drops(&lab).lock as usize,
                1 - expected.len(),
                "{what}, {tags} tags"
            );
        }
    }
    held(
        "a guest sends in another's name on a locked interface: nothing leaves it",
        tries,
        None,
    );
}

/// What was looked at is what arrives, whatever the guest writes there meanwhile.
#[test]
fn a_frame_that_is_changed_afterwards_arrives_as_it_was() {
    for link in LINKS {
        let mut lab = lab(r#", "lock": "address""#, link);
        let sent = v4(MINE, OTHER);
        lab.send("a.eth0", &sent);
        let guest = lab.guest("a.eth0");
        for i in 0..guest.tx.size {
            let at = GuestAddress(guest.tx_buffer(i) + 12);
            guest.memory.write_slice(&[0xee; 60], at).unwrap();
        }
        assert!(arrives(&mut lab) == [sent], "{link}");
    }
}

#[test]
fn a_lock_is_put_on_and_taken_off_while_it_runs() {
    let foreign = |tag| frame(mac(2), mac(3), 500, tag);
    let mut lab = lab("", DIRECT);
    lab.send("a.eth0", &foreign(1));
    lab.rewire(&topology(r#", "lock": "mac", "mtu": 1400"#, DIRECT));
    lab.send("a.eth0", &foreign(2));
    lab.send("a.eth0", &frame(mac(2), mac(1), 1423, 3));
    lab.send("a.eth0", &own(4));
    lab.rewire(&topology("", DIRECT));
    lab.send("a.eth0", &foreign(5));
    assert!(arrives(&mut lab) == [foreign(1), own(4), foreign(5)]);
    assert_eq!((drops(&lab).lock, drops(&lab).mtu), (1, 1));
}

proptest! {
    /// Whatever a guest sends, what comes out of a locked interface has its MAC address, and nothing is lost without a count.
    #[test]
    fn any_bytes(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 14..200), 1..20), lock in "mac|address") {
        let mut lab = lab(&format!(r#", "lock": "{lock}""#), LINKS[1]);
        for (n, frame) in frames.iter().enumerate() {
            let mut frame = frame.clone();
            if n % 2 == 0 {
                frame[6..12].copy_from_slice(&mac(1));
            }
            lab.send("a.eth0", &frame);
        }
        let got = arrives(&mut lab);
        prop_assert!(got.iter().all(|frame| frame[6..12] == mac(1)));
        prop_assert_eq!(got.len() as u64 + drops(&lab).lock, frames.len() as u64);
    }
}
