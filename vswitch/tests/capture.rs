//! Captures on a virtual clock: what is seen where, when, and how it compares with the counters.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::driver::Shape;
use common::lab::Lab;
use common::virtual_lab::VirtualLab;
use common::{BROADCAST, frame, mac};
use proptest::prelude::*;
use topology::model::{
    Codel, Completion, Direction, Discipline, DropFrom, Limit, Loss, Patch, Queue, Reorder,
};
use vswitch::capture::{
    Instruction, InterfaceCounters, Interfaces, Point, Program, Record, Records, Settings, Tap,
};
use vswitch::counters::Drop;

const MS: u64 = 1_000_000;

/// A capture of every point of every direction of a lab.
struct Capture {
    records: Records,
    /// `from`, `to`, point.
    interfaces: Vec<(String, String, Point)>,
    counters: Arc<[InterfaceCounters]>,
}

#[derive(Debug)]
struct Seen {
    record: Record,
    data: Vec<u8>,
}

impl Capture {
    fn start(lab: &mut VirtualLab, filter: Option<&[Instruction]>, ring: usize) -> Self {
        let mut interfaces = Interfaces::default();
        let mut names = Vec::new();
        for link in lab.links() {
            for way in 0..2 {
                for point in Point::ALL {
                    interfaces.add(link.lanes[way], point, names.len() as u32);
                    let [from, to] = [way, 1 - way].map(|end| link.ends[end].clone());
                    names.push((from, to, point));
                }
            }
        }
        let counters: Arc<[InterfaceCounters]> =
            names.iter().map(|_| InterfaceCounters::default()).collect();
        let settings = Settings {
            number: 7,
            filter: filter.map(|code| Arc::new(Program::new(code).unwrap())),
            snaplen: 262_144,
            counters: Arc::clone(&counters),
        };
        let (tap, records) = Tap::new(settings, interfaces, ring);
        lab.engine.add_tap(tap);
        Self {
            records,
            interfaces: names,
            counters,
        }
    }

    fn all(&mut self) -> Vec<Seen> {
        let mut data = Vec::new();
        std::iter::from_fn(|| {
            let record = self.records.next(&mut data)?;
            let data = data.clone();
            Some(Seen { record, data })
        })
        .collect()
    }

    fn at<'a>(&self, all: &'a [Seen], from: &str, to: &str, point: Point) -> Vec<&'a Seen> {
        let wanted = (from.to_owned(), to.to_owned(), point);
        let number = self.interfaces.iter().position(|i| *i == wanted).unwrap();
        let of_it = |seen: &&Seen| seen.record.interface == number as u32;
        all.iter().filter(of_it).collect()
    }

    /// Every counter of every direction is accounted for by records.
    fn compare(&self, all: &[Seen], lab: &VirtualLab) {
        let sum = |seen: &[&Seen]| seen.iter().map(|s| u64::from(s.record.len)).sum::<u64>();
        for d in lab.directions() {
            let [before, after, drops] = Point::ALL.map(|p| self.at(all, &d.from, &d.to, p));
            assert_eq!(
                (before.len() as u64, sum(&before)),
                (d.in_frames, d.in_bytes)
            );
            assert_eq!(
                (after.len() as u64, sum(&after)),
                (d.out_frames, d.out_bytes)
            );
            let mut reasons: HashMap<&str, u64> = HashMap::new();
            for seen in drops {
                *reasons
                    .entry(seen.record.reason.unwrap().name())
                    .or_default() += 1;
            }
            for (reason, n) in d.drops.iter() {
                assert_eq!(reasons.get(reason).copied().unwrap_or(0), n, "{reason}");
            }
        }
        assert!(all.is_sorted_by_key(|seen| seen.record.at), "one clock");
        for (i, counters) in self.counters.iter().enumerate() {
            let n = all
                .iter()
                .filter(|s| s.record.interface == i as u32)
                .count() as u64;
            assert_eq!((counters.accepted.get(), counters.lost.get()), (n, 0));
        }
    }
}

