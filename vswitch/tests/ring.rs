//! The split ring against `virtio-queue` as an oracle, and against drivers that break the rules.

mod common;

use std::sync::Arc;

use common::driver::{BASE, DriverRing, Guest, INDIRECT, NEXT, SIZE, Shape, WRITE};
use common::virtual_lab::split;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vswitch::net_header::Layout;
use vswitch::offload::Offload;
use vswitch::port::features::VERSION_1;
use vswitch::ring::{Content, NoBuffer, Part, RxRing, TxRing, Violation};

const RING: u16 = 64;

fn guest(event_idx: bool) -> Guest {
    let mut guest = Guest::new(Shape {
        size: RING,
        event_idx,
        ..Shape::default()
    });
    guest.rx.reset();
    guest
}

fn tx(guest: &Guest) -> TxRing {
    TxRing::new(split(guest, &guest.tx, 0), Layout::from_features(VERSION_1))
}

fn rx(guest: &Guest) -> RxRing {
    RxRing::new(
        split(guest, &guest.rx, 0),
        Layout::from_features(VERSION_1),
        true,
    )
}

/// The same ring in the hands of `virtio-queue`.
fn oracle(ring: &DriverRing) -> Queue {
    let mut q = Queue::new(ring.size).unwrap();
    q.try_set_desc_table_address(GuestAddress(ring.descriptors))
        .unwrap();
    q.try_set_avail_ring_address(GuestAddress(ring.available))
        .unwrap();
    q.try_set_used_ring_address(GuestAddress(ring.used))
        .unwrap();
    q.set_event_idx(ring.event_idx);
    q.set_ready(true);
    assert!(q.is_valid(&*ring.memory));
    q
}

