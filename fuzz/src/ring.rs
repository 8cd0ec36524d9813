//! Both rings of a guest that does anything to its descriptors, indices and event fields, between any calls of the switch.

use arbitrary::{Arbitrary, Unstructured};
use vm_memory::{Bytes, GuestAddress};
use vswitch::net_header::Layout;
use vswitch::offload::Offload;
use vswitch::port::features::{OFFLOADS, VERSION_1};
use vswitch::ring::{BATCH, Content, NoBuffer, Part, Reservation, RxRing, Taken, TxRing};

use crate::all;
use crate::common::driver::{BASE, DriverRing, Guest, SIZE, Shape};
use crate::common::virtual_lab::split;

/// Where indirect tables are.
const TABLE: u64 = BASE + SIZE / 2;

#[derive(Debug, Arbitrary)]
struct Input {
    log2_size: u8,
    event_idx: bool,
    mergeable: bool,
    base: u16,
    #[arbitrary(default)]
    steps: Vec<Step>,
}

/// An address of a buffer or a table.
#[derive(Debug, Arbitrary)]
enum Address {
    Inside(u16),
    Table(u8),
    AtTheEnd(u8),
    Ring(u16),
    Anywhere(u64),
}

impl Address {
    fn value(&self) -> u64 {
        match *self {
            Self::Inside(n) => BASE + SIZE / 4 + u64::from(n),
            Self::Table(n) => TABLE + 16 * u64::from(n),
            Self::AtTheEnd(n) => BASE + SIZE - u64::from(n),
            Self::Ring(n) => BASE + u64::from(n),
            Self::Anywhere(n) => n,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Length {
    Short(u8),
    Entries(u8),
    Any(u32),
}

impl Length {
    fn value(&self) -> u32 {
        match *self {
            Self::Short(n) => n.into(),
            Self::Entries(n) => 16 * u32::from(n),
            Self::Any(n) => n,
        }
    }
}

/// What the guest does to one of its rings.
#[derive(Debug, Arbitrary)]
enum Guestly {
    Descriptor {
        indirect_table: bool,
        index: u8,
        address: Address,
        len: Length,
        flags: u8,
        next: u8,
    },
    Push(u16),
    Offer,
    Index(u16),
    UsedEvent(u16),
    NoInterrupt(bool),
    Poke(u16, [u8; 3]),
}

/// What the switch does.
#[derive(Debug, Arbitrary)]
enum Step {
    Guest { transmit: bool, what: Guestly },
    Take,
    Peek(u8),
    Complete(u8),
    Reserve(u16),
    Fill,
    Update(u16),
    Deliver(u8),
    Unreserve,
    Publish,
    Suppress,
    Allow,
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    if let Ok(mut input) = Input::arbitrary(&mut bytes) {
        input.steps = all(&mut bytes);
        play(&input);
    }
}

/// Hands frames on as far as there are buffers; how many.
fn pass(tx: &TxRing, rx: &mut RxRing, batch: &[Taken]) -> u16 {
    let mut heads = [0; BATCH];
    let n = rx.reserve_batch(batch, &mut heads);
    for (frame, head) in batch.iter().zip(&heads[..n]) {
        let rest = Part {
            pieces: tx.pieces(frame.head),
            skip: 0,
            len: frame.len,
        };
        let offload = frame.offload.unwrap_or_default();
        let content = Content {
            start: &[],
            rest,
            offload,
        };
        rx.fill(Reservation::of(*head), content);
    }
    rx.deliver_batch(&heads[..n]);
    n as u16
}

fn play(input: &Input) {
    let size = 1 << (input.log2_size % 8);
    let mut guest = Guest::new(Shape {
        size,
        event_idx: input.event_idx,
        mergeable: input.mergeable,
        ..Shape::default()
    });
    let header = Layout::from_features(VERSION_1 | OFFLOADS);
    let mut tx = TxRing::new(split(&guest, &guest.tx, input.base), header);
    let mut rx = RxRing::new(
        split(&guest, &guest.rx, input.base),
        header,
        input.mergeable,
    );
    let (mut tx_broken, mut rx_broken) = (false, false);
    let mut taken: Vec<(u16, u32)> = Vec::new();
    let mut reserved: Vec<(Reservation, u32)> = Vec::new();
    let (mut took, mut set_aside, mut delivered) = (0u16, 0u16, 0u16);
    // As frames of links without shaping are, half of the time.
    let in_batches = input.base % 2 == 1;
    for step in &input.steps {
        match step {
            Step::Guest { transmit, what } => {
                let ring = if *transmit {
                    &mut guest.tx
                } else {
                    &mut guest.rx
                };
                act(ring, what);
            }
            Step::Take if !tx_broken && in_batches => {
                let mut batch = Vec::new();
                tx_broken = tx.take_batch(&mut batch).is_some();
                for t in &batch {
                    assert!(t.head < size);
                    assert!(taken.iter().all(|(head, _)| *head != t.head));
                    taken.push((t.head, t.len));
                }
                took = took.wrapping_add(batch.len() as u16);
                assert!(taken.len() <= size.into());
                let n = pass(&tx, &mut rx, &batch);
                set_aside = set_aside.wrapping_add(n);
                delivered = delivered.wrapping_add(n);
            }
            Step::Take if !tx_broken => match tx.take() {
                Ok(Some(t)) => {
                    assert!(t.head < size);
                    assert!(taken.iter().all(|(head, _)| *head != t.head));
                    taken.push((t.head, t.len));
                    took = took.wrapping_add(1);
                    assert!(taken.len() <= size.into());
                }
                Ok(None) => {}
                Err(_) => tx_broken = true,
            },
            Step::Peek(n) => {
                if let Some((head, len)) = pick(&taken, *n) {
                    let mut out = [0; 300];
                    assert_eq!(tx.peek(head, &mut out), out.len().min(len as usize));
                }
            }
            Step::Complete(n) => {
                if let Some((head, _)) = pick(&taken, *n) {
                    taken.retain(|(h, _)| *h != head);
                    tx.complete(head);
                }
            }
            Step::Reserve(len) if !rx_broken => match rx.reserve((*len).into()) {
                Ok(r) => {
                    assert!(r.count() > 0 && (input.mergeable || r.count() == 1));
                    set_aside = set_aside.wrapping_add(r.count());
                    reserved.push((r, (*len).into()));
                }
                Err(NoBuffer::Violation(_)) => rx_broken = true,
                Err(_) => {}
            },
            Step::Fill => {
                if let Some((r, len)) = reserved.last() {
                    let frame: Vec<u8> = (0..*len).map(|i| i as u8).collect();
                    let content = Content {
                        start: &frame,
                        rest: Part::default(),
                        offload: Offload::default(),
                    };
                    rx.fill(*r, content);
                    let mut back = vec![0; frame.len()];
                    rx.read(*r, &mut back);
                }
            }
            Step::Update(offset) => {
                if let Some((r, _)) = reserved.last() {
                    rx.update(*r, (*offset).into(), |byte| !byte);
                }
            }
            Step::Deliver(n) if !reserved.is_empty() => {
                let (r, _) = reserved.remove(usize::from(*n) % reserved.len());
                rx.deliver(r);
                delivered = delivered.wrapping_add(r.count());
            }
            Step::Unreserve => {
                // Only what was set aside last can be taken back.
                if let Some((r, _)) = reserved.pop() {
                    if delivered == 0 {
                        rx.unreserve(r.count());
                        set_aside = set_aside.wrapping_sub(r.count());
                    } else {
                        rx.deliver(r);
                        delivered = delivered.wrapping_add(r.count());
                    }
                }
            }
            Step::Publish => {
                rx.ring().publish();
                tx.ring().publish();
            }
            Step::Suppress => tx.ring().suppress_kicks(),
            Step::Allow => {
                tx.ring().allow_kicks();
            }
            Step::Take | Step::Reserve(_) | Step::Deliver(_) => {}
        }
    }
    // Everything goes back, in any order, and nothing else does.
    for (head, _) in taken {
        tx.complete(head);
    }
    for (r, _) in reserved {
        rx.deliver(r);
    }
    assert_eq!(tx.ring().base(), input.base.wrapping_add(took));
    assert_eq!(rx.ring().base(), input.base.wrapping_add(set_aside));
    tx.ring().publish();
    rx.ring().publish();
}

fn pick(taken: &[(u16, u32)], n: u8) -> Option<(u16, u32)> {
    let len = taken.len().max(1);
    taken.get(usize::from(n) % len).copied()
}

fn act(ring: &mut DriverRing, what: &Guestly) {
    match what {
        Guestly::Descriptor {
            indirect_table,
            index,
            address,
            len,
            flags,
            next,
        } => {
            let table = if *indirect_table {
                TABLE
            } else {
                ring.descriptors
            };
            let (address, len) = (address.value(), len.value());
            ring.descriptor_in(
                table,
                (*index).into(),
                address,
                len,
                u16::from(*flags),
                (*next).into(),
            );
        }
        Guestly::Push(head) => ring.push(*head),
        Guestly::Offer => {
            ring.publish();
        }
        Guestly::Index(index) => ring.set_index(*index),
        Guestly::UsedEvent(event) => ring.set_used_event(*event),
        Guestly::NoInterrupt(off) => ring.set_no_interrupt(*off),
        Guestly::Poke(at, bytes) => {
            let at = GuestAddress(BASE + u64::from(*at));
            // Inside the guest's memory, which is far larger.
            let _ = ring.memory.write_slice(bytes, at);
        }
    }
}