fn data(len: usize, tag: u32) -> Vec<u8> {
    frame(mac(2), mac(1), len, tag)
}

fn pair(direction: &Direction, completion: Completion, shape: Shape) -> VirtualLab {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.link(a, b, direction, completion);
    VirtualLab::new(&lab.topology(), shape)
}

/// 8 Mbit/s without overhead: a byte takes a microsecond.
fn microsecond_per_byte() -> Direction {
    Direction {
        rate: Some(8_000_000),
        overhead: 0,
        ..Direction::default()
    }
}

/// A frame is seen before the queue when it comes and after delivery when it arrives, to the nanosecond.
#[test]
fn points_and_times() {
    for completion in [Completion::Network, Completion::Nic] {
        let direction = Direction {
            delay: Duration::from_nanos(5 * MS + 7),
            ..microsecond_per_byte()
        };
        let mut lab = pair(&direction, completion, Shape::default());
        let mut capture = Capture::start(&mut lab, None, 1 << 20);
        let start = lab.now.as_nanos();
        for tag in 0..2 {
            lab.send("a.eth0", &data(1000, tag));
        }
        lab.pass(20 * MS);
        let all = capture.all();
        capture.compare(&all, &lab);
        let told: Vec<_> = all
            .iter()
            .map(|s| {
                (
                    s.record.at.as_nanos() - start,
                    s.record.interface,
                    s.data.clone(),
                )
            })
            .collect();
        let expected = [
            (0, 0, data(1000, 0)),
            (0, 0, data(1000, 1)),
            (6 * MS + 7, 1, data(1000, 0)),
            (7 * MS + 7, 1, data(1000, 1)),
        ];
        assert_eq!(told, expected, "{completion:?}");
    }
}

/// A frame whose loss was foretold is dropped, and seen, at the end of its transmission.
#[test]
fn lost_frames_are_seen_when_they_are_lost() {
    let direction = Direction {
        loss: Loss::Every(2),
        ..microsecond_per_byte()
    };
    let mut lab = pair(&direction, Completion::Network, Shape::default());
    let mut capture = Capture::start(&mut lab, None, 1 << 20);
    let start = lab.now.as_nanos();
    for tag in 0..3 {
        lab.send("a.eth0", &data(1000, tag));
    }
    lab.pass(10 * MS);
    let all = capture.all();
    capture.compare(&all, &lab);
    let [lost] = capture.at(&all, "a.eth0", "b.eth0", Point::Drops)[..] else {
        panic!("{all:?}");
    };
    assert_eq!(lost.record.at.as_nanos() - start, 2 * MS);
    assert_eq!(lost.record.reason, Some(Drop::Loss));
    assert_eq!(lost.data, data(1000, 1));
}

/// Nobody receives, or has buffers, or large enough ones.
#[test]
fn drops_at_the_receiver() {
    let shape = Shape {
        size: 64,
        mergeable: false,
        ..Shape::default()
    };
    for delay in [0, 1000] {
        let direction = Direction {
            delay: Duration::from_nanos(delay),
            ..Direction::default()
        };
        let mut lab = pair(&direction, Completion::Network, shape);
        let mut capture = Capture::start(&mut lab, None, 1 << 20);
        lab.send("a.eth0", &data(9000, 0));
        lab.pass(2000);
        for tag in 0..65 {
            lab.send("a.eth0", &data(60, tag));
            // The sender takes its buffers back.
            lab.guest("a.eth0").receive();
            lab.pass(2000);
        }
        let index = lab.index("b.eth0");
        lab.engine.remove_rx(index);
        lab.send("a.eth0", &data(70, 1));
        lab.pass(2000);
        let all = capture.all();
        capture.compare(&all, &lab);
        let drops = capture.at(&all, "a.eth0", "b.eth0", Point::Drops);
        let told: Vec<_> = drops
            .iter()
            .map(|s| (s.record.reason.unwrap(), s.data.len()))
            .collect();
        let expected = [
            (Drop::TooBig, 9000),
            (Drop::NoRxBuffer, 60),
            (Drop::Disconnected, 70),
        ];
        assert_eq!(told, expected, "delay {delay}");
    }
}

