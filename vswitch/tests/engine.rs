//! The life of a packet on a virtual clock: when it is copied, when its descriptor is completed, when it arrives.

mod common;

use std::time::Duration;

use common::driver::Shape;
use common::lab::Lab;
use common::virtual_lab::VirtualLab;
use common::{BROADCAST, frame, mac};
use proptest::prelude::*;
use topology::model::{Completion, Direction, Limit, Loss, Queue};

const MS: u64 = 1_000_000;

/// 8 Mbit/s without overhead: a byte takes a microsecond.
fn microsecond_per_byte(delay_ns: u64) -> Direction {
    Direction {
        rate: Some(8_000_000),
        overhead: 0,
        delay: Duration::from_nanos(delay_ns),
        ..Direction::default()
    }
}

fn pair(direction: &Direction, completion: Completion, shape: Shape) -> VirtualLab {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.link(a, b, direction, completion);
    VirtualLab::new(&lab.topology(), shape)
}

fn data(len: usize, tag: u32) -> Vec<u8> {
    frame(mac(2), mac(1), len, tag)
}

#[test]
fn network_completes_at_once_and_delivers_to_the_nanosecond() {
    let mut lab = pair(
        &microsecond_per_byte(5 * MS + 7),
        Completion::Network,
        Shape::default(),
    );
    for tag in 0..3 {
        lab.send("a.eth0", &data(1000, tag));
    }
    // Completed and copied at once, although nothing has left yet.
    assert_eq!(lab.guest("a.eth0").tx.used_index(), 3);
    assert_eq!(lab.direction("a.eth0", "b.eth0").bytes_copied, 3000);
    lab.pass(MS + 5 * MS + 6);
    assert_eq!(lab.receive("b.eth0"), None);
    lab.pass(1);
    assert_eq!(lab.receive("b.eth0"), Some(data(1000, 0)));
    lab.pass(MS - 1);
    assert_eq!(lab.receive("b.eth0"), None);
    lab.pass(1);
    assert_eq!(lab.receive("b.eth0"), Some(data(1000, 1)));
    lab.pass(MS);
    assert_eq!(lab.receive("b.eth0"), Some(data(1000, 2)));
    let d = lab.direction("a.eth0", "b.eth0");
    assert_eq!(
        (d.out_frames, d.bytes_copied, d.pool_copies, d.queued),
        (3, 3000, 0, 0)
    );
    assert_eq!(lab.engine.next_deadline(), None);
}

#[test]
fn nic_completes_and_copies_at_the_end_of_transmission() {
    for delay in [0, 5 * MS] {
        let mut lab = pair(
            &microsecond_per_byte(delay),
            Completion::Nic,
            Shape::default(),
        );
        for tag in 0..3 {
            lab.send("a.eth0", &data(1000, tag));
        }
        assert_eq!(lab.direction("a.eth0", "b.eth0").bytes_copied, 0);
        for n in 0..3 {
            lab.pass(MS - 1);
            assert_eq!(lab.guest("a.eth0").tx.used_index(), n);
            lab.pass(1);
            assert_eq!(
                lab.guest("a.eth0").tx.used_index(),
                n + 1,
                "not a propagation delay later"
            );
            assert_eq!(
                lab.direction("a.eth0", "b.eth0").bytes_copied,
                1000 * (u64::from(n) + 1)
            );
        }
        let got = lab.collect("b.eth0", 10 * MS);
        assert_eq!(
            got.into_iter().map(|(_, f)| f).collect::<Vec<_>>(),
            [0, 1, 2].map(|t| data(1000, t))
        );
        assert_eq!(lab.direction("a.eth0", "b.eth0").pool_copies, 0);
    }
}

fn limited(packets: u32) -> Direction {
    Direction {
        queue: Queue {
            limit: Limit::Packets(packets),
            ..Queue::default()
        },
        ..microsecond_per_byte(0)
    }
}

/// Under `network` the link's queue overflows …
#[test]
fn network_drops_at_the_tail() {
    let mut lab = pair(&limited(2), Completion::Network, Shape::default());
    for tag in 0..10 {
        lab.send("a.eth0", &data(1000, tag));
    }
    assert_eq!(lab.guest("a.eth0").tx.used_index(), 10);
    let got = lab.collect("b.eth0", 100 * MS);
    assert_eq!(
        got,
        (0..3)
            .map(|n| ((u64::from(n) + 1) * MS, data(1000, n)))
            .collect::<Vec<_>>()
    );
    let d = lab.direction("a.eth0", "b.eth0");
    assert_eq!(
        (d.in_frames, d.out_frames, d.drops.queue, d.drops.total()),
        (10, 3, 7, 7)
    );
    assert_eq!(
        d.bytes_copied, 3000,
        "nothing is copied for a frame that is dropped"
    );
}

