//! What links do to frames on their way through the switch, on a virtual clock.

mod common;

use std::time::Duration;

use common::driver::Shape;
use common::lab::Lab;
use common::virtual_lab::VirtualLab;
use common::{frame, mac};
use proptest::prelude::*;
use topology::model::*;
use vswitch::config::LinkChange;

const MS: u64 = 1_000_000;

/// 8 Mbit/s without overhead: a byte takes a microsecond.
fn microsecond_per_byte() -> Direction {
    Direction {
        rate: Some(8_000_000),
        overhead: 0,
        ..Direction::default()
    }
}

fn pair(direction: &Direction, completion: Completion) -> VirtualLab {
    let mut lab = Lab::with_seed(3);
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.link(a, b, direction, completion);
    VirtualLab::new(&lab.topology(), Shape::default())
}

fn data(len: usize, tag: u32) -> Vec<u8> {
    frame(mac(2), mac(1), len, tag)
}

fn tag(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[14], frame[15], frame[16], frame[17]])
}

/// An IPv4 packet with the given TOS byte and a right header checksum.
fn ipv4(tos: u8, len: usize) -> Vec<u8> {
    let mut f = data(len, 0);
    f[12..14].copy_from_slice(&[8, 0]);
    let header = [
        0x45, tos, 0, 100, 1, 2, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    f[14..34].copy_from_slice(&header);
    let sum = !checksum(&f[14..34]);
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f
}

/// The ones' complement sum; 0xffff over a header that is right.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

const BOTH: [Completion; 2] = [Completion::Network, Completion::Nic];

#[test]
fn duplicates_are_whole_and_take_their_time() {
    for rate in [Some(8_000_000), None] {
        for completion in BOTH {
            for delay in [0, 5] {
                let direction = Direction {
                    duplicate: 1.0,
                    rate,
                    delay: Duration::from_millis(delay),
                    ..microsecond_per_byte()
                };
                let mut lab = pair(&direction, completion);
                for tag in 0..3 {
                    lab.send("a.eth0", &data(1000, tag));
                }
                let immediate = rate.is_none() && delay == 0;
                let got = lab.collect("b.eth0", if immediate { 0 } else { 100 * MS });
                let time = |n: u64| rate.map_or(0, |_| (n + 1) * MS) + delay * MS;
                let expected: Vec<_> = (0..6)
                    .map(|n| (time(n), data(1000, n as u32 / 2)))
                    .collect();
                assert_eq!(got, expected, "{rate:?} {completion:?} {delay}");
                let d = lab.direction("a.eth0", "b.eth0");
                assert_eq!((d.in_frames, d.duplicated, d.out_frames), (3, 3, 6));
                assert_eq!(lab.guest("a.eth0").tx.used_index(), 3);
                assert!(lab.engine.is_empty());
            }
        }
    }
}

#[test]
fn corruption_flips_one_bit() {
    for rate in [Some(8_000_000), None] {
        for (completion, delay) in [(BOTH[0], 0), (BOTH[0], 1), (BOTH[1], 0), (BOTH[1], 1)] {
            let direction = Direction {
                corrupt: 1.0,
                rate,
                delay: Duration::from_millis(delay),
                ..microsecond_per_byte()
            };
            let mut lab = pair(&direction, completion);
            let mut bytes = Vec::new();
            for n in 0..200 {
                let sent = data(64, n);
                lab.send("a.eth0", &sent);
                let got = lab.collect("b.eth0", 10 * MS);
                let flipped: Vec<usize> = (0..64).filter(|i| sent[*i] != got[0].1[*i]).collect();
                assert_eq!(flipped.len(), 1);
                let byte = flipped[0];
                assert_eq!((sent[byte] ^ got[0].1[byte]).count_ones(), 1);
                bytes.push(byte);
            }
            assert!(bytes.iter().any(|b| *b < 12) && bytes.iter().any(|b| *b >= 48));
            assert_eq!(lab.direction("a.eth0", "b.eth0").corrupted, 200);
        }
    }
}

/// The bridge forwards by the addresses that arrive at it.
#[test]
fn a_corrupt_address_is_what_the_bridge_sees() {
    let mut lab = Lab::with_seed(5);
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    let hub = lab.hub("hub");
    let corrupt = Direction {
        corrupt: 1.0,
        ..Direction::default()
    };
    lab.link(a, hub, &corrupt, Completion::Network);
    lab.wire(hub, b);
    let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
    for n in 0..100 {
        let sent = data(18, n);
        lab.send("a.eth0", &sent);
        let got = lab.collect("b.eth0", 0);
        let bits: u32 = sent
            .iter()
            .zip(&got[0].1)
            .map(|(a, b)| (a ^ b).count_ones())
            .sum();
        assert_eq!(bits, 1);
    }
}

/// A discipline that drops what it has let in: every frame is accounted for, the sender gets its descriptors back, and what
/// arrives is whole and in order.
#[test]
fn codel_drops_what_it_has_let_in() {
    for completion in BOTH {
        let direction = Direction {
            queue: Queue {
                limit: Limit::Packets(100),
                discipline: Discipline::Codel(Codel {
                    target: Duration::from_millis(2),
                    interval: Duration::from_millis(10),
                    ecn: false,
                }),
            },
            delay: Duration::from_millis(3),
            ..microsecond_per_byte()
        };
        let mut lab = pair(&direction, completion);
        let mut got = Vec::new();
        for n in 0..100 {
            lab.send("a.eth0", &data(1000, n));
            got.extend(lab.collect("b.eth0", MS / 2));
        }
        got.extend(lab.collect("b.eth0", 1000 * MS));
        let d = lab.direction("a.eth0", "b.eth0");
        assert!(d.drops.early > 2, "{:?}", d.drops);
        assert_eq!(d.out_frames + d.drops.total(), 100);
        assert_eq!(lab.guest("a.eth0").tx.used_index(), 100);
        let tags: Vec<u32> = got.iter().map(|(_, f)| tag(f)).collect();
        assert!(tags.is_sorted() && tags.len() as u64 == d.out_frames);
        assert!(got.iter().all(|(_, f)| *f == data(1000, tag(f))));
        if completion == Completion::Nic {
            // One copy for each that arrives, none for the others.
            assert_eq!((d.bytes_copied, d.pool_copies), (d.out_bytes, 0));
        }
        assert!(lab.engine.is_empty());
    }
}

#[test]
fn congestion_marks_are_right() {
    let red = Red {
        min_th: Limit::Packets(1),
        max_th: Limit::Packets(100),
        max_p: 1.0,
        w_q: 1.0,
        ecn: true,
        ..Red::default()
    };
    for discipline in [
        Discipline::Red(red),
        Discipline::Codel(Codel {
            target: Duration::from_micros(10),
            interval: Duration::from_millis(1),
            ecn: true,
        }),
    ] {
        for completion in BOTH {
            let direction = Direction {
                queue: Queue {
                    limit: Limit::Packets(1000),
                    discipline: discipline.clone(),
                },
                ..microsecond_per_byte()
            };
            let mut lab = pair(&direction, completion);
            for _ in 0..30 {
                lab.send("a.eth0", &ipv4(0x2a, 1000));
            }
            let got = lab.collect("b.eth0", 100 * MS);
            let marked: Vec<_> = got.iter().filter(|(_, f)| f[15] & 3 == 3).collect();
            let d = lab.direction("a.eth0", "b.eth0");
            assert!(
                d.marked > 3 && d.marked == marked.len() as u64,
                "{discipline:?} {}",
                d.marked
            );
            for (_, f) in &got {
                assert_eq!(checksum(&f[14..34]), 0xffff);
                assert_eq!(f[15] & 0xfc, 0x28);
                assert_eq!(f[34..], ipv4(0x2a, 1000)[34..]);
            }
            assert_eq!(d.drops.total(), 0);
        }
    }
}

/// Two flows, one of them greedy: with a fair discipline the other does not notice.
#[test]
fn a_fair_queue_protects_the_modest() {
    for discipline in [
        Discipline::Drr {
            drop: DropFrom::Tail,
            flows: 1024,
            quantum: 1514,
        },
        Discipline::Wfq {
            drop: DropFrom::Head,
            flows: 1024,
        },
        Discipline::Wf2q {
            drop: DropFrom::Tail,
            flows: 1024,
        },
        Discipline::FqCodel(FqCodel::default()),
    ] {
        for completion in BOTH {
            let direction = Direction {
                queue: Queue {
                    limit: Limit::Packets(20),
                    discipline: discipline.clone(),
                },
                ..microsecond_per_byte()
            };
            let mut lab = pair(&direction, completion);
            let mut modest = ipv4(0, 1000);
            modest[29] = 77;
            let mut late = Vec::new();
            for _ in 0..20 {
                for _ in 0..10 {
                    lab.send("a.eth0", &ipv4(0, 1000));
                }
                let sent = lab.now;
                lab.send("a.eth0", &modest);
                let got = lab.collect("b.eth0", 5 * MS);
                let mine = got.iter().filter(|(_, f)| f[29] == 77);
                late.extend(mine.map(|(at, _)| at + 1_000_000_000 - sent.as_nanos()));
            }
            // At most the frame in transmission and one of the other flow are served before.
            if completion == Completion::Network {
                assert_eq!(late.len(), 20, "{discipline:?}");
                assert!(
                    late.iter().all(|ns| *ns <= 3 * MS),
                    "{discipline:?}: {late:?}"
                );
            }
            lab.collect("b.eth0", 1000 * MS);
            assert!(lab.engine.is_empty());
            let d = lab.direction("a.eth0", "b.eth0");
            assert_eq!(d.in_frames, d.out_frames + d.drops.total());
        }
    }
}

#[test]
fn a_trace_delivers_at_its_times() {
    for completion in BOTH {
        let opportunities = [2, 5, 10].map(Duration::from_millis).to_vec();
        let direction = Direction {
            trace: Some(std::sync::Arc::new(Trace { opportunities })),
            ..Direction::default()
        };
        let mut lab = pair(&direction, completion);
        for n in 0..5 {
            lab.send("a.eth0", &data(1514, n));
        }
        let got = lab.collect("b.eth0", 100 * MS);
        let times: Vec<u64> = got.iter().map(|(at, _)| at / MS).collect();
        assert_eq!(times, [2, 5, 10, 12, 15]);
        // 105 ms have passed; the opportunity of that moment is over.
        lab.pass(5 * MS);
        lab.send("a.eth0", &data(1514, 9));
        assert_eq!(lab.collect("b.eth0", 100 * MS)[0].0, 110 * MS);
    }
}

fn patch(change: impl FnOnce(&mut Patch)) -> Patch {
    let mut patch = Patch::default();
    change(&mut patch);
    patch
}

#[test]
fn schedules_are_kept_to_the_nanosecond() {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.link(a, b, &microsecond_per_byte(), Completion::Network);
    let faster = patch(|p| p.rate = Some(Some(80_000_000)));
    let down = patch(|p| p.up = Some(false));
    let up = patch(|p| {
        p.up = Some(true);
        p.delay = Some(Duration::from_millis(1));
    });
    lab.schedule(
        Duration::from_micros(2500),
        [faster.clone(), Patch::default()],
    );
    lab.schedule(Duration::from_millis(10), [down.clone(), down]);
    lab.schedule(Duration::from_millis(20), [up, Patch::default()]);
    let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
    for n in 0..5 {
        lab.send("a.eth0", &data(1000, n));
    }
    // The third is in transmission when the rate changes and ends as it began.
    let got = lab.collect("b.eth0", 12 * MS);
    let times: Vec<u64> = got.iter().map(|(at, _)| at / 1000).collect();
    assert_eq!(times, [1000, 2000, 3000, 3100, 3200]);
    lab.send("a.eth0", &data(1000, 5));
    assert_eq!(lab.direction("a.eth0", "b.eth0").drops.carrier, 1);
    assert!(lab.collect("b.eth0", 10 * MS).is_empty());
    lab.send("a.eth0", &data(1000, 6));
    assert_eq!(lab.collect("b.eth0", 10 * MS)[0].0, 22 * MS + MS + MS / 10);
}

/// From a queue whose frames are in the receiver's buffers to one that drops, and back.
#[test]
fn from_fifo_to_codel_and_back() {
    let mut lab = pair(&microsecond_per_byte(), Completion::Network);
    for n in 0..60 {
        lab.send("a.eth0", &data(1000, n));
    }
    let lanes = [0, 1];
    let codel = Discipline::Codel(Codel {
        target: Duration::from_millis(1),
        interval: Duration::from_millis(5),
        ecn: false,
    });
    let set = |discipline| {
        let queue = Queue {
            limit: Limit::Packets(1000),
            discipline,
        };
        LinkChange {
            lanes,
            set: [patch(|p| p.queue = Some(queue)), Patch::default()],
        }
    };
    lab.engine.change(&set(codel), lab.now);
    for n in 60..80 {
        lab.send("a.eth0", &data(1000, n));
    }
    let mut got = lab.collect("b.eth0", 40 * MS);
    lab.engine.change(&set(Discipline::default()), lab.now);
    for n in 80..100 {
        lab.send("a.eth0", &data(1000, n));
    }
    got.extend(lab.collect("b.eth0", 1000 * MS));
    let d = lab.direction("a.eth0", "b.eth0");
    assert!(d.drops.early > 3);
    assert_eq!(d.out_frames + d.drops.early, 100);
    assert!(got.iter().is_sorted_by_key(|(_, f)| tag(f)));
    assert!(got.iter().all(|(_, f)| *f == data(1000, tag(f))));
    assert_eq!(got.len() as u64, d.out_frames);
    assert!(lab.engine.is_empty());
}

/// Within five standard deviations of the binomial distribution.
fn assert_binomial(hits: u64, n: u64, p: f64, what: &str) {
    let (n, hits) = (n as f64, hits as f64);
    let sigma = (n * p * (1.0 - p)).sqrt();
    assert!(
        (hits - n * p).abs() <= 5.0 * sigma,
        "{what}: {hits} of {n} at {p}"
    );
}

/// From ring to ring, frame by frame: each misfortune happens as often as it should, to frames of every size, and what arrives
/// is what the counters say; with the same seed the same bytes arrive in the same nanoseconds.
#[test]
fn misfortunes_are_binomial() {
    const FRAMES: u32 = 8000;
    let direction = Direction {
        loss: Loss::Random(0.05),
        ber: 2e-5,
        duplicate: 0.1,
        corrupt: 0.03,
        delay: Duration::from_micros(10),
        ..Direction::default()
    };
    let run = |len: usize| {
        let mut lab = Lab::with_seed(len as u64);
        let (a, b) = (lab.machine("a"), lab.machine("b"));
        lab.link(a, b, &direction, Completion::Network);
        let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
        let mut got = Vec::new();
        for n in 0..FRAMES {
            lab.send("a.eth0", &data(len, n));
            got.extend(lab.collect("b.eth0", 1000));
        }
        got.extend(lab.collect("b.eth0", MS));
        (lab, got)
    };
    for len in [60, 576, 1514] {
        let (lab, got) = run(len);
        let what = format!("frames of {len} bytes");
        let d = lab.direction("a.eth0", "b.eth0");
        let sent = u64::from(FRAMES);
        let broken = 1.0 - (1.0 - direction.ber).powi(8 * (len as i32 + 24));
        assert_eq!(d.in_frames, sent);
        // A duplicate is a frame of its own as to bit errors.
        let on_the_wire = sent - d.drops.loss + d.duplicated;
        assert_binomial(d.drops.loss, sent, 0.05, &what);
        assert_binomial(d.drops.bit_error, on_the_wire, broken, &what);
        assert_binomial(d.duplicated, sent, 0.95 * (1.0 - broken) * 0.1, &what);
        assert_binomial(d.corrupted, d.out_frames, 0.03, &what);
        assert_eq!(got.len() as u64, d.out_frames, "{what}");
        let mut flipped = 0;
        let mut survivors = std::collections::HashMap::new();
        for (_, f) in &got {
            // The tag itself may be hit; then another frame is taken for it, and more than one bit differs.
            let bits = |n: u32| -> u32 {
                let whole = data(len, n);
                f.iter()
                    .zip(&whole)
                    .map(|(a, b)| (a ^ b).count_ones())
                    .sum()
            };
            let tag = match bits(tag(f)) {
                0 => tag(f),
                1 => {
                    flipped += 1;
                    tag(f)
                }
                _ => {
                    flipped += 1;
                    let near = (0..32).map(|bit| tag(f) ^ (1 << bit));
                    near.clone().find(|n| bits(*n) == 1).unwrap()
                }
            };
            *survivors.entry(tag).or_insert(0u64) += 1;
        }
        assert_eq!(flipped, d.corrupted, "{what}");
        assert!(survivors.values().all(|copies| *copies <= 2));
        assert_eq!(got, run(len).1, "{what}");
    }
}

/// Attributes of one link change no draw of another.
#[test]
fn links_do_not_disturb_each_other() {
    let arrivals = |first: &Direction| {
        let mut lab = Lab::with_seed(4);
        let ends = [("a", "b"), ("c", "d")].map(|(a, b)| (lab.machine(a), lab.machine(b)));
        let second = Direction {
            loss: Loss::Random(0.3),
            jitter: Jitter {
                spread: Duration::from_millis(1),
                distribution: Distribution::Uniform,
            },
            delay: Duration::from_millis(2),
            ..microsecond_per_byte()
        };
        lab.link(ends[0].0, ends[0].1, first, Completion::Network);
        lab.link(ends[1].0, ends[1].1, &second, Completion::Network);
        let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
        for n in 0..50 {
            lab.send("a.eth0", &data(100, n));
            lab.send("c.eth0", &data(100, n));
        }
        lab.collect("d.eth0", 100 * MS)
    };
    let plain = arrivals(&Direction::default());
    assert!((20..45).contains(&plain.len()));
    let busy = Direction {
        loss: Loss::Random(0.5),
        ber: 1e-4,
        duplicate: 0.5,
        corrupt: 0.5,
        ..microsecond_per_byte()
    };
    assert_eq!(plain, arrivals(&busy));
}

/// Every attribute at once.
fn anything() -> impl Strategy<Value = Direction> {
    let queue = prop_oneof![
        Just(Discipline::Fifo(DropFrom::Tail)),
        Just(Discipline::Fifo(DropFrom::Head)),
        Just(Discipline::Drr {
            drop: DropFrom::Tail,
            flows: 8,
            quantum: 500
        }),
        Just(Discipline::Wfq {
            drop: DropFrom::Head,
            flows: 8
        }),
        Just(Discipline::Wf2q {
            drop: DropFrom::Tail,
            flows: 8
        }),
        Just(Discipline::Red(Red {
            w_q: 0.5,
            ..Red::default()
        })),
        Just(Discipline::Codel(Codel {
            target: Duration::from_micros(100),
            interval: Duration::from_millis(1),
            ecn: true
        })),
        Just(Discipline::FqCodel(FqCodel::default())),
        Just(Discipline::Pie(Pie {
            max_burst: Duration::ZERO,
            ..Pie::default()
        })),
    ];
    let some = |p: f64| prop_oneof![Just(0.0), Just(p), Just(1.0)];
    (
        (
            prop::option::of(1_000_000u64..100_000_000),
            any::<bool>(),
            0u64..5,
            0u64..4,
            any::<bool>(),
        ),
        (
            some(0.2),
            some(0.2),
            some(0.2),
            prop_oneof![Just(0.0), Just(1e-4)],
        ),
        (queue, 1u32..30),
    )
        .prop_map(
            |(
                (rate, traced, delay, spread, reorder),
                (loss, duplicate, corrupt, ber),
                (discipline, limit),
            )| {
                let opportunities = [1, 2, 2, 3].map(Duration::from_millis).to_vec();
                let trace = (traced && rate.is_none())
                    .then(|| std::sync::Arc::new(Trace { opportunities }));
                Direction {
                    rate,
                    trace,
                    delay: Duration::from_millis(delay),
                    jitter: Jitter {
                        spread: Duration::from_millis(spread),
                        distribution: Distribution::Normal,
                    },
                    reorder: reorder.then_some(Reorder {
                        probability: 0.1,
                        gap: 2,
                    }),
                    loss: Loss::Random(loss),
                    ber,
                    duplicate,
                    corrupt,
                    queue: Queue {
                        limit: Limit::Packets(limit),
                        discipline,
                    },
                    ..Direction::default()
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever is set, and changed on the way: what goes in and is duplicated comes out or is dropped for a reason, descriptors
    /// are completed, nothing stays behind, and the same seed does the same again.
    #[test]
    fn every_frame_is_accounted_for(
        first in anything(),
        second in anything(),
        nic: bool,
        bridged: bool,
        sizes in prop::collection::vec((14usize..1514, 0u64..2 * MS), 1..80),
    ) {
        let completion = if nic { Completion::Nic } else { Completion::Network };
        let run = || {
            let mut lab = Lab::with_seed(9);
            let (a, b) = (lab.machine("a"), lab.machine("b"));
            if bridged {
                let hub = lab.hub("hub");
                lab.link(a, hub, &first, completion);
                lab.link(hub, b, &second, completion);
            } else {
                lab.link(a, b, &first, completion);
            }
            let mut lab = VirtualLab::new(&lab.topology(), Shape::default());
            let mut got = Vec::new();
            for (n, (len, gap)) in sizes.iter().enumerate() {
                if n == sizes.len() / 2 && !bridged {
                    let set = patch(|p| {
                        p.rate = Some(second.rate);
                        p.delay = Some(second.delay);
                        p.queue = Some(second.queue.clone());
                        p.duplicate = Some(second.duplicate);
                        p.reorder = Some(second.reorder);
                    });
                    let change = LinkChange { lanes: [0, 1], set: [set.clone(), set] };
                    lab.engine.change(&change, lab.now);
                }
                lab.send("a.eth0", &data((*len).max(18), n as u32));
                got.extend(lab.collect("b.eth0", *gap));
            }
            got.extend(lab.collect("b.eth0", 100_000 * MS));
            (lab, got)
        };
        let (mut lab, got) = run();
        for d in lab.directions() {
            prop_assert_eq!(d.in_frames + d.duplicated, d.out_frames + d.drops.total(), "{:?}", d);
            prop_assert_eq!(d.queued, 0);
        }
        prop_assert_eq!(usize::from(lab.guest("a.eth0").tx.used_index()), sizes.len());
        prop_assert!(lab.engine.is_empty());
        prop_assert_eq!(got, run().1);
    }
}

/// A fault script is exact to the nanosecond: frames pass until the moment a link goes down, and from the moment it is up again.
#[test]
fn faults_happen_on_time() {
    let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}, "links": [{"endpoints": ["a:eth0", "b:eth0"]}],
        "faults": [{"at": "10ms", "flap": {"links": ["a:eth0"], "down": "2ms", "up": "3ms", "count": 2}},
            {"at": "16ms", "partition": {"nodes": ["b"], "for": "5ms"}}]}"#;
    let loaded = Topology::parse(text, std::path::Path::new("lab.json"));
    let mut lab = VirtualLab::new(&loaded.unwrap().topology, Shape::default());
    let mut passed = Vec::new();
    let moments = [10, 12, 15, 16, 17, 21].map(|ms| ms * MS);
    for (n, at) in moments.into_iter().enumerate() {
        // A nanosecond before the moment, and in it.
        for (number, at) in [(2 * n as u32, at - 1), (2 * n as u32 + 1, at)] {
            let since = lab.now.as_nanos() - 1_000_000_000;
            lab.pass(at - since);
            lab.send("a.eth0", &data(60, number));
            passed.extend(lab.guest("b.eth0").receive_all().iter().map(|f| tag(f)));
        }
    }
    // Down from 10 to 12 and from 15 to 21 ms.
    assert_eq!(passed, [0, 3, 4, 11]);
}

/// What a link that lets frames wait in their receiver's buffers may have.
fn predictable() -> impl Strategy<Value = Direction> {
    let limit = prop_oneof![
        (1u32..40).prop_map(Limit::Packets),
        (1_000u64..60_000).prop_map(Limit::Bytes)
    ];
    (
        1_000_000u64..2_000_000_000,
        0u64..200_000,
        prop_oneof![Just(0.0), Just(0.1)],
        prop_oneof![Just(0.0), Just(0.1)],
        prop_oneof![Just(0.0), Just(1e-5)],
        limit,
    )
        .prop_map(|(rate, delay, loss, corrupt, ber, limit)| Direction {
            rate: Some(rate),
            delay: Duration::from_nanos(delay),
            loss: Loss::Random(loss),
            corrupt,
            ber,
            queue: Queue {
                limit,
                ..Queue::default()
            },
            ..Direction::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A receiver whose buffers each hold a frame is served in batches, one that needs several for each is served one frame after the
    /// other. Both see the same at the same times, and so do the counters.
    #[test]
    fn a_batch_is_as_its_frames(
        first in predictable(),
        second in predictable(),
        bursts in prop::collection::vec((prop::collection::vec(18usize..1514, 1..40), 0u64..300_000), 1..20),
    ) {
        let run = |rx_buffer| {
            let mut lab = Lab::with_seed(9);
            let (a, b) = (lab.machine("a"), lab.machine("b"));
            lab.link(a, b, &first, Completion::Network);
            let shape = Shape { size: 4096, rx_buffer, ..Shape::default() };
            let mut lab = VirtualLab::with_shapes(&lab.topology(), Shape::default(), &[("b.eth0", shape)]);
            let mut got = Vec::new();
            let mut number = 0;
            for (n, (sizes, gap)) in bursts.iter().enumerate() {
                if n == bursts.len() / 2 {
                    let set = patch(|p| {
                        p.rate = Some(second.rate);
                        p.delay = Some(second.delay);
                        p.queue = Some(second.queue.clone());
                    });
                    let change = LinkChange { lanes: [0, 1], set: [set.clone(), set] };
                    lab.engine.change(&change, lab.now);
                }
                for len in sizes {
                    assert!(lab.guest("a.eth0").queue(&data(*len, number)));
                    number += 1;
                }
                lab.kick("a.eth0");
                got.extend(lab.collect("b.eth0", *gap));
            }
            got.extend(lab.collect("b.eth0", 10_000 * MS));
            assert!(lab.engine.is_empty());
            let direction = lab.direction("a.eth0", "b.eth0");
            assert_eq!(direction.pool_copies, 0);
            (got, direction)
        };
        let (batches, single) = (run(2048), run(100));
        prop_assert_eq!(batches.1, single.1);
        prop_assert_eq!(batches.0, single.0);
    }
}
