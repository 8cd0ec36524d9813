//! Switches and hubs: VLANs, storms, loops, chains.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::driver::{Guest, Shape};
use common::frontend::Connection;
use common::lab::Lab;
use common::virtual_lab::VirtualLab;
use common::{BROADCAST, eventually, frame, mac};
use topology::model::{
    Codel, Completion, Direction, Discipline, PortVlan, Queue, SwitchNode, SwitchPort, Topology,
};
use topology::quantity::StormLimit;

const SECOND: u64 = 1_000_000_000;

fn ports(vlans: impl IntoIterator<Item = PortVlan>) -> SwitchNode {
    let port = |vlan| SwitchPort {
        vlan: Some(vlan),
        storm: None,
    };
    SwitchNode {
        ageing: Duration::from_mins(5),
        table_limit: 64,
        forward_reserved: false,
        ports: vlans.into_iter().map(port).collect(),
    }
}

fn trunk(allowed: &[u16], native: Option<u16>) -> PortVlan {
    PortVlan::Trunk {
        allowed: allowed.iter().map(|vlan| *vlan..=*vlan).collect(),
        native,
    }
}

fn access(vlan: u16) -> PortVlan {
    PortVlan::Access(vlan)
}

/// `frame` with these bytes between its addresses and its type.
fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

fn vid(vlan: u8) -> [u8; 4] {
    [0x81, 0, 0, vlan]
}

/// a and c on one switch, b and d on another, in VLANs 10 and 20; the trunk between them can be shaped, and e is on a trunk of its own.
fn two_switches(direction: &Direction) -> VirtualLab {
    let mut lab = Lab::default();
    let machines = ["a", "b", "c", "d", "e"].map(|name| lab.machine(name));
    let left = lab.switch_with(
        "left",
        ports([access(10), access(20), trunk(&[10, 20], None)]),
    );
    let both = trunk(&[10, 20], None);
    let right = ports([access(10), access(20), both, trunk(&[10, 20], Some(30))]);
    let right = lab.switch_with("right", right);
    // In the order of the ports.
    lab.wire(machines[0], left);
    lab.wire(machines[2], left);
    lab.wire(machines[1], right);
    lab.wire(machines[3], right);
    lab.link(left, right, direction, Completion::Network);
    lab.wire(right, machines[4]);
    VirtualLab::new(&lab.topology(), Shape::default())
}

fn received(lab: &mut VirtualLab) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for name in ["a", "b", "c", "d", "e"] {
        let frames = lab.guest(&format!("{name}.eth0")).receive_all();
        if !frames.is_empty() {
            all.insert(name.to_owned(), frames);
        }
    }
    all
}

fn got(expected: &[(&str, Vec<u8>)]) -> BTreeMap<String, Vec<Vec<u8>>> {
    let expected = expected.iter().cloned();
    expected.map(|(n, f)| (n.to_owned(), vec![f])).collect()
}

#[test]
fn vlans_over_a_trunk() {
    for direction in [
        Direction::default(),
        Direction {
            delay: Duration::from_millis(1),
            rate: Some(100_000_000),
            ..Direction::default()
        },
    ] {
        let mut lab = two_switches(&direction);
        let all = frame(BROADCAST, mac(1), 100, 1);
        lab.send("a.eth0", &all);
        lab.pass(SECOND);
        let seen = received(&mut lab);
        assert_eq!(
            seen,
            got(&[("b", all.clone()), ("e", tagged(&all, &vid(10)))])
        );
        let other = frame(BROADCAST, mac(3), 1514, 2);
        lab.send("c.eth0", &other);
        lab.pass(SECOND);
        let seen = received(&mut lab);
        assert_eq!(
            seen,
            got(&[("d", other.clone()), ("e", tagged(&other, &vid(20)))])
        );
        // The same address in two VLANs is two stations.
        lab.send("d.eth0", &frame(mac(3), mac(1), 60, 3));
        lab.pass(SECOND);
        assert_eq!(
            received(&mut lab),
            got(&[("c", frame(mac(3), mac(1), 60, 3))])
        );
        let back = frame(mac(1), mac(5), 60, 4);
        lab.send("e.eth0", &tagged(&back, &vid(10)));
        lab.pass(SECOND);
        assert_eq!(received(&mut lab), got(&[("a", back.clone())]));
        lab.send("e.eth0", &tagged(&back, &vid(20)));
        lab.pass(SECOND);
        assert_eq!(received(&mut lab), got(&[("d", back)]));
    }
}