/// … under `nic` it fills and the guest has to wait.
#[test]
fn nic_holds_the_guest_back() {
    for limit in [0, 1, 2, 5] {
        let mut lab = pair(&limited(limit), Completion::Nic, Shape::default());
        for tag in 0..10 {
            lab.guest("a.eth0").send(&data(1000, tag));
        }
        lab.pass(0);
        let d = lab.direction("a.eth0", "b.eth0");
        assert_eq!(
            d.in_frames,
            u64::from(limit) + 1,
            "the others are still in the guest's ring"
        );
        let got = lab.collect("b.eth0", 100 * MS);
        assert_eq!(
            got,
            (0..10)
                .map(|n| ((u64::from(n) + 1) * MS, data(1000, n)))
                .collect::<Vec<_>>()
        );
        assert_eq!(lab.direction("a.eth0", "b.eth0").drops.total(), 0);
    }
}

/// A lost frame takes its time on the wire, but no buffer of the receiver; the same seed loses the same frames.
#[test]
fn loss_is_replayed_by_seed() {
    let lossy = Direction {
        loss: Loss::Random(0.3),
        ..microsecond_per_byte(MS)
    };
    let run = |completion, seed| {
        let mut lab = Lab::with_seed(seed);
        let (a, b) = (lab.machine("a"), lab.machine("b"));
        lab.link(a, b, &lossy, completion);
        let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
        for tag in 0..200 {
            lab.send("a.eth0", &data(100, tag));
        }
        let got = lab.collect("b.eth0", 100 * MS);
        let d = lab.direction("a.eth0", "b.eth0");
        assert_eq!(d.drops.loss + d.out_frames, 200);
        assert_eq!(d.bytes_copied, d.out_bytes);
        assert!((30..90).contains(&d.drops.loss), "{} of 200", d.drops.loss);
        for (at, f) in &got {
            let tag = u32::from_be_bytes([f[14], f[15], f[16], f[17]]);
            assert_eq!(*at, (u64::from(tag) + 1) * 100_000 + MS);
        }
        got
    };
    let first = run(Completion::Network, 7);
    assert_eq!(first, run(Completion::Network, 7));
    assert_eq!(first, run(Completion::Nic, 7));
    assert_ne!(first, run(Completion::Network, 8));
}

/// More frames in flight than the receiver's ring has buffers: the rest waits in the pool, and all arrive in order.
#[test]
fn what_does_not_fit_the_ring_waits_in_the_pool() {
    let shape = Shape {
        size: 64,
        ..Shape::default()
    };
    let delayed = Direction {
        delay: Duration::from_millis(50),
        ..Direction::default()
    };
    let mut lab = pair(&delayed, Completion::Network, shape);
    for tag in 0..200 {
        lab.send("a.eth0", &data(100, tag));
        lab.pass(1000);
    }
    assert_eq!(lab.direction("a.eth0", "b.eth0").pool_copies, 136);
    let got = lab.collect("b.eth0", 100 * MS);
    assert_eq!(
        got,
        (0..200)
            .map(|n| (u64::from(n) * 1000 + 50 * MS, data(100, n)))
            .collect::<Vec<_>>()
    );
    assert_eq!(lab.direction("a.eth0", "b.eth0").drops.total(), 0);
    // Once the pool is empty, buffers are set aside again.
    lab.send("a.eth0", &data(100, 200));
    assert_eq!(lab.direction("a.eth0", "b.eth0").pool_copies, 136);
    assert_eq!(lab.collect("b.eth0", 100 * MS).len(), 1);
}

#[test]
fn frames_in_flight_die_with_the_receiver_only() {
    let delayed = Direction {
        delay: Duration::from_millis(5),
        ..Direction::default()
    };
    let mut lab = pair(&delayed, Completion::Network, Shape::default());
    let b = lab.index("b.eth0");
    for tag in 0..3 {
        lab.send("a.eth0", &data(100, tag));
    }
    lab.pass(MS);
    // Its ring is stopped and started again: buffers that were set aside belong to the guest again.
    let base = lab.engine.remove_rx(b).unwrap().ring().base();
    assert_eq!(base, 0);
    lab.start_rx("b.eth0", base);
    lab.send("a.eth0", &data(100, 3));
    assert_eq!(lab.collect("b.eth0", 100 * MS).len(), 1);
    let d = lab.direction("a.eth0", "b.eth0");
    assert_eq!((d.out_frames, d.drops.disconnected), (1, 3));
}