/// What the oracle reads from the next chain.
fn oracle_takes(q: &mut Queue, guest: &Guest) -> Option<(u16, Vec<u8>)> {
    let chain = q.pop_descriptor_chain(&*guest.memory)?;
    let head = chain.head_index();
    let mut bytes = Vec::new();
    for d in chain {
        let mut piece = vec![0; d.len() as usize];
        guest.memory.read_slice(&mut piece, d.addr()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    Some((head, bytes))
}

#[derive(Debug, Clone)]
struct Chain {
    pieces: Vec<u32>,
    /// From which piece on the descriptors are in an indirect table.
    indirect_from: Option<usize>,
}

fn chain() -> impl Strategy<Value = Chain> {
    let pieces = prop::collection::vec(prop_oneof![Just(0u32), 1u32..40, 40u32..900], 1..7);
    (pieces, prop::option::of(0usize..7)).prop_map(|(mut pieces, from)| {
        // Room for the header.
        let missing = 12u32.saturating_sub(pieces.iter().sum());
        pieces[0] += missing;
        let indirect_from = from.filter(|from| *from < pieces.len());
        Chain {
            pieces,
            indirect_from,
        }
    })
}

/// Lays a chain out, using descriptors from `next` on and memory from `at` on; returns its head.
fn lay(guest: &Guest, chain: &Chain, next: &mut u16, at: &mut u64) -> u16 {
    let head = *next % RING;
    let direct = chain.indirect_from.unwrap_or(chain.pieces.len());
    let last = chain.pieces.len() - 1;
    for (i, len) in chain.pieces[..direct].iter().enumerate() {
        let flags = if i == last { 0 } else { NEXT };
        guest
            .tx
            .descriptor(*next % RING, *at, *len, flags, (*next + 1) % RING);
        *next += 1;
        *at += u64::from(*len) + 3;
    }
    if let Some(from) = chain.indirect_from {
        let table = *at + 1; // at any alignment
        let count = chain.pieces.len() - from;
        *at = table + 16 * count as u64;
        guest
            .tx
            .descriptor(*next % RING, table, 16 * count as u32, INDIRECT, 0);
        *next += 1;
        for (i, len) in chain.pieces[from..].iter().enumerate() {
            let flags = if i + 1 == count { 0 } else { NEXT };
            guest
                .tx
                .descriptor_in(table, i as u16, *at, *len, flags, i as u16 + 1);
            *at += u64::from(*len) + 3;
        }
    }
    head
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both read the same bytes from the same chains, and return the same used ring.
    #[test]
    fn takes_what_the_oracle_takes(rounds in prop::collection::vec(prop::collection::vec(chain(), 1..8), 1..30)) {
        let (mut ours, mut theirs) = (guest(false), guest(false));
        let (mut ring, mut queue) = (tx(&ours), oracle(&theirs.tx));
        let noise: Vec<u8> = (0..65_536u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut next = 0u16;
        for chains in rounds {
            for g in [&ours, &theirs] {
                g.memory.write_slice(&noise, GuestAddress(BASE + SIZE / 2)).unwrap();
            }
            let mut at = BASE + SIZE / 2;
            for chain in &chains {
                let (mut n, mut a) = (next, at);
                let head = lay(&ours, chain, &mut next, &mut at);
                prop_assert_eq!(lay(&theirs, chain, &mut n, &mut a), head);
                ours.tx.push(head);
                theirs.tx.push(head);
            }
            next %= RING;
            ours.tx.publish();
            theirs.tx.publish();
            while let Some(taken) = ring.take().unwrap() {
                let mut bytes = vec![0; taken.len as usize];
                prop_assert_eq!(ring.peek(taken.head, &mut bytes), bytes.len());
                let (head, all) = oracle_takes(&mut queue, &theirs).unwrap();
                prop_assert_eq!(taken.head, head);
                prop_assert_eq!(&bytes[..], &all[12..]);
                ring.complete(taken.head);
                queue.add_used(&*theirs.memory, head, 0).unwrap();
            }
            prop_assert!(oracle_takes(&mut queue, &theirs).is_none());
            ring.ring().publish();
            prop_assert_eq!(ours.tx.used_index(), theirs.tx.used_index());
            while let Some(used) = ours.tx.pop() {
                prop_assert_eq!(Some(used), theirs.tx.pop());
            }
        }
    }

    /// Both interrupt the guest in the same moments, whatever it asks for.
    #[test]
    fn interrupts_when_the_oracle_does(rounds in prop::collection::vec((1u16..20, -3i16..24), 1..100)) {
        let (mut ours, mut theirs) = (guest(true), guest(true));
        let (mut ring, mut queue) = (tx(&ours), oracle(&theirs.tx));
        let mut used = 0u16;
        // The first interrupt after a start is never left out, as the one before may have been lost with its owner.
        let mut first = true;
        for (count, event) in rounds {
            for g in [&mut ours, &mut theirs] {
                for i in 0..count {
                    g.tx.descriptor(i, BASE + SIZE / 2, 100, 0, 0);
                    g.tx.push(i);
                }
                g.tx.publish();
                g.tx.set_used_event(used.wrapping_add_signed(event));
            }
            used = used.wrapping_add(count);
            while let Some(taken) = ring.take().unwrap() {
                ring.complete(taken.head);
                let (head, _) = oracle_takes(&mut queue, &theirs).unwrap();
                queue.add_used(&*theirs.memory, head, 0).unwrap();
            }
            ring.ring().publish();
            let wanted = queue.needs_notification(&*theirs.memory).unwrap();
            let first = std::mem::take(&mut first);
            prop_assert_eq!(ours.tx.interrupted(), wanted || first);
        }
    }
}

type Attack = fn(&mut DriverRing);

/// Where nothing is mapped.
const NOWHERE: u64 = BASE + SIZE;
/// Memory for tables.
const TABLE: u64 = BASE + SIZE / 2;
/// Memory for buffers.
const BUFFER: u64 = BASE + SIZE / 2 + (1 << 20);

fn offer(r: &mut DriverRing) {
    r.push(0);
    r.publish();
}

const TRANSMIT: &[(&str, Attack, Violation)] = &[
    (
        "index jumps",
        |r| r.set_index(RING + 1),
        Violation::AvailableIndex,
    ),
    (
        "index goes backwards",
        |r| r.set_index(u16::MAX),
        Violation::AvailableIndex,
    ),
    (
        "head outside",
        |r| {
            r.push(RING);
            r.publish();
        },
        Violation::Head,
    ),
    (
        "head far outside",
        |r| {
            r.push(u16::MAX);
            r.publish();
        },
        Violation::Head,
    ),
    (
        "head twice",
        |r| {
            r.descriptor(0, BUFFER, 100, 0, 0);
            r.push(0);
            r.push(0);
            r.publish();
        },
        Violation::HeadTwice,
    ),
    (
        "next outside",
        |r| {
            r.descriptor(0, BUFFER, 100, NEXT, RING);
            offer(r);
        },
        Violation::Next,
    ),
    (
        "loop to itself",
        |r| {
            r.descriptor(0, BUFFER, 1, NEXT, 0);
            offer(r);
        },
        Violation::ChainTooLong,
    ),
    (
        "loop of empty buffers",
        |r| {
            r.descriptor(0, BUFFER, 0, NEXT, 1);
            r.descriptor(1, BUFFER, 0, NEXT, 0);
            offer(r);
        },
        Violation::ChainTooLong,
    ),
    (
        "long indirect chain",
        |r| {
            for i in 0..1000 {
                r.descriptor_in(TABLE, i, BUFFER, 1, NEXT, i + 1);
            }
            r.descriptor(0, TABLE, 16 * 1000, INDIRECT, 0);
            offer(r);
        },
        Violation::ChainTooLong,
    ),
    (
        "more than 4 GiB",
        |r| {
            for i in 0..200 {
                r.descriptor_in(TABLE, i, BASE, SIZE as u32, NEXT, i + 1);
            }
            r.descriptor_in(TABLE, 200, BASE, 1, 0, 0);
            r.descriptor(0, TABLE, 16 * 201, INDIRECT, 0);
            offer(r);
        },
        Violation::ChainTooLarge,
    ),
    (
        "writable buffer",
        |r| {
            r.descriptor(0, BUFFER, 100, WRITE, 0);
            offer(r);
        },
        Violation::Direction,
    ),
    (
        "address outside",
        |r| {
            r.descriptor(0, NOWHERE, 100, 0, 0);
            offer(r);
        },
        Violation::Address,
    ),
    (
        "address 0",
        |r| {
            r.descriptor(0, 0, 100, 0, 0);
            offer(r);
        },
        Violation::Address,
    ),
    (
        "end outside",
        |r| {
            r.descriptor(0, NOWHERE - 50, 100, 0, 0);
            offer(r);
        },
        Violation::Address,
    ),
    (
        "address wraps",
        |r| {
            r.descriptor(0, u64::MAX - 10, 100, 0, 0);
            offer(r);
        },
        Violation::Address,
    ),
    (
        "length 2^32-1",
        |r| {
            r.descriptor(0, BUFFER, u32::MAX, 0, 0);
            offer(r);
        },
        Violation::Address,
    ),
    (
        "shorter than the header",
        |r| {
            r.descriptor(0, BUFFER, 11, 0, 0);
            offer(r);
        },
        Violation::ShortHeader,
    ),
    (
        "nothing at all",
        |r| {
            r.descriptor(0, NOWHERE, 0, 0, 0);
            offer(r);
        },
        Violation::ShortHeader,
    ),
    (
        "indirect in indirect",
        |r| {
            r.descriptor_in(TABLE, 0, TABLE, 16, INDIRECT, 0);
            r.descriptor(0, TABLE, 16, INDIRECT, 0);
            offer(r);
        },
        Violation::IndirectNested,
    ),
    (
        "indirect with next",
        |r| {
            r.descriptor(0, TABLE, 16, INDIRECT | NEXT, 1);
            offer(r);
        },
        Violation::IndirectNested,
    ),
    (
        "empty table",
        |r| {
            r.descriptor(0, TABLE, 0, INDIRECT, 0);
            offer(r);
        },
        Violation::IndirectTable,
    ),
    (
        "table of 17 bytes",
        |r| {
            r.descriptor(0, TABLE, 17, INDIRECT, 0);
            offer(r);
        },
        Violation::IndirectTable,
    ),
    (
        "table outside",
        |r| {
            r.descriptor(0, NOWHERE, 16, INDIRECT, 0);
            offer(r);
        },
        Violation::IndirectTable,
    ),
    (
        "table ends outside",
        |r| {
            r.descriptor(0, NOWHERE - 16, 32, INDIRECT, 0);
            offer(r);
        },
        Violation::IndirectTable,
    ),
    (
        "next outside the table",
        |r| {
            r.descriptor_in(TABLE, 0, BUFFER, 1, NEXT, 1);
            r.descriptor(0, TABLE, 16, INDIRECT, 0);
            offer(r);
        },
        Violation::Next,
    ),
];

#[test]
fn transmit_violations() {
    for (name, attack, violation) in TRANSMIT {
        let mut guest = guest(false);
        let mut ring = tx(&guest);
        attack(&mut guest.tx);
        let end = loop {
            match ring.take() {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert_eq!(end, Err(*violation), "{name}");
    }
}

const RECEIVE: &[(&str, Attack, Violation)] = &[
    (
        "index jumps",
        |r| r.set_index(RING + 1),
        Violation::AvailableIndex,
    ),
    (
        "readable buffer",
        |r| {
            r.descriptor(0, BUFFER, 2048, 0, 0);
            offer(r);
        },
        Violation::Direction,
    ),
    (
        "readable part",
        |r| {
            r.descriptor(0, BUFFER, 100, WRITE | NEXT, 1);
            r.descriptor(1, BUFFER, 2048, 0, 0);
            offer(r);
        },
        Violation::Direction,
    ),
    (
        "shorter than the header",
        |r| {
            r.descriptor(0, BUFFER, 11, WRITE, 0);
            offer(r);
        },
        Violation::ShortHeader,
    ),
    (
        "outside",
        |r| {
            r.descriptor(0, NOWHERE - 1, 2048, WRITE, 0);
            offer(r);
        },
        Violation::Address,
    ),
];

#[test]
fn receive_violations() {
    for (name, attack, violation) in RECEIVE {
        let mut guest = guest(false);
        let mut ring = rx(&guest);
        attack(&mut guest.rx);
        assert_eq!(
            ring.reserve(100).unwrap_err(),
            NoBuffer::Violation(*violation),
            "{name}"
        );
    }
}

#[test]
fn indirect_only_if_agreed() {
    let mut g = guest(false);
    let layout = vswitch::ring::RingLayout {
        size: RING,
        descriptors: g.user(g.tx.descriptors),
        available: g.user(g.tx.available),
        used: g.user(g.tx.used),
        ..Default::default()
    };
    let ring =
        vswitch::ring::SplitRing::new(common::virtual_lab::memory(&g), layout, None).unwrap();
    let mut ring = TxRing::new(ring, Layout::from_features(VERSION_1));
    g.tx.descriptor(0, TABLE, 16, INDIRECT, 0);
    offer(&mut g.tx);
    assert_eq!(ring.take(), Err(Violation::IndirectNotAgreed));
}

/// The header may be spread over buffers byte by byte, on either side.
#[test]
fn headers_in_pieces() {
    let mut g = guest(false);
    let mut ring = tx(&g);
    for i in 0..40 {
        let flags = if i == 39 { 0 } else { NEXT };
        g.tx.descriptor(i, BUFFER + u64::from(i), 1, flags, i + 1);
    }
    let content: Vec<u8> = (0..40).map(|i| if i < 12 { 0 } else { i }).collect();
    g.memory
        .write_slice(&content, GuestAddress(BUFFER))
        .unwrap();
    offer(&mut g.tx);
    let taken = ring.take().unwrap().unwrap();
    assert_eq!((taken.len, taken.offload), (28, Ok(Offload::default())));

    let mut to = guest(false);
    let mut receiver = rx(&to);
    for i in 0..45 {
        let flags = if i == 44 { WRITE } else { WRITE | NEXT };
        to.rx
            .descriptor(i, BUFFER + 2 * u64::from(i), 1, flags, i + 1);
    }
    offer(&mut to.rx);
    let reservation = receiver.reserve(taken.len).unwrap();
    let content = Content {
        start: &[],
        rest: Part {
            pieces: ring.pieces(taken.head),
            skip: 0,
            len: taken.len,
        },
        offload: Offload::default(),
    };
    receiver.fill(reservation, content);
    assert_eq!(to.rx.used_index(), 0);
    receiver.deliver(reservation);
    receiver.ring().publish();
    assert_eq!(to.rx.pop(), Some((0, 40)));
    let byte = |i: u64| -> u8 { to.memory.read_obj(GuestAddress(BUFFER + 2 * i)).unwrap() };
    assert_eq!((byte(10), byte(12), byte(39), byte(40)), (1, 12, 39, 0));
}

/// Chains are returned in the order in which they were taken, so that the used index is always a place to go on from.
#[test]
fn returned_in_order() {
    let mut g = guest(false);
    let mut ring = tx(&g);
    for i in [5, 9, 7] {
        g.tx.descriptor(i, BUFFER, 100, 0, 0);
        g.tx.push(i);
    }
    g.tx.publish();
    while ring.take().unwrap().is_some() {}
    ring.complete(7);
    ring.complete(9);
    ring.ring().publish();
    assert_eq!((g.tx.used_index(), ring.ring().base()), (0, 0));
    ring.complete(5);
    ring.ring().publish();
    assert_eq!((g.tx.used_index(), ring.ring().base()), (3, 3));
    assert_eq!(
        [g.tx.pop(), g.tx.pop(), g.tx.pop()].map(|u| u.unwrap().0),
        [5, 9, 7]
    );
}

/// A failed reservation takes nothing, so a smaller frame can have the buffers.
#[test]
fn a_failed_reservation_leaves_no_trace() {
    let mut g = guest(false);
    let mut ring = rx(&g);
    for i in 0..3 {
        g.rx.descriptor(i, BUFFER, 100, WRITE, 0);
        g.rx.push(i);
    }
    g.rx.publish();
    for _ in 0..10 {
        assert_eq!(ring.reserve(289), Err(NoBuffer::Empty));
    }
    let reservation = ring.reserve(288).unwrap();
    ring.deliver(reservation);
    assert_eq!(ring.ring().base(), 3);
}

/// Rings of the largest size work all the way round.
#[test]
fn largest_ring() {
    let memory = Guest::new(Shape::default()).memory;
    let mut r = DriverRing::new(Arc::clone(&memory), BASE, 32768, false);
    let g = Guest::on(
        memory,
        Shape {
            size: 64,
            ..Shape::default()
        },
    );
    let mut ring = TxRing::new(split(&g, &r, 0), Layout::from_features(VERSION_1));
    r.reset();
    for i in 0..32768 {
        r.descriptor(i, BUFFER, 100, 0, 0);
    }
    for _ in 0..3 {
        for i in 0..32768 {
            r.push(i);
        }
        r.publish();
        for i in 0..32768 {
            assert_eq!(ring.take().unwrap().map(|t| t.head), Some(i));
            ring.complete(i);
        }
        ring.ring().publish();
        for i in 0..32768 {
            assert_eq!(r.pop(), Some((i, 0)));
        }
    }
}