/// Who gets a frame, with which tags.
type Expected<'a> = &'a [(&'a str, &'a [u8])];

/// Priority tags lose or keep their priority, tags inside are payload, and what does not belong on a port is dropped there.
#[test]
fn tags_of_other_kinds() {
    let mut lab = two_switches(&Direction::default());
    let f = frame(BROADCAST, mac(1), 100, 1);
    let cases: [(&str, &[u8], Expected<'_>); 8] = [
        (
            "a",
            &[0x81, 0, 0xa0, 0],
            &[("b", &[]), ("e", &[0x81, 0, 0xa0, 10])],
        ),
        ("a", &vid(10), &[]),
        ("a", &vid(20), &[]),
        (
            "a",
            &[0x88, 0xa8, 0, 20],
            &[
                ("b", &[0x88, 0xa8, 0, 20]),
                ("e", &[0x81, 0, 0, 10, 0x88, 0xa8, 0, 20]),
            ],
        ),
        (
            "e",
            &[0x81, 0, 0, 10, 0x81, 0, 0, 20],
            &[("a", &[0x81, 0, 0, 20]), ("b", &[0x81, 0, 0, 20])],
        ),
        ("e", &[0x81, 0, 0x60, 20], &[("c", &[]), ("d", &[])]),
        ("e", &vid(30), &[]),
        ("e", &[], &[]),
    ];
    for (from, tags, expected) in cases {
        lab.send(&format!("{from}.eth0"), &tagged(&f, tags));
        let expected: Vec<_> = expected.iter().map(|(n, t)| (*n, tagged(&f, t))).collect();
        assert_eq!(
            received(&mut lab),
            got(&expected),
            "{from} sends {tags:02x?}"
        );
    }
}

/// A guest that takes a frame in many small pieces, or a short one, is no problem for a tag.
#[test]
fn short_frames_have_no_tag() {
    let mut lab = two_switches(&Direction::default());
    for len in [14, 15] {
        let f = frame(BROADCAST, mac(1), len, 1);
        lab.send("a.eth0", &f);
        let seen = received(&mut lab);
        assert_eq!(seen, got(&[("b", f.clone()), ("e", tagged(&f, &vid(10)))]));
        // Half a tag is none.
        let mut half = f.clone();
        half[12..14].copy_from_slice(&[0x81, 0]);
        lab.send("a.eth0", &half);
        let seen = received(&mut lab);
        assert_eq!(
            seen,
            got(&[("b", half.clone()), ("e", tagged(&half, &vid(10)))])
        );
    }
}

/// However many switches, hubs and links a frame passes, it is copied once, tags or not.
#[test]
fn one_copy_through_a_chain() {
    for vlans in [false, true] {
        let mut lab = Lab::default();
        let (a, b) = (lab.machine("a"), lab.machine("b"));
        let switch = |lab: &mut Lab, name: &str, vlans: [PortVlan; 2], with: bool| {
            let mut node = ports(vlans);
            if !with {
                node.ports.clear();
            }
            lab.switch_with(name, node)
        };
        let one = switch(&mut lab, "one", [access(10), trunk(&[10], None)], vlans);
        let two = lab.hub("two");
        let three = switch(
            &mut lab,
            "three",
            [trunk(&[10], None), trunk(&[], Some(10))],
            vlans,
        );
        let four = switch(&mut lab, "four", [trunk(&[], Some(20)), access(20)], vlans);
        for (from, to) in [(a, one), (one, two), (two, three), (three, four), (four, b)] {
            lab.wire(from, to);
        }
        let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
        let mut bytes = 0;
        for (n, len) in [60, 300, 1514].into_iter().enumerate() {
            for (from, to, f) in [
                ("a.eth0", "b.eth0", frame(mac(2), mac(1), len, n as u32)),
                ("b.eth0", "a.eth0", frame(mac(1), mac(2), len, n as u32)),
            ] {
                lab.send(from, &f);
                assert_eq!(lab.receive(to), Some(f));
                bytes += len as u64;
            }
        }
        let copied: u64 = lab.directions().iter().map(|d| d.bytes_copied).sum();
        let pooled: u64 = lab.directions().iter().map(|d| d.pool_copies).sum();
        assert_eq!((copied, pooled), (bytes, 0), "VLANs: {vlans}");
        let between: Vec<u64> = ["one", "two", "three"]
            .into_iter()
            .zip(["two", "three", "four"])
            .map(|(from, to)| lab.direction(from, to).in_bytes)
            .collect();
        let tag = if vlans { 3 * 4 } else { 0 };
        assert_eq!(between, [bytes / 2 + tag, bytes / 2 + tag, bytes / 2]);
    }
}

/// A congestion mark finds its place behind a tag that comes or goes, and a flipped bit stays one flipped bit.
#[test]
fn marks_and_errors_of_a_trunk() {
    let codel = Direction {
        rate: Some(1_000_000),
        queue: Queue {
            discipline: Discipline::Codel(Codel {
                target: Duration::from_millis(1),
                interval: Duration::from_millis(10),
                ecn: true,
            }),
            ..Queue::default()
        },
        ..Direction::default()
    };
    let mut lab = two_switches(&codel);
    let mut f = frame(mac(2), mac(1), 1000, 0);
    let header = [
        0x08, 0x00, 0x45, 0x02, 0x03, 0xda, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    f[12..34].copy_from_slice(&header);
    let sum = |f: &[u8]| {
        let words = f[14..34].chunks(2);
        let sum: u32 = words
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        (sum & 0xffff) + (sum >> 16)
    };
    let right = !(sum(&f) as u16);
    f[24..26].copy_from_slice(&right.to_be_bytes());
    let mut marked = 0;
    for _ in 0..200 {
        lab.send("a.eth0", &f);
    }
    let mut arrived: Vec<_> = lab
        .collect("b.eth0", 10 * SECOND)
        .into_iter()
        .map(|(_, f)| f)
        .collect();
    // b does not answer, so that e gets every frame as well, with its tag.
    for mut with_tag in lab.guest("e.eth0").receive_all() {
        assert_eq!(with_tag.drain(12..16).as_slice(), vid(10));
        arrived.push(with_tag);
    }
    let count = arrived.len();
    for mut arrived in arrived {
        assert_eq!(sum(&arrived), 0xffff, "its checksum is right");
        if arrived[15] == 3 {
            marked += 1;
            arrived[15] = 2;
        }
        arrived[24..26].copy_from_slice(&right.to_be_bytes());
        assert_eq!(arrived, f);
    }
    assert_eq!(count, 2 * 200);
    assert!(marked > 0 && marked == 2 * lab.direction("left", "right").marked);

    let mut lab = two_switches(&Direction {
        corrupt: 1.0,
        ..Direction::default()
    });
    let (mut same, mut flipped) = (0, 0);
    for n in 0..2000 {
        let f = frame(mac(2), mac(1), 20, n);
        lab.send("a.eth0", &f);
        for arrived in lab.guest("b.eth0").receive_all() {
            assert_eq!(arrived.len(), f.len());
            let bits: u32 = f
                .iter()
                .zip(&arrived)
                .map(|(a, b)| (a ^ b).count_ones())
                .sum();
            match bits {
                0 => same += 1,
                1 => flipped += 1,
                _ => panic!("{bits} bits differ"),
            }
        }
        received(&mut lab);
    }
    // Of 24 bytes on the trunk, half a byte is a priority that access ports take off, with the rest of the tag the frame is lost.
    assert!((1500..1850).contains(&flipped), "{flipped}");
    assert!((10..100).contains(&same), "{same}");
}

/// What the file says about ageing and the table holds.
#[test]
fn ageing_and_table_limit_of_the_file() {
    let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}, "c": {"kind": "host"},
        "sw": {"kind": "switch", "ageing": "2s", "table-limit": 1}},
      "links": [{"endpoints": ["a:eth0", "sw"]}, {"endpoints": ["b:eth0", "sw"]}, {"endpoints": ["c:eth0", "sw"]}]}"#;
    let loaded = Topology::parse(text, Path::new("lab.json")).unwrap();
    let mut lab = VirtualLab::new(&loaded.topology, Shape::default());
    lab.send("a.eth0", &frame(BROADCAST, mac(1), 60, 0));
    received_by(&mut lab, &["b", "c"]);
    // The table is full: b is not learnt.
    lab.send("b.eth0", &frame(mac(1), mac(2), 60, 1));
    received_by(&mut lab, &["a"]);
    lab.send("a.eth0", &frame(mac(2), mac(1), 60, 2));
    received_by(&mut lab, &["b", "c"]);
    // a is forgotten, and makes room for b.
    lab.pass(2 * SECOND + 1);
    lab.send("b.eth0", &frame(mac(1), mac(2), 60, 3));
    received_by(&mut lab, &["a", "c"]);
    lab.send("a.eth0", &frame(mac(2), mac(1), 60, 4));
    received_by(&mut lab, &["b"]);
}