#[test]
fn frames_in_the_memory_of_a_sender_that_is_gone_are_dropped() {
    for delay in [0, MS] {
        let mut lab = pair(
            &microsecond_per_byte(delay),
            Completion::Nic,
            Shape::default(),
        );
        let a = lab.index("a.eth0");
        for tag in 0..3 {
            lab.send("a.eth0", &data(1000, tag));
        }
        lab.pass(MS);
        let base = lab.engine.remove_tx(a).unwrap().ring().base();
        assert_eq!(base, 1, "the two not yet completed will be taken again");
        lab.pass(10 * MS);
        let d = lab.direction("a.eth0", "b.eth0");
        assert_eq!((d.out_frames, d.drops.sender_gone), (1, 2));
        lab.start_tx("a.eth0", base);
        assert_eq!(lab.collect("b.eth0", 10 * MS).len(), 3);
    }
}

#[test]
fn no_carrier_no_frames() {
    for completion in [Completion::Network, Completion::Nic] {
        let down = Direction {
            up: false,
            ..microsecond_per_byte(0)
        };
        let mut lab = pair(&down, completion, Shape::default());
        lab.send("a.eth0", &data(100, 0));
        assert!(lab.collect("b.eth0", 10 * MS).is_empty());
        assert_eq!(lab.direction("a.eth0", "b.eth0").drops.carrier, 1);
        assert_eq!(lab.guest("a.eth0").tx.used_index(), 1);
    }
}

/// machine – switch – switch – machine with a rate on the last link: the reference goes through the chain, one copy.
#[test]
fn a_chain_adds_no_copies() {
    let shaped = microsecond_per_byte(MS);
    for first in [Completion::Network, Completion::Nic] {
        let mut lab = Lab::default();
        let (a, b) = (lab.machine("a"), lab.machine("b"));
        let (x, y) = (lab.switch("x"), lab.switch("y"));
        lab.link(a, x, &Direction::default(), first);
        lab.wire(x, y);
        lab.link(y, b, &shaped, Completion::Network);
        let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
        for tag in 0..5 {
            lab.send("a.eth0", &data(1000, tag));
        }
        assert_eq!(lab.guest("a.eth0").tx.used_index(), 5);
        let got = lab.collect("b.eth0", 100 * MS);
        assert_eq!(
            got,
            (0..5)
                .map(|n| ((u64::from(n) + 2) * MS, data(1000, n)))
                .collect::<Vec<_>>()
        );
        let copied: u64 = lab.directions().iter().map(|d| d.bytes_copied).sum();
        assert_eq!(copied, 5000);
    }
}

/// Two rates one behind the other: the first costs a second copy under `network`, as nobody knows the receiver before
/// the switch has seen the frame, and none under `nic`.
#[test]
fn two_shaped_links() {
    for (completion, copies) in [(Completion::Network, 2), (Completion::Nic, 1)] {
        let mut lab = Lab::default();
        let (a, b, x) = (lab.machine("a"), lab.machine("b"), lab.switch("x"));
        lab.link(a, x, &microsecond_per_byte(0), completion);
        lab.link(x, b, &microsecond_per_byte(0), completion);
        let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
        for tag in 0..3 {
            lab.send("a.eth0", &data(1000, tag));
        }
        let got = lab.collect("b.eth0", 100 * MS);
        assert_eq!(
            got,
            (0..3)
                .map(|n| ((u64::from(n) + 2) * MS, data(1000, n)))
                .collect::<Vec<_>>()
        );
        let copied: u64 = lab.directions().iter().map(|d| d.bytes_copied).sum();
        assert_eq!(copied, 3000 * copies);
    }
}

/// VM 1 posts buffers of one byte, VM 2 floods it (CVE-2019-3900): the work per turn stays bounded, others get their turn.
#[test]
fn tiny_buffers_and_a_flood() {
    let mut lab = Lab::default();
    let machines = ["a", "b", "c", "d"].map(|n| lab.machine(n));
    lab.wire(machines[0], machines[1]);
    lab.wire(machines[2], machines[3]);
    let mut lab = VirtualLab::new(
        &lab.topology(),
        Shape {
            size: 1024,
            ..Shape::default()
        },
    );
    let b = lab.index("b.eth0");
    let guest = lab.guest("b.eth0");
    guest.rx.reset();
    guest.rx_buffer = 12;
    guest.post_all();
    lab.engine.remove_rx(b);
    lab.start_rx("b.eth0", 0);
    while lab.guest("a.eth0").queue(&data(1500, 0)) {}
    lab.guest("a.eth0").tx.publish();
    lab.send("c.eth0", &data(100, 1));
    assert_eq!(lab.receive("d.eth0"), Some(data(100, 1)));
    let d = lab.direction("a.eth0", "b.eth0");
    assert!(d.in_frames < 200, "{} frames in one turn", d.in_frames);
    lab.pass(0);
    for _ in 0..20 {
        lab.pass(1);
    }
    assert_eq!(lab.direction("a.eth0", "b.eth0").drops.too_big, 1024);
    assert_eq!(lab.guest("b.eth0").rx.used_index(), 0);
}