/// What is gone with its ring is still told, without its bytes.
#[test]
fn frames_that_are_gone() {
    let direction = Direction {
        delay: Duration::from_millis(1),
        ..Direction::default()
    };
    let mut lab = pair(&direction, Completion::Network, Shape::default());
    let mut capture = Capture::start(&mut lab, None, 1 << 20);
    lab.send("a.eth0", &data(100, 0));
    let index = lab.index("b.eth0");
    lab.engine.remove_rx(index);
    lab.pass(2 * MS);
    let all = capture.all();
    capture.compare(&all, &lab);
    let [gone] = capture.at(&all, "a.eth0", "b.eth0", Point::Drops)[..] else {
        panic!("{all:?}");
    };
    assert_eq!((gone.record.len, gone.record.kept), (100, 0));
    assert_eq!(gone.record.reason, Some(Drop::Disconnected));
}

/// Behind a hub each link shows its own copy; the addresses are those by which a frame is forwarded, and a bit that is to arrive
/// flipped is shown flipped.
#[test]
fn through_a_hub() {
    let mut lab = Lab::default();
    let hub = lab.hub("hub");
    let stations = ["a", "b", "c"].map(|name| lab.machine(name));
    let corrupting = Direction {
        corrupt: 1.0,
        ..Direction::default()
    };
    lab.link(stations[0], hub, &corrupting, Completion::Network);
    lab.wire(stations[1], hub);
    lab.wire(stations[2], hub);
    let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
    let mut capture = Capture::start(&mut lab, None, 1 << 20);
    let sent = frame(BROADCAST, mac(1), 80, 5);
    lab.send("a.eth0", &sent);
    let all = capture.all();
    capture.compare(&all, &lab);
    let arrived = lab.receive("b.eth0").unwrap();
    assert_ne!(arrived, sent);
    assert_eq!(
        capture.at(&all, "a.eth0", "hub", Point::Before)[0].data,
        sent
    );
    for (from, to, point) in [
        ("a.eth0", "hub", Point::After),
        ("hub", "b.eth0", Point::Before),
        ("hub", "b.eth0", Point::After),
        ("hub", "c.eth0", Point::After),
    ] {
        let seen = capture.at(&all, from, to, point);
        assert_eq!(seen[0].data, arrived, "{from} > {to} {point:?}");
    }
}

/// A capture with a filter, taken away again; a second one next to it.
#[test]
fn filters_and_the_end() {
    // len > 100
    let longer = [
        Instruction(0x80, 0, 0, 0),
        Instruction(0x25, 0, 1, 100),
        Instruction(0x06, 0, 0, u32::MAX),
        Instruction(0x06, 0, 0, 0),
    ];
    let mut lab = pair(&Direction::default(), Completion::Network, Shape::default());
    let mut capture = Capture::start(&mut lab, Some(&longer), 1 << 20);
    for len in [60, 100, 101, 1500] {
        lab.send("a.eth0", &data(len, 0));
    }
    let before: Vec<_> = capture.all().iter().map(|s| s.record.len).collect();
    assert_eq!(before, [101, 101, 1500, 1500]);
    assert_eq!(capture.counters[0].seen.get(), 4);
    assert!(lab.engine.remove_tap(7).is_some());
    assert!(lab.engine.remove_tap(7).is_none());
    lab.send("a.eth0", &data(200, 0));
    assert!(capture.all().is_empty());
}