#[track_caller]
fn received_by(lab: &mut VirtualLab, expected: &[&str]) {
    let who = ["a", "b", "c"].map(|name| (name, lab.receive(&format!("{name}.eth0"))));
    let who: Vec<&str> = who
        .iter()
        .filter(|(_, f)| f.is_some())
        .map(|(n, _)| *n)
        .collect();
    assert_eq!(who, expected);
}

fn start(lab: &common::lab::Running, name: &str) -> (Guest, Connection) {
    let guest = Guest::new(Shape::default());
    let connection = Connection::start(&lab.socket(name), &guest);
    (guest, connection)
}

/// A port that sends too much to all is cut off, counted and named; what it sends to one goes on.
#[test]
fn a_storm_is_named() {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    let port = SwitchPort {
        vlan: None,
        storm: Some(StormLimit::Packets(20)),
    };
    let switch = SwitchNode {
        ports: vec![port, SwitchPort::default()],
        ..ports([])
    };
    let sw = lab.switch_with("sw", switch);
    lab.wire(a, sw);
    lab.wire(sw, b);
    let lab = lab.run();
    let (mut a, _a) = start(&lab, "a.eth0");
    let (mut b, _b) = start(&lab, "b.eth0");
    b.send(&frame(BROADCAST, mac(2), 60, 0));
    for tag in 0..100 {
        a.send(&frame(BROADCAST, mac(1), 60, tag));
    }
    a.send(&frame(mac(2), mac(1), 60, 7777));
    let node = || lab.stats().nodes.remove(0);
    eventually("all frames", || node().frames == 102);
    let n = node();
    assert_eq!(n.flooded + n.storm, 101);
    // 2 and what a second lasts longer on a busy machine.
    assert!((80..99).contains(&n.storm), "{n:?}");
    eventually("the last one", || {
        b.receive_all().contains(&frame(mac(2), mac(1), 60, 7777))
    });
    eventually("a word about it", || node().last_error.is_some());
    let said = node().last_error.unwrap();
    assert!(
        said.contains("a.eth0") && said.contains("`storm`"),
        "{said}"
    );
}

