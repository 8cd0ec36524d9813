//! Two guests on a shaped link, one of which sends, the other receives, with any chains and headers; rings stop and start in between.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use topology::model::{Completion, Direction, Discipline, FqCodel, Limit, Loss, Queue, Reorder};
use vm_memory::{Bytes, GuestAddress};

use vswitch::port::features::OFFLOADS;

use crate::all;
use crate::common::driver::{BASE, INDIRECT, NEXT, SIZE, Shape, WRITE};
use crate::common::lab::Lab;
use crate::common::virtual_lab::VirtualLab;
use crate::common::{frame, mac};

const TABLE: u64 = BASE + SIZE / 2;
const BUFFER: u64 = BASE + SIZE / 4;
const RING: u16 = 32;
/// Longer than any queue needs to run empty.
const LONG: u64 = 3_600_000_000_000;

#[derive(Debug, Arbitrary)]
struct Input {
    nic: bool,
    hub: bool,
    event_idx: bool,
    mergeable: bool,
    rate: Option<u16>,
    delay: u16,
    limit: u8,
    lossy: bool,
    duplicate: bool,
    reorder: bool,
    corrupt: bool,
    fair: bool,
    #[arbitrary(default)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
struct Piece {
    /// Bytes into the guest's buffers, or before the end of its memory.
    at: u16,
    at_the_end: bool,
    len: u16,
    /// Added to the flags; most often 0.
    flags: u8,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// A frame of this length, as it should be.
    Send(u16),
    /// A chain with a header of these bytes.
    Chain {
        header: [u8; 12],
        pieces: Vec<Piece>,
        indirect_from: u8,
        loops: bool,
    },
    /// Receive buffers.
    Buffers(Vec<Piece>),
    Receive,
    Pass(u32),
    Restart {
        transmit: bool,
    },
    Poke(u16, [u8; 3]),
    Turn,
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    if let Ok(mut input) = Input::arbitrary(&mut bytes) {
        input.steps = all(&mut bytes);
        play(&input);
    }
}

fn direction(input: &Input) -> Direction {
    let discipline = if input.fair {
        Discipline::FqCodel(FqCodel::default())
    } else {
        Queue::default().discipline
    };
    let sometimes = |on| if on { 0.3 } else { 0.0 };
    Direction {
        rate: input.rate.map(|r| 1_000_000 + 1000 * u64::from(r)),
        delay: Duration::from_micros(input.delay.into()),
        loss: Loss::Random(sometimes(input.lossy)),
        duplicate: sometimes(input.duplicate),
        corrupt: sometimes(input.corrupt),
        reorder: input.reorder.then_some(Reorder {
            probability: 0.3,
            gap: 1,
        }),
        queue: Queue {
            limit: Limit::Packets(input.limit.into()),
            discipline,
        },
        ..Direction::default()
    }
}

fn play(input: &Input) {
    let completion = if input.nic {
        Completion::Nic
    } else {
        Completion::Network
    };
    let mut lab = Lab::with_seed(1);
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    let direction = direction(input);
    if input.hub {
        let hub = lab.hub("hub");
        lab.link(a, hub, &direction, completion);
        lab.link(hub, b, &direction, completion);
    } else {
        lab.link(a, b, &direction, completion);
    }
    let shape = Shape {
        size: RING,
        event_idx: input.event_idx,
        mergeable: input.mergeable,
        offloads: OFFLOADS,
        ..Shape::default()
    };
    let mut lab = VirtualLab::new(&lab.topology(), shape);
    let mut next = 0;
    for (n, step) in input.steps.iter().enumerate() {
        act(&mut lab, n as u32, step, &mut next);
        // Each ring once; it is not served again before it is restarted.
        assert!(lab.engine.take_stopped().count() <= 4);
    }
    lab.pass(LONG);
    for d in lab.directions() {
        assert_eq!(
            d.in_frames + d.duplicated,
            d.out_frames + d.drops.total(),
            "{d:?}"
        );
        assert_eq!(d.queued, 0);
    }
    assert!(lab.engine.is_empty(), "frames stay behind");
}

fn act(lab: &mut VirtualLab, n: u32, step: &Step, next: &mut u16) {
    match step {
        Step::Send(len) => {
            let f = frame(mac(2), mac(1), usize::from(*len % 2000), n);
            if lab.guest("a.eth0").queue(&f) {
                lab.guest("a.eth0").tx.publish();
            }
        }
        Step::Chain {
            header,
            pieces,
            indirect_from,
            loops,
        } => {
            let guest = lab.guest("a.eth0");
            let at = GuestAddress(BUFFER);
            guest.memory.write_slice(header, at).expect("memory");
            let head = *next % RING;
            let last = pieces.len().saturating_sub(1);
            let mut table = guest.tx.descriptors;
            let mut index = head;
            for (i, piece) in pieces.iter().enumerate() {
                if i == usize::from(*indirect_from) {
                    let len = 16 * (pieces.len() - i) as u32;
                    guest
                        .tx
                        .descriptor_in(table, index, TABLE, len, INDIRECT, 0);
                    (table, index) = (TABLE, 0);
                }
                let following = if table == TABLE {
                    index + 1
                } else {
                    (index + 1) % RING
                };
                let (more, following) = match (i == last, loops) {
                    (false, _) => (NEXT, following),
                    (true, true) => (NEXT, head),
                    (true, false) => (0, 0),
                };
                let flags = more | u16::from(piece.flags);
                let (address, len) = (address(piece), u32::from(piece.len));
                guest
                    .tx
                    .descriptor_in(table, index, address, len, flags, following);
                index = following;
                if table != TABLE {
                    *next = next.wrapping_add(1);
                }
            }
            guest.tx.push(head);
            guest.tx.publish();
        }
        Step::Buffers(pieces) => {
            let guest = lab.guest("b.eth0");
            for piece in pieces {
                let head = *next % RING;
                *next = next.wrapping_add(1);
                let (at, len) = (address(piece), u32::from(piece.len));
                let flags = WRITE ^ u16::from(piece.flags);
                guest.rx.descriptor(head, at, len, flags, (head + 1) % RING);
                guest.rx.push(head);
            }
            guest.rx.publish();
        }
        // What the guest makes of its own ring is its own affair.
        Step::Receive => while lab.guest("b.eth0").rx.pop().is_some() {},
        Step::Pass(ns) => lab.pass((*ns).into()),
        Step::Restart { transmit: true } => {
            let index = lab.index("a.eth0");
            let base = lab.engine.remove_tx(index).map(|mut r| r.ring().base());
            lab.start_tx("a.eth0", base.unwrap_or(0));
        }
        Step::Restart { transmit: false } => {
            let index = lab.index("b.eth0");
            let base = lab.engine.remove_rx(index).map(|mut r| r.ring().base());
            lab.start_rx("b.eth0", base.unwrap_or(0));
        }
        Step::Poke(at, bytes) => {
            let at = GuestAddress(BASE + u64::from(*at));
            for name in ["a.eth0", "b.eth0"] {
                lab.guest(name)
                    .memory
                    .write_slice(bytes, at)
                    .expect("memory");
            }
        }
        Step::Turn => {
            let (index, now) = (lab.index("a.eth0"), lab.now);
            lab.engine.kicked(index, now);
            lab.engine.turn(now);
        }
    }
}

fn address(piece: &Piece) -> u64 {
    if piece.at_the_end {
        BASE + SIZE - u64::from(piece.at)
    } else {
        BUFFER + u64::from(piece.at % 256)
    }
}