/// A reader that is too slow holds nobody up and is told what it missed.
#[test]
fn a_slow_reader() {
    let mut lab = pair(&Direction::default(), Completion::Network, Shape::default());
    let mut capture = Capture::start(&mut lab, None, 1000);
    for tag in 0..20 {
        lab.send("a.eth0", &data(200, tag));
        assert_eq!(lab.receive("b.eth0"), Some(data(200, tag)));
    }
    let first = capture.all().len() as u64;
    lab.send("a.eth0", &data(200, 20));
    let rest = capture.all();
    let told: u64 = rest.iter().map(|s| u64::from(s.record.lost)).sum();
    let lost: u64 = capture.counters.iter().map(|c| c.lost.get()).sum();
    assert_eq!((told, lost), (40 - first, 40 - first));
    assert_eq!(rest.len(), 2);
}

fn direction() -> impl Strategy<Value = Direction> {
    let queue = prop_oneof![
        Just(Discipline::Fifo(DropFrom::Tail)),
        Just(Discipline::Fifo(DropFrom::Head)),
        Just(Discipline::Codel(Codel {
            target: Duration::from_micros(50),
            interval: Duration::from_micros(200),
            ecn: true,
        })),
    ];
    let rate = prop_oneof![Just(None), Just(Some(8_000_000)), Just(Some(1_000_000_000))];
    let loss = prop_oneof![Just(Loss::default()), (2u32..9).prop_map(Loss::Every)];
    let chance = || prop_oneof![Just(0.0), 0.05..0.5f64];
    (
        rate,
        queue,
        loss,
        chance(),
        chance(),
        chance(),
        any::<bool>(),
        0u64..3 * MS,
    )
        .prop_map(
            |(rate, discipline, loss, ber, duplicate, corrupt, reorder, delay)| Direction {
                rate,
                delay: Duration::from_nanos(delay),
                loss,
                ber: ber * 1e-4,
                duplicate,
                corrupt,
                reorder: reorder.then_some(Reorder {
                    probability: 0.3,
                    gap: 1,
                }),
                queue: Queue {
                    discipline,
                    limit: Limit::Packets(6),
                },
                ..Direction::default()
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever a link does: every counter is accounted for by records, and what is seen after delivery is what the guest
    /// gets, in its order.
    #[test]
    fn records_and_counters_agree(
        there in direction(),
        nic in any::<bool>(),
        changed in prop::option::of(direction()),
        frames in prop::collection::vec((60usize..1500, 0u64..MS), 1..60),
    ) {
        let completion = if nic { Completion::Nic } else { Completion::Network };
        let mut lab = pair(&there, completion, Shape::default());
        let mut capture = Capture::start(&mut lab, None, 8 << 20);
        let half = frames.len() / 2;
        let mut got = Vec::new();
        for (tag, (len, pause)) in frames.into_iter().enumerate() {
            if tag == half && let Some(changed) = &changed {
                let link = &lab.links()[0];
                let patch = Patch {
                    rate: Some(changed.rate),
                    loss: Some(changed.loss),
                    up: Some(false),
                    ..Patch::default()
                };
                let change = vswitch::config::LinkChange {
                    lanes: link.lanes,
                    set: [patch, Patch::default()],
                };
                let now = lab.now;
                lab.engine.change(&change, now);
            }
            lab.send("a.eth0", &data(len, tag as u32));
            got.extend(lab.collect("b.eth0", pause).into_iter().map(|(_, f)| f));
        }
        got.extend(lab.collect("b.eth0", 1000 * MS).into_iter().map(|(_, f)| f));
        prop_assert!(lab.engine.is_empty());
        let all = capture.all();
        capture.compare(&all, &lab);
        let after = capture.at(&all, "a.eth0", "b.eth0", Point::After);
        let after: Vec<_> = after.into_iter().map(|s| s.data.clone()).collect();
        prop_assert_eq!(after, got);
        // Nothing a link drops on its own accord is without its bytes.
        for seen in capture.at(&all, "a.eth0", "b.eth0", Point::Drops) {
            prop_assert_eq!(seen.record.kept, seen.record.len);
        }
    }
}