/// A loop whose links take time makes stations move: it is counted and named, and a storm limit holds it down.
#[test]
fn a_loop_is_named() {
    let mut lab = Lab::default();
    let a = lab.machine("a");
    let node = || SwitchNode {
        ports: vec![
            SwitchPort {
                vlan: None,
                storm: Some(StormLimit::Packets(1000)),
            };
            3
        ],
        ..ports([])
    };
    let (one, two) = (
        lab.switch_with("one", node()),
        lab.switch_with("two", node()),
    );
    lab.wire(a, one);
    let slow = Direction {
        delay: Duration::from_micros(100),
        ..Direction::default()
    };
    lab.link(one, two, &slow, Completion::Network);
    lab.link(one, two, &slow, Completion::Network);
    let lab = lab.run();
    let (mut a, _a) = start(&lab, "a.eth0");
    a.send(&frame(BROADCAST, mac(1), 60, 0));
    let node = || lab.stats().nodes.remove(0);
    eventually("a word about it", || {
        node()
            .last_error
            .is_some_and(|said| said.contains("there is a loop"))
    });
    let said = node().last_error.unwrap();
    assert!(
        said.contains("02:00:00:00:00:01") && said.contains("two"),
        "{said}"
    );
    assert!(node().moved >= 8);
}

/// Frames to a node that leads nowhere are counted.
#[test]
fn an_external_node_without_a_device() {
    let mut lab = Lab::default();
    let a = lab.machine("a");
    let tap = topology::model::External::Tap {
        name: "none".into(),
        mtu: 1500,
    };
    let up = lab.external("up", tap);
    lab.wire(a, up);
    let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
    lab.send("a.eth0", &frame(mac(2), mac(1), 60, 0));
    assert_eq!(lab.direction("a.eth0", "up").drops.disconnected, 1);
    assert_eq!(lab.guest("a.eth0").tx.used_index(), 1);
}