#[derive(Debug, Clone)]
struct Case {
    rate: Option<u64>,
    delay: u64,
    loss: f64,
    limit: u32,
    completion: Completion,
    through: Through,
    mergeable: bool,
    small: bool,
}

#[derive(Debug, Clone, Copy)]
enum Through {
    Link,
    Switch,
    Hub,
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::option::of(100_000u64..10_000_000_000),
        prop_oneof![Just(0u64), 1u64..20_000_000],
        prop_oneof![Just(0.0), Just(0.2), Just(1.0)],
        0u32..50,
        prop::bool::ANY,
        prop_oneof![
            Just(Through::Link),
            Just(Through::Switch),
            Just(Through::Hub)
        ],
        prop::bool::ANY,
        prop::bool::ANY,
    )
        .prop_map(
            |(rate, delay, loss, limit, nic, through, mergeable, small)| Case {
                rate,
                delay,
                loss,
                limit,
                completion: if nic {
                    Completion::Nic
                } else {
                    Completion::Network
                },
                through,
                mergeable,
                small,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the links: every frame is accounted for, arrives whole and in order, and all buffers go home.
    #[test]
    fn every_frame_is_accounted_for(
        case in case(),
        frames in prop::collection::vec((14usize..1900, 0u64..200_000, prop::bool::ANY), 1..120),
    ) {
        let direction = Direction {
            rate: case.rate,
            delay: Duration::from_nanos(case.delay),
            loss: Loss::Random(case.loss),
            queue: Queue { limit: Limit::Packets(case.limit), ..Queue::default() },
            ..Direction::default()
        };
        let mut lab = Lab::with_seed(3);
        let (a, b, c) = (lab.machine("a"), lab.machine("b"), lab.machine("c"));
        match case.through {
            Through::Link => {
                lab.link(a, b, &direction, case.completion);
                lab.unlinked(c);
            }
            Through::Switch | Through::Hub => {
                let x = if matches!(case.through, Through::Hub) { lab.hub("x") } else { lab.switch("x") };
                for machine in [a, b, c] {
                    lab.link(machine, x, &direction, case.completion);
                }
            }
        }
        let shape = Shape {
            size: 64,
            mergeable: case.mergeable,
            rx_buffer: if case.small { 512 } else { 2048 },
            ..Shape::default()
        };
        let mut lab = VirtualLab::new(&lab.topology(), shape);
        let mut got = Vec::new();
        let mut sent = 0;
        for (tag, (len, gap, to_all)) in frames.iter().enumerate() {
            let to = if *to_all { BROADCAST } else { mac(2) };
            let f = frame(to, mac(1), *len, tag as u32);
            if lab.guest("a.eth0").queue(&f) {
                lab.guest("a.eth0").tx.publish();
                sent += 1;
            }
            let a = lab.index("a.eth0");
            let now = lab.now;
            lab.engine.kicked(a, now);
            got.extend(lab.collect("b.eth0", *gap));
            lab.guest("c.eth0").receive_all();
        }
        got.extend(lab.collect("b.eth0", 100_000_000_000));
        let mut last = None;
        for (_, f) in &got {
            if f.len() >= 18 {
                let tag = u32::from_be_bytes([f[14], f[15], f[16], f[17]]);
                let (len, _, to_all) = frames[tag as usize];
                prop_assert_eq!(f, &frame(if to_all { BROADCAST } else { mac(2) }, mac(1), len, tag));
                prop_assert!(last < Some(tag), "{tag} after {last:?}");
                last = Some(tag);
            }
        }
        for d in lab.directions() {
            prop_assert_eq!(d.in_frames, d.out_frames + d.drops.total(), "{:?}", d);
            prop_assert_eq!(d.queued, 0);
        }
        let first = lab.directions().into_iter().find(|d| d.from == "a.eth0").unwrap();
        prop_assert_eq!(first.in_frames, sent);
        prop_assert!(lab.engine.is_empty());
        prop_assert_eq!(u64::from(lab.guest("a.eth0").tx.used_index()), sent);
    }
}
